"""Prices that depend on more than the model: where it ran, how fast, how large a picture is, how long a video."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from lava_proxy.domain.prices import cost, facts_of, scaled, tier_and_facts, tier_with
from lava_proxy.domain.usage import Provenance, Reading, Usage, token_usage
from lava_proxy.providers.base import Call, Provider
from lava_proxy.providers.model_apis import ModelApis
from lava_proxy.providers.prices_source import load_price_book

CONFIG = Path(__file__).resolve().parents[3] / "config" / "prices.toml"
BOOK = load_price_book(tomllib.loads(CONFIG.read_text())["price"])
AT = datetime(2026, 11, 23, tzinfo=UTC)
FAMILY = ModelApis()
PROVIDER = Provider(name="openai", family="openai", hosts=(), base="https://test")
CENT = 10_000_000


def nanos(provider: str, model: str, usage: Usage, tier: str | None = None, **facts: str) -> int:
    found = BOOK.cost_of(provider, model, usage, at=AT, service_tier=tier_with(tier, facts_of(facts)))
    assert found is not None
    return found.nanos


def inspect(path: str, body: object, method: str = "POST") -> Call:
    return FAMILY.inspect(PROVIDER, method, path, "", "application/json", json.dumps(body).encode())


def read(call: Call, body: object) -> Reading:
    meter = FAMILY.meter(PROVIDER, call, 200, "application/json", "")
    meter.feed(json.dumps(body).encode())
    return meter.reading()


CLAUDE = token_usage(1_000_000, 1_000_000, cached=200_000, cache_write=300_000, cache_write_1h_tokens=100_000)


@pytest.mark.parametrize("model", ["claude-opus-4-6", "claude-opus-4-7", "claude-sonnet-4-6", "claude-opus-4-8-20260501"])
def test_inference_within_the_us_costs_a_tenth_more_of_every_token(model: str) -> None:
    """A2: input, output, cache reads and both kinds of writes; nothing of what is billed by the piece."""
    usual = nanos("anthropic", model, CLAUDE)
    assert nanos("anthropic", model, CLAUDE, inference_geo="us") * 10 == usual * 11
    assert nanos("anthropic", model, CLAUDE, inference_geo="global") == usual
    assert nanos("anthropic", model, CLAUDE, inference_geo="not_available") == usual
    searches = Usage({**CLAUDE.units, "web_search_requests": 3})
    more = nanos("anthropic", model, searches, inference_geo="us") - nanos("anthropic", model, CLAUDE, inference_geo="us")
    assert more == 3 * CENT


def test_fast_mode_has_its_own_price_and_multiplies_with_the_place() -> None:
    """The bundled table has it for newer models, the operator's for the two that it lacks."""
    usage = token_usage(1_000_000, 1_000_000)
    assert nanos("anthropic", "claude-opus-4-8", usage, speed="fast") == 60 * 100 * CENT
    assert nanos("anthropic", "claude-opus-4-8", usage, speed="standard") == 30 * 100 * CENT
    assert nanos("anthropic", "claude-opus-4-8", usage, speed="fast", inference_geo="us") == 66 * 100 * CENT
    assert nanos("anthropic", "claude-opus-4-7", usage, speed="fast") == 180 * 100 * CENT
    assert nanos("anthropic", "claude-opus-4-7", usage, speed="fast", inference_geo="us") == 198 * 100 * CENT


@pytest.mark.parametrize(
    ("model", "facts", "tenths_of_a_cent"),
    [
        ("dall-e-2", {}, 20),
        ("dall-e-2", {"size": "512x512"}, 18),
        ("dall-e-2", {"size": "256x256"}, 16),
        ("dall-e-3", {}, 40),
        ("dall-e-3", {"size": "1024x1024", "quality": "standard"}, 40),
        ("dall-e-3", {"size": "1792x1024"}, 80),
        ("dall-e-3", {"quality": "hd"}, 80),
        ("dall-e-3", {"size": "1024x1792", "quality": "hd"}, 120),
    ],
)
def test_a_picture_costs_what_its_size_and_quality_cost(model: str, facts: dict[str, str], tenths_of_a_cent: int) -> None:
    """B1: the answer names neither, so the request's count; the hold is as large as the charge."""
    call = inspect("/v1/images/generations", {"model": model, "prompt": "x", "n": 2, **facts})
    assert call.facts == facts_of(facts)
    reading = read(call, {"created": 1, "data": [{"url": "a"}, {"url": "b"}]})
    assert reading.usage == Usage({"images": 2})
    assert nanos("openai", model, reading.usage, **facts) == 2 * tenths_of_a_cent * CENT // 10


