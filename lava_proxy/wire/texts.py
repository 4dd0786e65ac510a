"""Texts that people and programs give us, checked alike in the API and in forms: names, references, addresses, phone numbers.

A check returns the text as it is kept, and raises ValueError with what is accepted.
"""

from __future__ import annotations

import re

import phonenumbers

TEXT_CHARS_MAX = 255
EMAIL_CHARS_MAX = 254
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")


def is_reference(value: str) -> bool:
    """Can this be an id or a reference id? (Never a NUL, which Postgres refuses.)"""
    return 0 < len(value) <= TEXT_CHARS_MAX and value.isprintable()


def split_name(name: str) -> tuple[str | None, str | None]:
    """First and last name of a full name: what comes before the last space, and what comes after it."""
    words = name.split()
    if len(words) < 2:
        return (words[0] if words else None), None
    return " ".join(words[:-1]), words[-1]


def checked_text(value: object) -> str:
    """1 to 255 printable characters."""
    if not isinstance(value, str) or not is_reference(value):
        raise ValueError(f"accepted are 1 to {TEXT_CHARS_MAX} printable characters")
    return value


def checked_name(value: object) -> str:
    """1 to 255 printable characters, not only spaces."""
    text = checked_text(value)
    if not text.strip():
        raise ValueError(f"accepted are 1 to {TEXT_CHARS_MAX} printable characters, not only spaces")
    return text


def checked_reference_id(value: object) -> str:
    """A merchant's own id of a customer."""
    text = checked_name(value)
    if text.startswith("con_"):
        raise ValueError("a reference_id may not start with con_, which our own ids do")
    return text


def checked_email(value: object) -> str:
    """An address with one @; whether it exists is for a message to find out."""
    good = isinstance(value, str) and len(value) <= EMAIL_CHARS_MAX and value.isprintable() and _EMAIL.fullmatch(value)
    if not good:
        raise ValueError("accepted is an e-mail address such as ada@example.com")
    return str(value)


def checked_phone(value: object) -> str:
    """E.164. Numbers that exist nowhere but could (such as +1 555 0100) are taken: tests and demonstrations use them."""
    message = "accepted is a phone number with its country code, such as +14155550123"
    if not isinstance(value, str) or len(value) > 40 or not value.startswith("+") or not value.isascii():
        raise ValueError(message)
    try:
        number = phonenumbers.parse(value, None)
    except phonenumbers.NumberParseException:
        raise ValueError(message) from None
    if not phonenumbers.is_possible_number(number) or number.extension:
        raise ValueError(message)
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
