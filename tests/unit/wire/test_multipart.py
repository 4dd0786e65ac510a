"""Forms: the fields and the files of multipart/form-data."""

from __future__ import annotations

import pytest

from lava_proxy.wire.multipart import FIELD_BYTES_MAX, form_parts

TYPE = 'multipart/form-data; boundary="b 1"'
BODY = (
    b'preamble\r\n--b 1\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
    b"--b 1\r\ncontent-disposition: form-data; name=n\r\nContent-Type: text/plain\r\n\r\n2\r\n"
    b'--b 1\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    b"RIFF\r\n--b \x00\r\n\r\n--b 1--\r\n"
)


def test_fields_and_files_are_told_apart() -> None:
    fields, files = form_parts(TYPE, BODY)
    assert fields == {"model": "whisper-1", "n": "2"}
    assert [(name, bytes(file)) for name, file in files] == [("file", b"RIFF\r\n--b \x00\r\n")]


def test_a_long_field_is_a_file() -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"z" * (FIELD_BYTES_MAX + 1) + b"\r\n--x--"
    fields, files = form_parts("multipart/form-data; boundary=x", body)
    assert not fields
    assert len(files[0][1]) == FIELD_BYTES_MAX + 1


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=other"])
def test_what_is_no_form_has_no_parts(content_type: str) -> None:
    assert form_parts(content_type, BODY) == ({}, [])


def test_a_cut_form_gives_what_is_readable_and_never_raises() -> None:
    for end in range(len(BODY)):
        fields, files = form_parts(TYPE, BODY[:end])
        assert set(fields) <= {"model", "n"} and len(files) <= 1
