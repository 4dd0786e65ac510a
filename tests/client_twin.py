"""Makes lava_proxy/client/sync_client.py from async_client.py: `python -m tests.client_twin`."""

from __future__ import annotations

import re
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[1] / "lava_proxy" / "client"
_WORDS = (
    (r"\basync (def|with|for) ", r"\1 "),
    (r"\bawait ", ""),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\bAsyncLavaClient\b", "LavaClient"),
    (r"\bhttpx\.AsyncClient\b", "httpx.Client"),
    (r"\b__aenter__\b", "__enter__"),
    (r"\b__aexit__\b", "__exit__"),
    (r"\baclose\b", "close"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"import asyncio\n", ""),
    (r"for item in (page\[\"data\"\]):\n\s+yield item", r"yield from \1"),
    (r"import random\n", "import random\nimport time\n"),
)
_HEAD = '"""The client for programs without asyncio. Made from async_client.py by tests/client_twin.py; do not change it here."""\n'


def sync_text() -> str:
    """What sync_client.py must be, before it is formatted."""
    text = (CLIENT / "async_client.py").read_text()
    for pattern, replacement in _WORDS:
        text = re.sub(pattern, replacement, text)
    return f"{_HEAD}\n{text[text.index('from __future__') :]}"


if __name__ == "__main__":
    (CLIENT / "sync_client.py").write_text(sync_text())
