"""What people typed, read and checked: each field's problem is told at the field, all of them together, the values kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from aiohttp import web

from lava_proxy.domain.money import parse_usd
from lava_proxy.web.posted import posted_form

TEXT_CHARS_MAX = 255


class Form:
    """A form's values. Readers note what is wrong and return None; `is_good` says whether nothing was."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        """`values`: what the fields show before anything was typed."""
        self.values: dict[str, str] = {name: "" if value is None else str(value) for name, value in (values or {}).items()}
        self.lists: dict[str, list[str]] = {}
        self.errors: dict[str, str] = {}

    @classmethod
    async def read(cls, request: web.Request) -> Form:
        """The form that a request carries; uploaded files are not part of any."""
        form = cls()
        for name, value in (await posted_form(request)).items():
            if isinstance(value, str):
                form.values.setdefault(name, value)
                form.lists.setdefault(name, []).append(value)
        return form

    @property
    def is_good(self) -> bool:
        return not self.errors

    def value(self, name: str) -> str:
        """What stands in the field; "" where it is absent."""
        return self.values.get(name, "")

    def all(self, name: str) -> list[str]:
        """The values of a field that may come several times."""
        return self.lists.get(name, [])

    def fail(self, name: str, sentence: str) -> None:
        """Note a problem of a field; the first one stays."""
        self.errors.setdefault(name, sentence)

    def text(self, name: str, *, is_required: bool = True, chars_max: int = TEXT_CHARS_MAX) -> str | None:
        """Text without spaces around it; None when it is absent or wrong."""
        value = self.value(name).strip()
        if not value:
            if is_required:
                self.fail(name, "This is needed.")
            return None
        if len(value) > chars_max:
            self.fail(name, f"At most {chars_max} characters; these are {len(value)}.")
            return None
        if not value.isprintable():
            self.fail(name, "Only printable characters on one line.")
            return None
        return value

    def choice(self, name: str, accepted: Collection[str]) -> str | None:
        """One of `accepted`."""
        value = self.value(name)
        if value not in accepted:
            self.fail(name, f"Choose one of {', '.join(accepted)}.")
            return None
        return value

    def usd(self, name: str, *, is_required: bool = True, least: int = 0, most: int | None = None) -> int | None:
        """Nano-USD of dollars such as 25.00; bounds in nano-USD, inclusive."""
        text = self.value(name).strip().removeprefix("$").replace(",", "")
        if not text:
            if is_required:
                self.fail(name, "An amount in dollars is needed, such as 25.00.")
            return None
        try:
            amount = parse_usd(text)
        except ValueError:
            self.fail(name, "An amount in dollars with at most nine decimal places, such as 25.00.")
            return None
        if amount < least or (most is not None and amount > most):
            self.fail(name, "This amount is outside of what is accepted.")
            return None
        return amount

    def integer(self, name: str, *, is_required: bool = True, least: int = 0, most: int = 10**15) -> int | None:
        """A whole number within bounds, inclusive."""
        text = self.value(name).strip().replace(",", "")
        if not text:
            if is_required:
                self.fail(name, "A whole number is needed.")
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 16 or not least <= int(text) <= most:
            self.fail(name, f"A whole number from {least:,} to {most:,}.")
            return None
        return int(text)
