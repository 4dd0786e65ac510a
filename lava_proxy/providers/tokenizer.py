"""Counts tokens in OpenAI's o200k (or cl100k) vocabulary, offline. Used for estimates only: each provider's factor comes on top.

The vocabulary is a compiled one of 25 MB; the first count loads it (0.05 s, 67 MB) and it stays. Most workers never
need it.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

from lava_proxy.providers.token_families import Vocabulary

TEXT_CHARS_MAX = 100_000
"""Of longer texts only the beginning is counted, and the rest taken to be like it: a count is 12 us a kB."""


class _Encoding(Protocol):
    def count(self, text: str) -> int: ...


@cache
def _encoding(vocabulary: Vocabulary) -> _Encoding | None:
    try:
        from rs_bpe import openai
    except ImportError:  # no build for this Python or machine
        return None
    found: _Encoding = openai.cl100k_base() if vocabulary == "cl100k" else openai.o200k_base()
    return found


def count_tokens(text: str, vocabulary: Vocabulary = "o200k") -> int | None:
    """How many tokens of the vocabulary a text is; None where this Python has none."""
    encoding = _encoding(vocabulary)
    if encoding is None:
        return None
    head = text[:TEXT_CHARS_MAX].encode("utf-8", "replace").decode()  # it refuses lone surrogates
    tokens = encoding.count(head)
    return tokens if len(text) <= TEXT_CHARS_MAX else -(-tokens * len(text) // TEXT_CHARS_MAX)