@pytest.mark.parametrize("tier", [None, "default", "flex", "priority", "batch"])
def test_the_tiers_of_openai_have_their_own_prices(tier: str | None) -> None:
    """B5: half for flex and batch, more for priority."""
    usage = token_usage(100_000, 0)
    usual, found = nanos("openai", "gpt-5.4", usage), nanos("openai", "gpt-5.4", usage, tier)
    assert {None: found == usual, "default": found == usual, "flex": found * 2 == usual, "batch": found * 2 == usual}.get(
        tier, found > usual
    )


def test_a_prompt_above_200k_is_priced_whole_by_its_bracket() -> None:
    """Gemini Pro, whole request: $1.25 and $10 a million below, $2.50 and $15 above."""
    below, above = token_usage(200_000, 1_000), token_usage(200_001, 1_000)
    assert nanos("google", "gemini-2.5-pro", below) == 200_000 * 1_250 + 1_000 * 10_000
    assert nanos("google", "gemini-2.5-pro", above) == 200_001 * 2_500 + 1_000 * 15_000


def test_deepseeks_hours_and_dated_prices_follow_the_moment() -> None:
    """The same call at another moment: a price with a start date holds from that day on."""
    model = "gpt-5.6-sol"
    before, after = (
        BOOK.cost_of("openai", model, token_usage(10**6, 10**6), at=at)
        for at in (datetime(2026, 8, 20, 23, tzinfo=UTC), datetime(2026, 8, 21, 1, tzinfo=UTC))
    )
    assert before is not None and after is not None and before.nanos != after.nanos


@pytest.mark.parametrize(
    ("path", "body", "answer", "seconds", "facts"),
    [
        (
            "/v1/videos",
            {"model": "sora-2", "seconds": "8", "size": "720x1280"},
            {"seconds": "8", "size": "720x1280"},
            8,
            "720x1280",
        ),
        ("/v1/videos", {"model": "sora-2"}, {"seconds": "4", "size": "720x1280"}, 4, "720x1280"),
        (
            "/v1/videos/video_1/remix",
            {"prompt": "x"},
            {"model": "sora-2-pro", "seconds": "12", "size": "1024x1792"},
            12,
            "1024x1792",
        ),
    ],
)
def test_a_video_is_billed_when_it_is_ordered(path: str, body: Any, answer: Any, seconds: int, facts: str) -> None:
    """B7: reading or dropping the job later changes nothing; the hold covers the longest it can be."""
    call = inspect(path, body)
    assert call.api == "videos" and call.billable and call.ceiling.count("video_seconds") >= seconds
    reading = read(call, {"id": "video_1", "object": "video", "status": "queued", **answer})
    assert (reading.usage, reading.provenance) == (Usage({"video_seconds": seconds}), Provenance.PROVIDER_FINAL)
    assert dict(reading.facts)["size"] == facts
    assert not inspect("/v1/videos/video_1", None, method="GET").billable


def test_a_video_of_veo_is_counted_by_its_request() -> None:
    """B7: its answer is the name of an operation."""
    path = "/v1beta/models/veo-3.1-generate-preview:predictLongRunning"
    call = inspect(
        path, {"instances": [{"prompt": "x"}], "parameters": {"durationSeconds": 6, "sampleCount": 2, "resolution": "4k"}}
    )
    assert (call.api, call.model, call.facts) == ("videos", "veo-3.1-generate-preview", (("resolution", "4k"),))
    reading = read(call, {"name": "models/veo/operations/1"})
    assert reading.usage == Usage({"video_seconds": 12}) and reading.provenance is Provenance.ESTIMATED
    assert inspect(path, {"instances": [{"prompt": "x"}]}).asked == Usage({"video_seconds": 8})


def test_videos_cost_their_seconds() -> None:
    usage = Usage({"video_seconds": 8})
    assert nanos("openai", "sora-2", usage) == 80 * CENT
    assert nanos("openai", "sora-2-pro", usage, size="1792x1024") == 400 * CENT
    assert nanos("google", "veo-3.1-fast-generate-preview", usage) == 120 * CENT
    assert nanos("google", "veo-3.1-generate-preview", usage, resolution="4k") == 480 * CENT


