"""The family of hosts whose usage is not read: bodies pass untouched both ways, and nothing is refused."""

from __future__ import annotations

from collections.abc import Sequence

from lava_proxy.providers.base import Call, Meter, Provider, Relay
from lava_proxy.providers.body_meter import FixedMeter
from lava_proxy.wire import json_scan

_MODEL_BYTES_MAX = 256


class Passthrough:
    """Knows a JSON body's `model` and `stream` when they are there, and no usage."""

    def inspect(self, provider: Provider, method: str, path: str, query: str, content_type: str, body: bytes) -> Call:
        """Never raises."""
        document = json_scan.loads(body) if "json" in content_type and body[:1] == b"{" else None
        model = stream = None
        if isinstance(document, dict):
            model, stream = document.get("model"), document.get("stream")
        return Call(
            api="other",
            model=model[:_MODEL_BYTES_MAX] if isinstance(model, str) and model else None,
            stream=stream is True,
            body=body,
        )

    def meter(
        self,
        provider: Provider,
        call: Call,
        status: int,
        content_type: str,
        content_encoding: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> Meter:
        """Reads nothing: usage None, provenance none."""
        return FixedMeter()

    def relay(self, call: Call) -> Relay | None:
        """None: bytes pass untouched."""
        return None
