"""The official Node SDKs, unmodified: `openai`, and Vercel's `ai` with @ai-sdk/openai.

A script of tests/e2e/node makes all calls of one SDK and prints what it saw; each test looks at one of them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.e2e import node_packages

# $0.02 per 1K tokens: 20,000 nano-dollars a token.
NANOS_PER_TOKEN = 20_000
# gpt-4o-mini: $0.15 in, $0.60 out per 1M tokens.
INPUT_NANOS, OUTPUT_NANOS = 150, 600
FUNDS_NANOS = 10**9

SCRIPTS = {"openai": "openai_sdk.mjs", "ai": "vercel_ai.mjs"}
BOTH_FORMS = ("chat", "chat stream", "responses", "responses stream")
REFUSALS: Mapping[str, Mapping[int, tuple[str, str]]] = {
    "openai": {
        401: ("AuthenticationError", "unknown or has been revoked"),
        402: ("APIError", "does not cover"),
        429: ("RateLimitError", "x-sandbox-fail"),
        503: ("InternalServerError", "x-sandbox-fail"),
    },
    "ai": {
        401: ("APICallError", "unknown or has been revoked"),
        402: ("APICallError", "does not cover"),
        429: ("APICallError", "x-sandbox-fail"),
        503: ("APICallError", "x-sandbox-fail"),
    },
}
each_sdk = pytest.mark.parametrize("sdk", SCRIPTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a script saw, and the customer whose token it had."""

    results: dict[str, Any]
    customer: str
    poor_customer: str


@pytest.fixture(scope="module")
def runs(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Both scripts, each with customers of its own. Skipped where Node cannot be had."""
    try:
        node, modules = node_packages.node(), node_packages.installed()
    except node_packages.NotHere as reason:
        pytest.skip(str(reason))
    # Imports are looked up from the script's own folder, so the scripts go beside the packages.
    folder = tmp_path_factory.mktemp("node")
    (folder / "node_modules").symlink_to(modules)
    return {sdk: _run(daemon, node, shutil.copy(node_packages.FOLDER / script, folder)) for sdk, script in SCRIPTS.items()}


def _run(daemon: Daemon, node: str, script: Path) -> Run:
    merchant = daemon.info["merchant_id"]
    customer, poor, limited = (
        daemon.cli("customer", "create", "--merchant", merchant, "--funds", funds)["connection_id"]
        for funds in ("1.00", "0.00001", "1.00")
    )
    daemon.cli("customer", "limit", "--merchant", merchant, limited, "--requests", "1/total")
    settings = {
        "base_url": daemon.base_url,
        "fixed": daemon.cli_token(customer, "fixed"),
        "markup": daemon.cli_token(customer, "markup"),
        "poor": daemon.cli_token(poor, "fixed"),
        "limited": daemon.cli_token(limited, "fixed"),
    }
    done = subprocess.run([node, str(script), json.dumps(settings)], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Run(results=json.loads(done.stdout.splitlines()[-1]), customer=customer, poor_customer=poor)


def dollars(nanos: int) -> str:
    return f"{nanos // 10**9}.{nanos % 10**9:09d}0"


@each_sdk
@pytest.mark.parametrize("case", [*BOTH_FORMS, "embeddings"])
def test_a_node_sdk_gets_its_answer_and_the_row_has_the_usage_that_it_saw(
    daemon: Daemon, runs: dict[str, Run], sdk: str, case: str
) -> None:
    """A1: whole and streamed."""
    seen = runs[sdk].results[case]
    assert seen["text"] or case == "embeddings"
    row = daemon.row(seen["request_id"])
    assert (row["usage"]["input_tokens"], row["usage"]["output_tokens"]) == (seen["input"], seen["output"])
    assert row["provenance"] == "provider_final"
    assert row["charge"]["amount"] == dollars((seen["input"] + seen["output"]) * NANOS_PER_TOKEN)


@each_sdk
def test_whole_and_streamed_answers_are_the_same_text(runs: dict[str, Run], sdk: str) -> None:
    texts = {runs[sdk].results[case]["text"] for case in BOTH_FORMS}
    assert len(texts) == 1


def test_a_stream_without_usage_asked_for_shows_none_and_is_charged(daemon: Daemon, runs: dict[str, Run]) -> None:
    """I14: the usage chunk is ours, so the client does not see it."""
    seen, asked = (runs["openai"].results[case] for case in ("chat stream, usage not asked for", "chat stream"))
    assert (seen["usage_chunks"], asked["usage_chunks"]) == (0, 1)
    assert "input" not in seen
    assert seen["text"] == asked["text"]
    charge = (asked["input"] + asked["output"]) * NANOS_PER_TOKEN
    assert daemon.row(seen["request_id"])["charge"]["amount"] == dollars(charge)


@each_sdk
@pytest.mark.parametrize("case", ["markup", "markup stream"])
def test_a_percentage_meter_charges_provider_cost_plus_a_fifth(daemon: Daemon, runs: dict[str, Run], sdk: str, case: str) -> None:
    seen = runs[sdk].results[case]
    cost = seen["input"] * INPUT_NANOS + seen["output"] * OUTPUT_NANOS
    row = daemon.row(seen["request_id"])
    assert row["cost"] == dollars(cost)
    assert row["charge"]["amount"] == dollars(cost * 6 // 5)


@each_sdk
@pytest.mark.parametrize("form", ["", " stream"], ids=["whole", "stream"])
@pytest.mark.parametrize("status", [401, 402, 429, 503])
def test_a_refusal_is_the_sdks_own_error_with_its_sentence(runs: dict[str, Run], sdk: str, status: int, form: str) -> None:
    error = runs[sdk].results[f"{status}{form}"]["error"]
    kind, sentence = REFUSALS[sdk][status]
    assert (error["type"], error["status"]) == (kind, status)
    assert sentence in error["message"]
    if sdk == "ai":
        assert error["is_retryable"] == (status in (429, 503))


@each_sdk
@pytest.mark.parametrize("form", ["", " stream"], ids=["whole", "stream"])
def test_a_reached_limit_is_the_sdks_own_error(runs: dict[str, Run], sdk: str, form: str) -> None:
    """The one call that the customer had was answered."""
    assert runs[sdk].results["limited"]["text"]
    error = runs[sdk].results[f"limited{form}, again"]["error"]
    assert (error["type"], error["status"]) == (REFUSALS[sdk][429][0], 429)
    assert "limit" in error["message"]


@each_sdk
def test_the_balance_fell_by_the_sum_of_the_answers_and_refusals_cost_nothing(
    daemon: Daemon, runs: dict[str, Run], sdk: str
) -> None:
    charged = 0
    for case, seen in runs[sdk].results.items():
        if "request_id" in seen and case != "limited":
            row = daemon.row(seen["request_id"])
            rate = (
                (INPUT_NANOS * 6 // 5, OUTPUT_NANOS * 6 // 5) if case.startswith("markup") else (NANOS_PER_TOKEN, NANOS_PER_TOKEN)
            )
            charged += row["usage"]["input_tokens"] * rate[0] + row["usage"]["output_tokens"] * rate[1]
    assert charged
    assert FUNDS_NANOS - daemon.balance_nanos(runs[sdk].customer) == charged
    assert daemon.balance_nanos(runs[sdk].poor_customer) == 10_000