@pytest.mark.parametrize("unit", ["web_search_calls", "file_search_calls", "code_interpreter_calls", "google_search_queries"])
def test_a_tool_without_a_rate_makes_the_cost_too_low_and_says_so(unit: str) -> None:
    """B6: surcharges are never dropped silently."""
    price = BOOK.price_for("openai", "gpt-3.5-turbo", at=AT)
    assert price is not None
    assert not cost(price, token_usage(10, 5)).uncovered
    assert cost(price, Usage({**token_usage(10, 5).units, unit: 1})).uncovered


def test_what_anthropic_says_of_place_and_speed_reaches_the_reading() -> None:
    call = inspect("/v1/messages", {"model": "claude-opus-4-8", "max_tokens": 5, "messages": [], "speed": "fast"})
    assert call.facts == (("speed", "fast"),)
    usage = {"input_tokens": 5, "output_tokens": 6, "inference_geo": "us", "speed": "standard"}
    reading = read(call, {"type": "message", "id": "m", "model": "claude-opus-4-8", "usage": usage})
    assert facts_of(call.facts, reading.facts) == (("inference_geo", "us"),)  # it ran at standard speed after all


def test_facts_travel_as_one_text_and_strange_ones_are_left_out() -> None:
    facts = facts_of({"size": "1024X1792", "quality": "hd;x=1", "speed": "fast", "n": 3, "inference_geo": "x" * 99})
    assert facts == (("size", "1024x1792"), ("speed", "fast"))
    assert tier_with("flex", facts) == "flex;size=1024x1792;speed=fast"
    assert tier_and_facts("flex;size=1024x1792;speed=fast") == ("flex", facts)
    assert tier_and_facts(tier_with(None, facts)) == (None, facts)
    assert tier_with("flex", ()) == "flex" and tier_and_facts(None) == (None, ())


def test_a_scaled_price_scales_its_brackets_too() -> None:
    price = BOOK.price_for("google", "gemini-2.5-pro", at=AT)
    assert price is not None
    usage = token_usage(300_000, 1_000)
    assert cost(scaled(price, Fraction("1.1")), usage).numerator * 10 == cost(price, usage).numerator * 11


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"times": "0", "input": None}, "times"),
        ({"times": "x", "input": None}, "times"),
        ({"times": 2, "input": None}, "times"),
        ({"times": "1.1"}, "no rates stand beside it"),
        ({"when": {"size": 3}}, "when"),
        ({"when": "us"}, "when"),
        ({"input": None}, "gives no rate"),
    ],
)
def test_a_wrong_stanza_is_refused_with_its_name(change: dict[str, Any], says: str) -> None:
    """B8."""
    table = {"provider": "p", "model": "m", "source": "s", "date": "2026-11-23", "input": "1", **change}
    with pytest.raises(ValueError, match=says):
        load_price_book([{key: value for key, value in table.items() if value is not None}])


@pytest.mark.parametrize(
    ("provider", "model", "tier", "percent"),
    [
        ("google", "gemini-2.5-flash", "flex", 50),
        ("google", "gemini-3.8-flash", "priority", 180),
        ("google", "gemini-3.8-flash-tts", "flex", 50),  # the bundled table's own: not halved twice
        ("google", "gemini-3.8-flash-tts", "priority", 180),
        ("google", "gemini-2.5-flash", "ON_DEMAND", 100),
        ("aws", "us.amazon.nova-2-lite-v1:0", "flex", 50),
        ("aws", "openai.gpt-oss-120b-1:0", "priority", 175),
        ("aws", "openai.gpt-oss-120b-1:0", "default", 100),
    ],
)
def test_a_tier_is_multiplied_where_the_table_has_one_price(provider: str, model: str, tier: str, percent: int) -> None:
    """B5: what the response says that it was given."""
    usage = token_usage(1_000_000, 100_000)
    assert nanos(provider, model, usage, tier) * 100 == nanos(provider, model, usage) * percent


def test_audio_from_the_cache_is_told_apart_from_audio_that_is_read_anew() -> None:
    """A4, A10: Gemini says how much of each kind came from the cache; a row does not show it, a price asks for it."""
    metadata = {
        "promptTokenCount": 20_000,
        "candidatesTokenCount": 0,
        "totalTokenCount": 20_000,
        "cachedContentTokenCount": 10_000,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 10_000}, {"modality": "AUDIO", "tokenCount": 10_000}],
        "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 10_000}],
    }
    call = inspect("/v1beta/models/gemini-2.5-flash:generateContent", {"contents": []})
    reading = read(call, {"candidates": [], "usageMetadata": metadata, "modelVersion": "gemini-2.5-flash"})
    assert reading.usage is not None and "cached_input_audio_tokens" not in reading.usage.units
    # $0.30 a million for text, $0.10 for audio from the cache ($1.00 when it is read anew)
    assert nanos("google", "gemini-2.5-flash", reading.usage) == 10_000 * 300 + 10_000 * 100
    without = Usage(reading.usage.units)
    assert nanos("google", "gemini-2.5-flash", without) == 10_000 * 1_000 + 10_000 * 30


