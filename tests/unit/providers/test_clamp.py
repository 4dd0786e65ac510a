"""Lowering a request's output limit: a few bytes change, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lava_proxy.domain.usage import token_usage
from lava_proxy.providers.base import Call
from lava_proxy.providers.clamp import lowest_limit, with_limit


def call(body: bytes | dict[str, Any], api: str = "chat", output: int = 1000) -> Call:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call(api=api, model="m", stream=False, body=raw, ceiling=token_usage(100, output))


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_only_the_number_changes(field: str) -> None:
    """F8"""
    body = b'{ "model":"m",\n "%b" : 1000, "x":1.50}' % field.encode()
    found = with_limit(call(body), 77)
    assert found is not None
    assert found.body == body.replace(b"1000", b"77")
    assert found.ceiling.output_tokens == 77
    assert found.ceiling.input_tokens == 100


def test_a_prompt_that_quotes_the_field_is_left_alone() -> None:
    document = {"tool": {"max_tokens": 1000}, "messages": [{"content": 'say "max_tokens": 1000'}], "max_tokens": 1000}
    found = with_limit(call(document), 5)
    assert found is not None
    assert json.loads(found.body) == {**document, "max_tokens": 5}


def test_geminis_limit_is_in_its_config() -> None:
    document = {"contents": [], "generationConfig": {"maxOutputTokens": 1000, "temperature": 0}}
    found = with_limit(call(document, "generateContent"), 5)
    assert found is not None
    assert json.loads(found.body)["generationConfig"] == {"maxOutputTokens": 5, "temperature": 0}


@pytest.mark.parametrize(("api", "field"), [("chat", "max_completion_tokens"), ("responses", "max_output_tokens")])
def test_a_call_without_a_limit_is_given_one(api: str, field: str) -> None:
    found = with_limit(call({"model": "m", "messages": []}, api), 5)
    assert found is not None
    assert json.loads(found.body) == {field: 5, "model": "m", "messages": []}


@pytest.mark.parametrize(
    ("api", "body"),
    [
        ("chat", {"max_tokens": 500, "n": 2}),  # several answers
        ("chat", {"n": 2}),
        ("chat", {"max_tokens": 1000, "max_completion_tokens": 1000}),
        ("messages", {"messages": []}),
        ("completions", {"prompt": "x"}),
        ("embeddings", {"input": "x"}),
        ("speech", {"input": "x"}),
        ("chat", b"[]"),
        ("chat", b"nonsense"),
    ],
)
def test_what_has_no_single_limit_is_not_changed(api: str, body: Any) -> None:
    assert with_limit(call(body, api), 5) is None


def test_anthropics_thinking_budget_stays_below_the_limit() -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    assert lowest_limit(call({"max_tokens": 4096, "thinking": thinking}, "messages")) == 1025
    assert lowest_limit(call({"max_tokens": 4096}, "messages")) == 1
    assert lowest_limit(call({"input": "x"}, "speech")) == 0
