"""providers/estimate.py and tokenizer.py: text that no provider counted, counted here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lava_proxy.domain.usage import Provenance, Reading, token_usage
from lava_proxy.providers import estimate as estimates
from lava_proxy.providers.estimate import estimate, unescaped
from lava_proxy.providers.tokenizer import TEXT_CHARS_MAX, count_tokens
from lava_proxy.providers.usage_reader import SAMPLE_BYTES
from tests.unit.providers.meter_help import asked, provider, read

pytest.importorskip("rs_bpe", reason="this Python has no o200k vocabulary: estimates are made at 4 bytes a token")

CHAT = asked("/v1/chat/completions", {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]})
STREAM = "text/event-stream"
TEXT = 'antidisestablishmentarianism ‘naïve’ 東京タワー 😀\n\t"quoted" back\\slash\n' * 3


def _event(text: str, *, ascii_only: bool = True) -> bytes:
    chunk = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": text}}]}
    return b"data: " + json.dumps(chunk, ensure_ascii=ascii_only).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("tiktoken is great!", 6), ("antidisestablishmentarianism", 6), ("2 + 2 = 4", 7), ("お誕生日おめでとう", 8), ("", 0)],
)
def test_tokens_are_those_of_the_o200k_vocabulary(text: str, tokens: int) -> None:
    """The examples of OpenAI's cookbook, "How to count tokens with tiktoken"."""
    assert count_tokens(text) == tokens


def test_strange_and_endless_text_is_counted_all_the_same_and_bounded() -> None:
    assert count_tokens("\ud800 lone") == count_tokens("? lone")
    whole = count_tokens("word " * (TEXT_CHARS_MAX // 5))
    assert whole is not None
    assert count_tokens("word " * (TEXT_CHARS_MAX // 5 * 10)) == 10 * whole


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_stream_that_broke_off_is_billed_the_tokens_of_its_text(step: int, ascii_only: bool) -> None:
    """C2: the same whatever the chunks, and though escapes are spelled in each of them (surrogate pairs included)."""
    pieces = [_event(TEXT[at : at + step], ascii_only=ascii_only) for at in range(0, len(TEXT), step)]
    guessed = estimate(provider(output_factor_percent=119), CHAT, read(CHAT, *pieces, content_type=STREAM))
    counted = count_tokens(TEXT)
    assert counted is not None
    assert guessed.output_tokens == -(-counted * 119 // 100)


def test_text_beyond_the_sample_counts_like_the_sample_and_only_the_sample_is_kept() -> None:
    pieces = [_event("Some words of an answer. ")] * 2000
    reading = read(CHAT, *pieces, content_type=STREAM)
    assert (len(reading.output_text_sample), reading.output_text_bytes) == (SAMPLE_BYTES, 50_000)
    whole = count_tokens("Some words of an answer. " * 2000)
    assert whole is not None
    assert abs(estimate(provider(), CHAT, reading).output_tokens - whole) <= whole // 100


def test_an_unfinished_event_is_sampled_at_every_look_and_counted_once() -> None:
    """A17: and the text of an error is in no sample."""
    first, second = _event("one "), _event("two")
    from tests.unit.providers.meter_help import FAMILY

    meter = FAMILY.meter(provider(), CHAT, 200, STREAM, "", ())
    meter.feed(first + second[:-1])
    assert [meter.reading().output_text_sample for _ in range(3)] == [b"one two"] * 3
    meter.feed(second[-1:] + b'data: {"error":{"message":"content: overloaded"}}\n\n')
    assert (meter.reading().output_text_sample, meter.reading().error) == (b"one two", True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b'{"error":{"message":"no","content":"a long text of an error"}}'),
        ("/v1/messages", b'event: error\ndata: {"type":"error","error":{"message":"x","text":"a long text"}}\n\n'),
        ("/v1/responses", b'event: error\ndata: {"type":"error","message":"a long text","delta":"more"}\n\n'),
    ],
)
def test_the_text_of_an_error_is_in_no_sample(path: str, body: bytes) -> None:
    """A17"""
    call = asked(path, {"model": "m", "stream": True, "messages": [], "input": "x", "max_tokens": 5})
    reading = read(call, body, content_type="application/json" if body[:1] == b"{" else STREAM)
    assert (reading.output_text_sample, reading.output_text_bytes, reading.error) == (b"", 0, True)


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        (b"plain", "plain"),
        (b'say \\"hi\\"\\n', 'say "hi"\n'),
        (b"\\ud83d\\ude00", "😀"),
        (b"cut \\ud83d\\ude0", "cut \ud83d"),
        (b"cut \\", "cut "),
        (b"cut \xe6\x9d", "cut "),
        (b"raw \n and \\n", "raw \n and \n"),
        (b"no escape \\q at all, with a good deal of text after it", "no escape \\q at all, with a good deal of text after it"),
    ],
)
def test_a_sample_is_unescaped_and_nothing_in_it_is_fatal(sample: bytes, text: str) -> None:
    assert unescaped(sample) == text


def test_a_quick_look_and_a_python_without_the_vocabulary_take_four_bytes_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(usage=None, provenance=Provenance.NONE, output_text_bytes=401, output_text_sample=b"x" * 401)
    assert estimate(provider(), CHAT, reading, quick=True).output_tokens == 101
    monkeypatch.setattr(estimates, "count_tokens", lambda text, vocabulary: None)
    assert estimate(provider(), CHAT, reading).output_tokens == 101


def test_reported_usage_is_never_lowered_by_a_count() -> None:
    """A13"""
    reading = Reading(
        usage=token_usage(5, 40), provenance=Provenance.PROVIDER_PARTIAL, output_text_bytes=4, output_text_sample=b"text"
    )
    assert estimate(provider(), CHAT, reading) == token_usage(5, 40)


def test_the_vocabulary_is_not_loaded_before_it_is_needed() -> None:
    """It is 67 MB, in each gateway process."""
    code = (
        "import sys, lava_proxy.billing.charging, lava_proxy.gateway.worker\n"
        "assert not any('rs_bpe' in name for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
