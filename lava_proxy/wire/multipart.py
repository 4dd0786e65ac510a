"""multipart/form-data, as much of it as a meter needs: the small fields and where the files are (RFC 7578)."""

from __future__ import annotations

import re

FIELD_BYTES_MAX = 64 << 10
"""A field above this is a file by another name; a transcription prompt is a few hundred bytes."""

PARTS_MAX = 256

_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,200})"|([^;,\s]{1,200}))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name="?([^";\r\n]{0,100})', re.IGNORECASE)
_FILE_NAME = re.compile(rb"[;\s]filename\*?=", re.IGNORECASE)


def form_parts(content_type: str, body: bytes) -> tuple[dict[str, str], list[tuple[str, memoryview]]]:
    """(fields by name, files as (field name, bytes)). Nothing is copied of a file; a malformed body gives what is readable.

    Of a repeated field the last one stands.
    """
    fields: dict[str, str] = {}
    files: list[tuple[str, memoryview]] = []
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        return fields, files
    delimiter = b"--" + (boundary[1] or boundary[2]).encode("utf-8", "replace")
    view = memoryview(body)
    start = body.find(delimiter)
    for _ in range(PARTS_MAX):
        if start < 0:
            break
        start += len(delimiter)
        end = body.find(b"\r\n" + delimiter, start)
        head_end = body.find(b"\r\n\r\n", start, len(body) if end < 0 else end)
        if head_end < 0:
            break
        head, content = body[start:head_end], view[head_end + 4 : len(body) if end < 0 else end]
        name = _NAME.search(head)
        if name is not None:
            text = name[1].decode("utf-8", "replace")
            if _FILE_NAME.search(head) or len(content) > FIELD_BYTES_MAX:
                files.append((text, content))
            else:
                fields[text] = bytes(content).decode("utf-8", "replace")
        start = -1 if end < 0 else end + 2
    return fields, files
