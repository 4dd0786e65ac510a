"""What the meters of WebSocket sessions share: counts by model that only grow, and a guess at what was never reported.

A session is one row. Usage that was reported is the provider's last word on that part. What was being generated and is not
reported yet (or never will be: a break, a message too large to read) is estimated from what was relayed, and then the whole
reading is partial, which makes its row `estimated`.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from lava_proxy.domain.usage import TOKEN_KEYS, Provenance, Reading, Usage
from lava_proxy.providers.estimate import TEXT_BYTES_PER_TOKEN

MODELS_MAX = 16
"""Of one session; what further ones use is counted as the session's own model's."""

Counts = dict[str, int | Decimal]


class SessionMeter:
    """Reads a copy of the provider's messages. Never raises on strange bytes; bounded memory.

    `reports` grows with each usage that the provider reports: a good moment to look at the money. `model` is the model of the
    session as last named; the first one named is the row's, others stand under `other_models`.
    """

    def __init__(self, model: str | None) -> None:
        self.reports = 0
        self.model: str | None = None
        self._asked_model = model
        self._main: str | None = None  # the first model that the session named
        self._counts: dict[str, Counts] = {}
        self._session_id: str | None = None
        self._is_partial = False
        self._elapsed_us: int | None = None

    def feed(self, data: bytes) -> None:
        """One whole message of the provider."""
        raise NotImplementedError

    def skipped(self, beginning: bytes) -> None:
        """A message of the provider that was too large to keep; its first bytes."""
        raise NotImplementedError

    def lost(self) -> None:
        """The frames cannot be followed any more: what comes is not known."""
        self._is_partial = True

    def lasted(self, elapsed_us: int) -> None:
        """How long the session has been open, for models and meters that charge by the time connected."""
        self._elapsed_us = elapsed_us

    def reading(self) -> Reading:
        """All of the session so far."""
        main = self._main or self._asked_model or ""
        running = self._running()
        counts = {**dict.fromkeys(TOKEN_KEYS, 0), **self._counts.get(main, {})}
        for part in (self._pending(), running or {}):
            for unit, amount in part.items():
                counts[unit] = counts.get(unit, 0) + amount
        if self._elapsed_us is not None and "audio_seconds" not in counts:
            counts["audio_seconds"] = Decimal(self._elapsed_us).scaleb(-6)
        others = {model: dict(used) for model, used in self._counts.items() if model != main}
        return Reading(
            usage=Usage({**counts, "other_models": others} if others else counts),
            provenance=Provenance.PROVIDER_PARTIAL if self._is_partial or running else Provenance.PROVIDER_FINAL,
            model=self._main,
            response_id=self._session_id,
            terminal=True,
        )

    def _pending(self) -> Mapping[str, int]:
        """Reported, but not summed yet because it may be told again."""
        return {}

    def _running(self) -> Mapping[str, int] | None:
        """An estimate of what is being generated and not reported yet; None when there is no such thing."""
        raise NotImplementedError

    def _name(self, model: object, session_id: object = None) -> None:
        if isinstance(model, str) and model:
            self.model = model[:256]
            if self._main is None:
                # What was counted before it had a name was counted for the model that was asked for.
                self._main = self.model
                if self._asked_model is not None and self._asked_model in self._counts:
                    self._counts[self._main] = self._counts.pop(self._asked_model)
        if self._session_id is None and isinstance(session_id, str) and session_id:
            self._session_id = session_id[:256]

    def _add(self, model: str | None, usage: Mapping[str, int | Decimal]) -> None:
        """Count a part of the session for a model; None is the session's present one."""
        name = model or self.model or self._asked_model or ""
        if name not in self._counts and len(self._counts) >= MODELS_MAX:
            name = self._main or self._asked_model or ""
        counts = self._counts.setdefault(name, {})
        for unit, amount in usage.items():
            counts[unit] = counts.get(unit, 0) + amount


class Generated:
    """Bytes of one answer as they are relayed."""

    __slots__ = ("audio_bytes", "text_bytes")

    def __init__(self) -> None:
        self.text_bytes = 0
        self.audio_bytes = 0

    def tokens(self, audio_bytes_per_token: int) -> dict[str, int]:
        """About how many tokens they are."""
        audio = -(-self.audio_bytes // audio_bytes_per_token)
        text = -(-self.text_bytes // TEXT_BYTES_PER_TOKEN)
        return {"output_tokens": audio + text, **({"output_audio_tokens": audio} if audio else {})}


def base64_bytes(length: int) -> int:
    """How many bytes a base64 text of that length holds, padding not looked at."""
    return length * 3 // 4
