"""AWS Signature Version 4 for one request head: what Bedrock takes from an access key where there is no API key.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
Pure: the moment is an argument.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from hmac import digest
from urllib.parse import quote

SERVICE = "bedrock"
_KEY = re.compile(r"(?P<access_key>A[KS]IA[A-Z0-9]{12,124}):(?P<secret>[A-Za-z0-9/+=]{16,256})(?::(?P<session>[!-~]+))?")
MANTLE_SERVICE = "bedrock-mantle"
"""The OpenAI-compatible endpoint is a service of its own, also to IAM. https://github.com/BerriAI/litellm/issues/31475"""

_REGION = re.compile(r"https?://(?:bedrock[a-z-]*\.([a-z0-9-]+)\.amazonaws\.|bedrock-mantle\.([a-z0-9-]+)\.api\.aws(?:[:/]|$))")
_OURS = frozenset({b"authorization", b"x-amz-date", b"x-amz-content-sha256", b"x-amz-security-token"})


@dataclass(frozen=True, slots=True)
class AccessKey:
    """An AWS access key; with `session` a temporary one."""

    access_key: str
    secret: str = field(repr=False)
    session: str | None = field(default=None, repr=False)


def access_key_of(provider_key: str) -> AccessKey | None:
    """A stored key of the form `AKIA...:SECRET` or `ASIA...:SECRET:SESSION`; None: an API key, sent as Bearer."""
    found = _KEY.fullmatch(provider_key)
    return None if found is None else AccessKey(found["access_key"], found["secret"], found["session"])


def region_of(url: str) -> str | None:
    """The region that a Bedrock URL's host names."""
    found = _REGION.match(url)
    return None if found is None else found[1] or found[2]


def service_of(url: str) -> str:
    """The service that signatures for a Bedrock URL name."""
    found = _REGION.match(url)
    return SERVICE if found is None or found[2] is None else MANTLE_SERVICE


def signed(head: bytes, body: bytes, key: AccessKey, *, region: str, now: datetime, service: str = SERVICE) -> bytes:
    """A request head (from its request line, each line ended, without the blank line) with what AWS wants added.

    `now`: aware, UTC; AWS accepts five minutes' difference. Signed are Host and every x-amz-* header; a signature that
    the head had is taken out.
    """
    request_line, *lines = head.removesuffix(b"\r\n").split(b"\r\n")
    headers = [line.partition(b":") for line in lines]
    kept = [(name, value.strip()) for name, _, value in headers if name.lower() not in _OURS]
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    payload_hash = sha256(body).hexdigest()
    added = [(b"x-amz-date", stamp.encode()), (b"x-amz-content-sha256", payload_hash.encode())]
    if key.session is not None:
        added.append((b"x-amz-security-token", key.session.encode()))
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    canonical, names = _canonical(request_line.decode("ascii"), [*kept, *added], payload_hash)
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256(canonical.encode('latin-1')).hexdigest()}"
    signature = digest(_signing_key(key.secret, stamp[:8], region, service), text.encode(), "sha256").hex()
    authorization = f"AWS4-HMAC-SHA256 Credential={key.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    added.append((b"authorization", authorization.encode()))
    return b"".join([request_line + b"\r\n", *(b"%b: %b\r\n" % pair for pair in (*kept, *added))])


def _signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = digest(key, part.encode(), "sha256")
    return key


def _canonical(request_line: str, headers: list[tuple[bytes, bytes]], payload_hash: str) -> tuple[str, str]:
    """The canonical request, and the names of its headers."""
    method, target, _ = request_line.split(" ")
    path, _, query = target.partition("?")
    found: dict[str, list[str]] = {}
    for name, value in headers:
        lowered = name.decode("latin-1").lower()
        if lowered == "host" or lowered.startswith("x-amz-"):
            found.setdefault(lowered, []).append(" ".join(value.decode("latin-1").split()))
    names = ";".join(sorted(found))
    lines = "".join(f"{name}:{','.join(found[name])}\n" for name in sorted(found))
    return f"{method}\n{_canonical_path(path)}\n{_canonical_query(query)}\n{lines}\n{names}\n{payload_hash}", names


def _canonical_path(path: str) -> str:
    """Dot and empty segments resolved, then encoded once more: services other than S3 want the path as sent, encoded."""
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    end = "/" if path.endswith("/") and segments else ""
    return quote("/" + "/".join(segments) + end, safe="/~")


def _canonical_query(query: str) -> str:
    """Parameters in order of name and value, each with its `=`, empty ones too; encoded as they were sent."""
    if not query:
        return ""
    pairs = sorted((name, value) for name, _, value in (part.partition("=") for part in query.split("&")))
    return "&".join(f"{name}={value}" for name, value in pairs)
