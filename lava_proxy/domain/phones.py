"""Phone numbers as people type them, in E.164."""

from __future__ import annotations

import phonenumbers

_CHARS_MAX = 40


def parse_phone(text: str, region: str = "US") -> str:
    """The number in E.164; without a country code it is one of `region` (ISO 3166, such as "US"). Raises ValueError.

    Numbers that exist nowhere but could (such as +1 555 0100) are taken: tests and demonstrations use them.
    """
    problem = "accepted is a phone number with its country code, such as +1 415 555 0123"
    if not 0 < len(text) <= _CHARS_MAX or not text.isprintable():
        raise ValueError(problem)
    known = region if region in phonenumbers.SUPPORTED_REGIONS else "US"
    try:
        number = phonenumbers.parse(text, known)
    except phonenumbers.NumberParseException:
        raise ValueError(problem) from None
    if not phonenumbers.is_possible_number(number) or number.extension:
        raise ValueError(problem)
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def region_of(languages: str) -> str:
    """The likeliest country of somebody whose browser sends this Accept-Language: of its first tag that names one, else "US"."""
    for part in languages[:200].split(","):
        pieces = part.partition(";")[0].strip().replace("_", "-").split("-")
        for piece in pieces[1:]:
            if len(piece) == 2 and piece.upper() in phonenumbers.SUPPORTED_REGIONS:
                return piece.upper()
    return "US"
