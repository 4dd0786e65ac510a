"""A request with a lower output limit, changed in as few bytes as can be and read again to be sure. Pure."""

from __future__ import annotations

import re
from dataclasses import replace

from lava_proxy.domain.usage import Usage
from lava_proxy.providers.base import Call
from lava_proxy.providers.usage_reader import mapping
from lava_proxy.wire import json_scan

_FIELDS = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
    "generateContent": ("maxOutputTokens",),
    "streamGenerateContent": ("maxOutputTokens",),
}
_CONFIG = {"generateContent": "generationConfig", "streamGenerateContent": "generationConfig"}
_ADDED = {"chat": "max_completion_tokens", "responses": "max_output_tokens"}  # where a call without a limit can be given one
_MATCHES_MAX = 8  # places where the field's name and number may stand (a prompt can quote them)


def lowest_limit(call: Call) -> int:
    """The least output limit that this call can be given without being refused by its provider; 0: it cannot be given any."""
    document = json_scan.loads(call.body) if call.api in _FIELDS else None
    if not isinstance(document, dict):
        return 0
    budget = mapping(document.get("thinking")).get("budget_tokens")  # Anthropic: below max_tokens
    return budget + 1 if isinstance(budget, int) and budget > 0 else 1


def with_limit(call: Call, limit: int) -> Call | None:
    """The call with this output limit; None when it has no such field, has several, or asks for several answers."""
    document = json_scan.loads(call.body)
    if call.api not in _FIELDS or not isinstance(document, dict):
        return None
    config_name = _CONFIG.get(call.api)
    holder = document if config_name is None else mapping(document.get(config_name))
    present = [name for name in _FIELDS[call.api] if holder.get(name) is not None]
    total = call.ceiling.output_tokens
    if len(present) == 1 and holder[present[0]] == total:
        name = present[0]
        intended = {**holder, name: limit}
        wanted = intended if config_name is None else {**document, config_name: intended}
        body = _replaced(call.body, name, total, limit, wanted)
    elif not present and call.api in _ADDED and document.get("n") in (None, 1):
        name = _ADDED[call.api]
        brace = call.body.index(b"{") + 1
        body = call.body[:brace] + b'"%b":%d,' % (name.encode(), limit) + call.body[brace:]
        body = body if json_scan.loads(body) == {**document, name: limit} else None
    else:
        return None
    if body is None:
        return None
    return replace(call, body=body, ceiling=Usage({**call.ceiling.units, "output_tokens": limit}), open_ended=False)


def _replaced(body: bytes, name: str, old: int, new: int, wanted: object) -> bytes | None:
    pattern = re.compile(rb'"%b"\s*:\s*(%d)(?![\d.eE])' % (name.encode(), old))
    for number, match in enumerate(pattern.finditer(body)):
        if number == _MATCHES_MAX:
            return None
        changed = body[: match.start(1)] + b"%d" % new + body[match.end(1) :]
        if json_scan.loads(changed) == wanted:
            return changed
    return None
