"""The values of the hosted checkout: origins, phones, brands, and who a request is from."""

from __future__ import annotations

import base64

import pytest

from lava_proxy.domain.branding import Branding, contrast, theme_on
from lava_proxy.domain.checkout import masked_phone, origin_of
from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.phones import parse_phone, region_of
from lava_proxy.wire.public_address import base_url, client_address


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://App.Example.com/pricing?a=1#b", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://localhost:3000/", "http://localhost:3000"),
        ("http://[::1]:8080/x", "http://[::1]:8080"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
    ],
)
def test_an_origin_is_scheme_host_and_unusual_port(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "", "app.example.com", "javascript:alert(1)", "data:text/html,x",
        "https://", "https://*", "https://*.example.com",
        "https://user@example.com", "https://example.com:0", "https://example.com:70000", "https://a.example; script-src *",
        "https://a.example,https://b.example", "https://exämple.com", "https://a\\@b.example", "ftp://a.example",
        "https://a b.example",
        "https://'none'", "https://[::1", "//a.example", "https://" + "a" * 3000 + ".example",
    ],
)  # fmt: skip
def test_what_could_widen_a_policy_is_no_origin(url: str) -> None:
    with pytest.raises(ValueError, match="accepted is"):
        origin_of(url)


def test_phones_are_read_as_people_type_them() -> None:
    assert parse_phone("(415) 555-0100", "US") == "+14155550100"
    assert parse_phone("030 901820", "DE") == "+4930901820"
    assert parse_phone("+49 30 901820", "US") == "+4930901820"
    for text in ("", "12", "+1", "call me", "+1 415 555 0100 ext 5", "1" * 41, "\x00"):
        with pytest.raises(ValueError, match="country code"):
            parse_phone(text)
    assert masked_phone("+14155550123") == "•••• 23"
    assert [region_of(text) for text in ("de-DE,de;q=0.9", "en", "", "fr_CA", "zh-Hant-TW", "x-🙂")] == [
        "DE", "US", "US", "CA", "TW", "US",
    ]  # fmt: skip


@pytest.mark.parametrize("colour", ["#ffffff", "#000000", "#ffe600", "#1d4ed8", "#777777", "#00ff00", "#3b0764", None])
@pytest.mark.parametrize("dark", [False, True])
def test_any_brand_colour_can_be_read(colour: str | None, dark: bool) -> None:
    """4.5 to 1, on buttons and as links, on light and on dark ground."""
    theme = theme_on(colour, dark=dark)

    def rgb(text: str) -> tuple[int, int, int]:
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)

    assert contrast(rgb(theme.accent), rgb(theme.on_accent)) >= 4.5
    assert contrast(rgb(theme.link), (20, 23, 28) if dark else (255, 255, 255)) >= 4.5


def test_a_brand_is_refused_with_everything_that_is_wrong() -> None:
    with pytest.raises(CallerError) as refused:
        Branding(name=" ", logo="https://x/y.png", colour="red", support_email="a b")
    for field in ("name:", "logo:", "colour:", "support_email:"):
        assert field in refused.value.message
    pictures = {
        "png": b"\x89PNG\r\n\x1a\n1", "webp": b"RIFF1234WEBPVP8 ", "svg+xml": b"<svg onload=alert(1)>", "gif": b"GIF89a",
    }  # fmt: skip
    for kind, content in pictures.items():
        logo = f"data:image/{kind};base64," + base64.b64encode(content).decode()
        if kind in ("png", "webp"):
            assert Branding(name="A", logo=logo).logo == logo
        else:
            with pytest.raises(CallerError):
                Branding(name="A", logo=logo)
    for content in (b"\x89PNG\r\n\x1a\n" + bytes(65_536), b"<script>"):
        with pytest.raises(CallerError):
            Branding(name="A", logo="data:image/png;base64," + base64.b64encode(content).decode())


def test_who_asks_is_the_peer_or_what_a_private_proxy_says() -> None:
    assert client_address({"X-Lava-Peer": "203.0.113.9", "X-Forwarded-For": "198.51.100.1"}) == "203.0.113.9"
    assert client_address({"X-Lava-Peer": "10.0.0.2", "X-Forwarded-For": "1.1.1.1, 198.51.100.1"}) == "198.51.100.1"
    assert client_address({"X-Lava-Peer": "127.0.0.1"}) == "127.0.0.1" and client_address({}) == ""
    assert base_url({"X-Forwarded-Proto": "https"}, "pay.example", None) == "https://pay.example/"
    assert base_url({}, "127.0.0.1:8080", None) == "http://127.0.0.1:8080/"
    assert base_url({}, "inside", "https://pay.example/") == "https://pay.example/"
