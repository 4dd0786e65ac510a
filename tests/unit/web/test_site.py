"""The pages that need no sign-in: their assets, their headers, their errors."""

from __future__ import annotations

import gzip
import hashlib
import re
import tomllib
from importlib import resources
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lava_proxy.domain.webhooks import EVENT_TYPES
from lava_proxy.web.pages import icon, usd
from lava_proxy.web.site import Site

DOCUMENT: dict[str, Any] = {"info": {"title": "API", "version": "1"}, "paths": {}}


PAGES_ELSEWHERE = {"/", "/openapi.json"}  # of other rooms


@pytest.fixture
async def client():  # type: ignore[no-untyped-def]
    application = web.Application()
    application.add_routes(Site(DOCUMENT).routes())
    async with TestClient(TestServer(application)) as client:
        yield client


async def test_every_guide_is_a_page_whose_links_and_assets_lead_somewhere(client: TestClient) -> None:  # type: ignore[type-arg]
    first = await (await client.get("/docs")).text()
    guides = set(re.findall(r'href="(/docs/[a-z-]+)"', first)) - {"/docs/api"}
    assert guides
    for guide in guides:
        answer = await client.get(guide)
        text = await answer.text()
        assert answer.status == 200 and "script-src 'self'" in answer.headers["Content-Security-Policy"]
        assert "<style" not in text and not re.search(r"\sstyle=|\son[a-z]+=", text), "the policy forbids inline code"
        for asset in re.findall(r'(?:src|href)="(/static/[^"]+)"', text):
            found = await client.get(asset)
            assert found.status == 200 and "immutable" in found.headers["Cache-Control"], asset
        for page in re.findall(r'href="([^"#:]+)(?:#[^"]*)?"', re.sub(r'href="/(static|dashboard)[/"][^"]*"?', "", text)):
            assert page in PAGES_ELSEWHERE or (await client.get(page)).status == 200, (guide, page)
        anchors = set(re.findall(r'id="([^"]+)"', text))
        assert {link for link in re.findall(r'href="#([^"]+)"', text)} <= anchors


async def test_links_between_guides_lead_to_their_sections(client: TestClient) -> None:  # type: ignore[type-arg]
    """Those into the API reference go by the names of its operations, which test_api_reference.py looks at."""
    first = await (await client.get("/docs")).text()
    for guide in set(re.findall(r'href="(/docs/[a-z-]+)"', first)):
        text = await (await client.get(guide)).text()
        for page, anchor in re.findall(r'href="(/docs/[a-z-]+)#([^"]+)"', text):
            if page != "/docs/api":
                assert f'id="{anchor}"' in await (await client.get(page)).text(), (guide, page, anchor)


def test_the_guide_to_webhooks_names_every_event_that_an_endpoint_can_select() -> None:
    text = resources.files("lava_proxy.web").joinpath("guides", "07-webhooks.md").read_text()
    assert set(re.findall(r"^\| `([a-z.]+\.[a-z]+)` \|", text, re.MULTILINE)) == set(EVENT_TYPES)


async def test_an_asset_of_another_version_and_an_unknown_guide_are_pages_that_say_404(client: TestClient) -> None:  # type: ignore[type-arg]
    assert (await client.get("/static/000000000000/app.css")).status == 404
    answer = await client.get("/docs/none")
    assert answer.status == 404 and answer.content_type == "text/html" and "nothing at this address" in await answer.text()


async def test_assets_travel_packed_where_the_browser_takes_it(client: TestClient) -> None:  # type: ignore[type-arg]
    [address] = re.findall(r'href="(/static/[^"]+tabler[^"]+)"', await (await client.get("/docs")).text())
    plain = await (await client.get(address, headers={"Accept-Encoding": "identity"})).read()
    packed = await client.get(address, headers={"Accept-Encoding": "gzip"}, auto_decompress=False)
    body = await packed.read()
    assert packed.headers["Content-Encoding"] == "gzip" and gzip.decompress(body) == plain and len(body) < 100_000


def test_the_files_of_others_are_the_ones_the_manifest_names() -> None:
    folder = resources.files("lava_proxy.web").joinpath("static/vendor")
    manifest = tomllib.loads(folder.joinpath("MANIFEST.toml").read_text())
    names = {entry.name for entry in folder.iterdir() if entry.name.endswith((".js", ".css"))}
    assert set(manifest) == names
    for name, facts in manifest.items():
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == facts["sha256"], name


def test_formats_lose_no_digit() -> None:
    assert [usd(n) for n in (0, 1, -1_500_000_000, 1_234_567_000_000_000, None)] == [
        "$0.00",
        "$0.000000001",
        "-$1.50",
        "$1,234,567.00",
        "–",
    ]
    assert 'aria-hidden="true"' in icon("home") and 'aria-label="Copy &lt;id&gt;"' in icon("copy", "Copy <id>")
