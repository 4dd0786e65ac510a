"""Usage for a call whose response did not say it: broken off, or never told."""

from __future__ import annotations

import json

from lava_proxy.domain.usage import Provenance, Reading, Usage, token_usage
from lava_proxy.providers.base import Call, Provider
from lava_proxy.providers.ceilings import EMBEDDING_APIS, likely_input_tokens
from lava_proxy.providers.prompt_text import prompt_tokens
from lava_proxy.providers.token_families import TokenFamily, Vocabulary, token_family
from lava_proxy.providers.tokenizer import count_tokens
from lava_proxy.providers.usage_reader import escaped_text_bytes

TEXT_BYTES_PER_TOKEN = 4
"""Of generated text that no tokenizer has seen: English averages 4 to 4.5 bytes a token in OpenAI's o200k vocabulary."""

_BROKEN_ESCAPE_BYTES = 12  # of a sample's end: a surrogate pair that was cut


def estimate(provider: Provider, call: Call, reading: Reading, *, quick: bool = False) -> Usage:
    """The best guess at what a call used, in the call's own units. At least what the provider reported so far.

    Where it reported nothing: the request's own quantities (characters to speak, seconds of audio, images), or for text
    the text of the prompt. Text is counted in the vocabulary of the model's family, times how much more its own tokenizer makes of
    it (`quick`: at four bytes a token, for looks at a running stream); hidden reasoning cannot be seen in it.
    """
    family = token_family(reading.model or call.model, provider.output_factor_percent)
    tokens, per = _generated_tokens(reading, family.vocabulary, quick)
    text_tokens = -(-tokens * family.percent // (per * 100))
    reported = reading.usage
    if reported is None or reading.provenance is Provenance.NONE:
        reported = call.asked if call.asked.units else token_usage(_prompt_tokens(call, family, quick), text_tokens)
    if "output_tokens" not in reported.units:
        return reported
    return Usage({**reported.units, "output_tokens": max(reported.output_tokens, text_tokens)})


def _prompt_tokens(call: Call, family: TokenFamily, quick: bool) -> int:
    return likely_input_tokens(call.body) if quick else prompt_tokens(call.body, family, is_framed=call.api not in EMBEDDING_APIS)


def _generated_tokens(reading: Reading, vocabulary: Vocabulary, quick: bool) -> tuple[int, int]:
    """The vocabulary's tokens of the generated text, as a fraction: its beginning counted, the rest taken to be like it."""
    total = reading.output_text_bytes
    counted = None if quick or not reading.output_text_sample else count_tokens(unescaped(reading.output_text_sample), vocabulary)
    if counted is None:
        return total, TEXT_BYTES_PER_TOKEN
    sampled = escaped_text_bytes(reading.output_text_sample)
    return (counted * total, sampled) if 0 < sampled < total else (counted, 1)


def unescaped(sample: bytes) -> str:
    """The text that stands between JSON's quotes; a broken escape at its end is left out, and no escape is fatal."""
    text = sample.decode("utf-8", "ignore")
    if "\\" not in text:
        return text
    for cut in range(_BROKEN_ESCAPE_BYTES):
        try:
            return str(json.loads(f'"{text[: len(text) - cut]}"', strict=False))
        except ValueError:
            continue
    return text
