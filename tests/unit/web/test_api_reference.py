"""The page that shows the OpenAPI document: everything that the document says is on it, and nothing runs inline."""

from __future__ import annotations

import html
import json
import re
import subprocess
from importlib import resources
from typing import Any
from unittest.mock import MagicMock

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lava_proxy.api.application import operations_of
from lava_proxy.api.openapi import OpenApi
from lava_proxy.web.api_reference import groups_of
from lava_proxy.web.site import Site

METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The real one; its operations are only described here, so they need no stores."""
    return OpenApi(operations_of(MagicMock())).value


@pytest.fixture
async def page(document: dict[str, Any]) -> str:
    application = web.Application()
    application.add_routes(Site(document).routes())
    async with TestClient(TestServer(application)) as client:
        answer = await client.get("/docs/api")
        assert answer.status == 200 and "script-src 'self'" in answer.headers["Content-Security-Policy"]
        text = await answer.text()
        for asset in re.findall(r'(?:src|href)="(/static/[^"]+)"', text):
            assert (await client.get(asset)).status == 200, asset
        return text


async def test_every_operation_is_on_the_page_with_its_parameters_fields_and_answers(document: dict[str, Any], page: str) -> None:
    shown = html.unescape(re.sub(r"<[^>]+>", " ", page))
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method not in methods:
                continue
            operation = methods[method]
            anchor = re.sub(r"[^a-z0-9]+", "-", operation["operationId"].lower())
            assert f'<article class="ref-operation" id="{anchor}"' in page and f'href="#{anchor}"' in page
            article = html.unescape(page.split(f'id="{anchor}" data-search', 1)[1].split("</article>", 1)[0])
            assert f">{method.upper()}</span> <code>{path}</code>" in article and operation["summary"] in article
            for parameter in operation.get("parameters", ()):
                assert f"<code>{parameter['name']}</code>" in article
            for status in operation["responses"]:
                assert f"<strong>{status}</strong>" in article, (path, method, status)
    for name in ("tiers", "webhook_secret", "metadata_filters", "group_by", "spend_limit", "breakdown"):
        assert name in shown


async def test_nothing_on_the_page_runs_inline_or_comes_from_elsewhere(page: str) -> None:
    assert "<style" not in page and not re.search(r"\sstyle=|\son[a-z]+=", page)
    assert re.findall(r'(?:src|href)="(?:https?:)?//', page) == []
    identifiers = re.findall(r'\sid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert {link for link in re.findall(r'href="#([^"]+)"', page)} <= set(identifiers)


async def test_the_guides_link_to_operations_that_are_there(page: str) -> None:
    guides = resources.files("lava_proxy.web").joinpath("guides")
    text = "".join(entry.read_text() for entry in guides.iterdir() if entry.name.endswith(".md"))
    anchors = set(re.findall(r"\]\(/docs/api#([^)]+)\)", text))
    assert anchors and anchors <= set(re.findall(r'<article class="ref-operation" id="([^"]+)"', page))


def test_types_rules_and_nested_fields_are_told_in_words(document: dict[str, Any]) -> None:
    operations = {(one.method, one.path): one for _, _, group in groups_of(document) for one in group}
    fields = {field.name: field for field in operations["POST", "/v1/meters"].body}
    assert (fields["rate_type"].kind, fields["rate_type"].required) == ('"fixed" | "percentage"', True)
    assert fields["name"].rules == "at least 1 characters; at most 255 characters" and fields["meter_slug"].kind == "text or null"
    assert (fields["tiers"].kind, fields["tiers"].depth, fields["rate"].depth) == ("list of object", 0, 1)
    assert 'default "input+output"' in fields["token_basis"].rules
    limit = {one.name: one for one in operations["GET", "/v1/customers"].parameters}["limit"]
    assert (limit.kind, limit.rules) == ("query, integer", "at least 1; at most 100; default 10")
    assert operations["GET", "/v1/connections"].is_older_name and operations["POST", "/v1/auth/callback"].is_public


def test_every_command_is_good_shell_and_its_body_is_json(document: dict[str, Any]) -> None:
    for _, _, operations in groups_of(document):
        for one in operations:
            # The shell splits it as it would for curl: the arguments come back, one a line.
            script = "curl() { printf '%s\\n' \"$@\"; }\n" + one.curl
            done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, timeout=20, env={"LAVA": "http://h"})
            if "unbound variable" in done.stderr:
                names = re.findall(r"\$([A-Z_]+)", one.curl)
                environment = {name: "x" for name in names} | {"LAVA": "http://h"}
                done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, timeout=20, env=environment)
            assert done.returncode == 0, (one.curl, done.stderr)
            arguments = done.stdout.splitlines()
            assert any(argument.startswith("http://h/") for argument in arguments)
            if "-d" in arguments:
                assert isinstance(json.loads(arguments[arguments.index("-d") + 1]), dict)
