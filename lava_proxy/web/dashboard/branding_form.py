"""/dashboard/settings/branding: how the checkout looks, with what becomes of a colour shown as it is chosen."""

from __future__ import annotations

import base64
from typing import Any

from aiohttp import web
from aiohttp.web_request import FileField

from lava_proxy.domain.branding import DEFAULT_COLOUR, LOGO_BYTES_MAX, Branding, contrast_of, theme_on
from lava_proxy.domain.errors import CallerError
from lava_proxy.stores.checkout_store import CheckoutStore
from lava_proxy.web.dashboard.acts import Acts
from lava_proxy.web.dashboard.forms import Form
from lava_proxy.web.dashboard.frame import View, session_of
from lava_proxy.web.dashboard.inputs import sentence

_BASE = "/dashboard/settings/branding"
_LIGHT, _DARK = "#ffffff", "#14171c"
_FIELDS = ("name", "colour", "support_email")


class BrandingForm:
    """One page: the form and its preview."""

    def __init__(self, view: View, acts: Acts, *, store: CheckoutStore) -> None:
        self._view = view
        self._acts = acts
        self._store = store

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(_BASE, self.page),
            web.post(_BASE, self.save),
            web.post(_BASE + "/preview", self.preview),
        ]

    async def page(self, request: web.Request) -> web.StreamResponse:
        kept = await self._store.branding(session_of(request).merchant.merchant_id)
        form = Form({"name": kept.name, "colour": kept.colour or DEFAULT_COLOUR, "support_email": kept.support_email})
        return self._answer(request, form, kept)

    async def save(self, request: web.Request) -> web.StreamResponse:
        form, merchant_id = await Form.read(request), session_of(request).merchant.merchant_id
        kept = await self._store.branding(merchant_id)
        logo = await _logo(request, form, kept.logo)
        values = {name: form.value(name).strip() or None for name in _FIELDS}
        for name, value in values.items():
            _check(form, name, value)
        if not form.is_good:
            return self._answer(request, form, kept, status=422)
        made = Branding(
            name=values["name"] or "", logo=logo, colour=values["colour"], support_email=values["support_email"]
        )  # fmt: skip
        async with self._acts.transaction() as db:
            await self._store.set_branding(merchant_id, made, db=db)
            await self._acts.note(db, request, "merchant.branding", merchant_id, before=_facts(kept), after=_facts(made))
        return self._view.redirect(request, _BASE, "The checkout looks like this from now on.")

    async def preview(self, request: web.Request) -> web.StreamResponse:
        """What is typed now, as the checkout would show it; the logo is put in by the page's script."""
        form = await Form.read(request)
        kept = await self._store.branding(session_of(request).merchant.merchant_id)
        return self._view.part(request, "branding_preview.html", **_shown(form, kept))

    def _answer(self, request: web.Request, form: Form, kept: Branding, *, status: int = 200) -> web.Response:
        return self._view.page(
            request, "branding.html", "settings", status=status, form=form, logo_bytes_max=LOGO_BYTES_MAX,
            **_shown(form, kept),
        )  # fmt: skip


def _check(form: Form, name: str, value: str | None) -> None:
    """Note at the field what is not accepted of it."""
    if name == "name" and value is None:
        form.fail("name", "This is needed.")
        return
    fields: dict[str, Any] = {"name": "x", name: value}
    try:
        Branding(**fields)
    except CallerError as error:
        form.fail(name, sentence(ValueError(error.message.partition(": ")[2])))


async def _logo(request: web.Request, form: Form, kept: str | None) -> str | None:
    """The logo as a data: URL: the file that was chosen, else the one before, unless it is to go."""
    sent = (await request.post()).get("logo")
    if not isinstance(sent, FileField) or not sent.filename:
        return None if form.value("remove_logo") else kept
    content = sent.file.read(LOGO_BYTES_MAX + 1)
    if len(content) > LOGO_BYTES_MAX:
        form.fail("logo", f"At most {LOGO_BYTES_MAX // 1024} KB; make the picture smaller.")
        return None
    kind = "webp" if content[:4] == b"RIFF" else "png"
    logo = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    try:
        Branding(name="x", logo=logo)
    except CallerError:
        form.fail("logo", "A PNG or WebP picture is needed; this file is none.")
        return None
    return logo


def _shown(form: Form, kept: Branding) -> dict[str, Any]:
    """What the preview shows: the name, and for light and dark the colours and how well they read."""
    try:
        colour = Branding(name="x", colour=form.value("colour").strip() or None).colour or DEFAULT_COLOUR
    except CallerError:
        colour = kept.colour or DEFAULT_COLOUR
    grounds = []
    for title, ground, is_dark in (("Light", _LIGHT, False), ("Dark", _DARK, True)):
        theme = theme_on(colour, dark=is_dark)
        grounds.append(
            {
                "title": title, "theme": theme, "is_dark": is_dark, "is_moved": theme.link != theme.accent,
                "on_accent": contrast_of(theme.accent, theme.on_accent), "own": contrast_of(theme.accent, ground),
                "link": contrast_of(theme.link, ground),
            }
        )  # fmt: skip
    return {"grounds": grounds, "shown_name": form.value("name").strip()[:60] or kept.name, "kept": kept}


def _facts(branding: Branding) -> dict[str, Any]:
    return {
        "name": branding.name, "colour": branding.colour, "support_email": branding.support_email,
        "logo": None if branding.logo is None else f"{len(branding.logo)} characters",
    }  # fmt: skip