def test_what_an_images_api_generates_is_priced_as_images_also_where_it_does_not_say_so() -> None:
    """B5: gpt-image-1.5 costs $32 a million for images and $10 for text."""
    told = token_usage(0, 1_000, images=1, output_image_tokens=1_000)
    assert nanos("openai", "gpt-image-1.5", told) == 1_000 * 32_000
    assert nanos("openai", "gpt-image-1.5", token_usage(0, 1_000, images=1)) == 1_000 * 32_000
    partly = token_usage(0, 1_000, images=1, output_image_tokens=600)
    assert nanos("openai", "gpt-image-1.5", partly) == 600 * 32_000 + 400 * 10_000


@pytest.mark.parametrize(
    ("location", "model", "percent"),
    [
        ("global", "claude-sonnet-4-5@20250929", 100),
        ("us-east5", "claude-sonnet-4-5@20250929", 110),
        ("eu", "claude-haiku-4-5@20251001", 110),
        ("us-east5", "claude-3-7-sonnet@20250219", 100),
    ],
)
def test_a_region_of_vertex_costs_a_tenth_more_since_sonnet_45(location: str, model: str, percent: int) -> None:
    """B5: the URL says where, and nothing in the answer does."""
    path = f"/v1/projects/p/locations/{location}/publishers/anthropic/models/{model}:rawPredict"
    call = inspect(path, {"messages": [], "max_tokens": 5})
    usage = token_usage(10_000, 1_000)
    assert nanos("google", model, usage, **dict(call.facts)) * 100 == nanos("google", model, usage) * percent
    assert not inspect(path.replace("anthropic", "google").replace("rawPredict", "generateContent"), {"contents": []}).facts


def test_a_global_profile_of_bedrock_is_not_priced_as_a_regional_one() -> None:
    """B6: also through invoke, whose bodies name the model without its region."""
    body = {
        "type": "message",
        "id": "m",
        "model": "claude-haiku-4-5-20251001",
        "usage": {"input_tokens": 10_000, "output_tokens": 0},
    }
    costs = []
    for profile in ("global", "us"):
        call = inspect(f"/model/{profile}.anthropic.claude-haiku-4-5-20251001-v1:0/invoke", {"messages": []})
        reading = read(call, body)
        assert reading.usage is not None and call.model is not None
        costs.append(nanos("aws", reading.model or call.model, reading.usage))
    assert costs == [10_000 * 1_000, 10_000 * 1_100]


def test_what_a_responses_tools_used_is_priced_as_far_as_it_is_told() -> None:
    """B6: the image tool's tokens at its model's rate, and the searches that are billed; a row shows the calls."""
    call = inspect("/v1/responses", {"model": "gpt-5.4", "input": "x"})
    output = [
        {"type": "image_generation_call", "id": "1", "result": "QUJD"},
        {"type": "web_search_call", "id": "2", "action": {"type": "search"}},
    ]
    drawn = {
        "input_tokens": 50,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 50},
        "output_tokens": 1_000,
        "total_tokens": 1_050,
    }
    answer = {
        "id": "resp_1",
        "status": "completed",
        "model": "gpt-5.4",
        "output": output,
        "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
        "tools": [{"type": "image_generation", "model": "gpt-image-1.5"}],
        "tool_usage": {"image_gen": drawn, "web_search": {"num_requests": 3}},
    }
    reading = read(call, answer)
    assert reading.usage is not None and reading.unseen == ()
    assert reading.usage == token_usage(0, 0, image_generation_calls=1, web_search_calls=1)
    assert nanos("openai", "gpt-5.4", reading.usage) == 50 * 5_000 + 1_000 * 32_000 + 3 * CENT
    free = read(call, {**answer, "tool_usage": {"image_gen": drawn, "web_search": {"num_requests": 0}}})
    assert free.usage is not None and nanos("openai", "gpt-5.4", free.usage) == 50 * 5_000 + 1_000 * 32_000
    untold = read(call, {name: value for name, value in answer.items() if name != "tool_usage"})
    assert untold.usage is not None and untold.unseen == ("image_generation",)
    assert nanos("openai", "gpt-5.4", untold.usage) == CENT
