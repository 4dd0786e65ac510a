"""How a merchant's hosted pages look: name, logo and one colour, which is made readable on light and on dark."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from lava_proxy.domain.errors import CallerError

LOGO_BYTES_MAX = 65_536
NAME_CHARS_MAX = 60
DEFAULT_COLOUR = "#1d4ed8"
_CONTRAST_MIN = 4.5  # WCAG 2.2, 1.4.3: text
_LIGHT, _DARK = (255, 255, 255), (20, 23, 28)  # the pages' own grounds, as checkout.css has them
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_EMAIL = re.compile(r"[^@\s<>\"]+@[^@\s<>\"]+")
_LOGO = re.compile(r"data:image/(png|webp);base64,([A-Za-z0-9+/=]+)")

Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Branding:
    """What a merchant's pages show. `logo`: a data URL. Raises CallerError naming everything that is not accepted."""

    name: str
    logo: str | None = None
    colour: str | None = None
    support_email: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if not self.name.strip() or len(self.name) > NAME_CHARS_MAX or not self.name.isprintable():
            problems.append(f"name: accepted are 1 to {NAME_CHARS_MAX} printable characters.")
        if self.logo is not None and not is_logo(self.logo):
            problems.append(f"logo: accepted is a PNG or WebP picture of at most {LOGO_BYTES_MAX} bytes as a data: URL.")
        if self.colour is not None and not _COLOUR.fullmatch(self.colour):
            problems.append("colour: accepted is a colour such as #1d4ed8.")
        mail = self.support_email
        if mail is not None and not (
            0 < len(mail) <= 254 and mail.isprintable() and re.fullmatch(r"[^@\s<>\"]+@[^@\s<>\"]+", mail)
        ):
            problems.append("support_email: accepted is an address such as help@example.com.")
        if problems:
            raise CallerError(" ".join(problems), code="invalid_parameter")


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours for one ground: of buttons, of the text on them, and of links and marks on the ground itself."""

    accent: str
    on_accent: str
    link: str


def is_logo(text: str) -> bool:
    """Is this a data URL of a small picture that is what it says?"""
    found = _LOGO.fullmatch(text) if len(text) <= 2 * LOGO_BYTES_MAX else None
    if found is None:
        return False
    try:
        content = base64.b64decode(found.group(2), validate=True)
    except binascii.Error:
        return False
    is_png = content.startswith(b"\x89PNG\r\n\x1a\n")
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return len(content) <= LOGO_BYTES_MAX and (is_png if found.group(1) == "png" else is_webp)


def theme_on(colour: str | None, *, dark: bool) -> Theme:
    """A merchant's colour on a light or dark ground, moved towards black or white only as far as reading needs."""
    accent = _parsed(colour or DEFAULT_COLOUR)
    ground = _DARK if dark else _LIGHT
    link = _readable(accent, ground)
    white, black = (255, 255, 255), (0, 0, 0)
    on_accent = white if contrast(accent, white) >= _CONTRAST_MIN else black
    return Theme(accent=_text(accent), on_accent=_text(on_accent), link=_text(link))


def contrast_of(one: str, other: str) -> str:
    """The contrast ratio of two colours such as #1d4ed8, to read: one decimal place, cut off."""
    ratio = str(contrast(_parsed(one), _parsed(other)))
    whole, _, decimals = ratio.partition(".")
    return f"{whole}.{decimals[:1] or '0'}"


def contrast(one: Rgb, other: Rgb) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _readable(colour: Rgb, ground: Rgb) -> Rgb:
    aim = (255, 255, 255) if _luminance(ground) < 0.5 else (0, 0, 0)
    for step in range(21):
        moved = tuple(round(have + (want - have) * step / 20) for have, want in zip(colour, aim, strict=True))
        if contrast((moved[0], moved[1], moved[2]), ground) >= _CONTRAST_MIN:
            return moved[0], moved[1], moved[2]
    return aim


def _luminance(colour: Rgb) -> float:
    red, green, blue = (
        (part / 12.92) if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in colour)
    )
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)


def _parsed(colour: str) -> Rgb:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _text(colour: Rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
