"""Input is checked before a handler sees it, and every problem is told at once."""

from __future__ import annotations

from decimal import Decimal

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from pydantic import Field

from lava_proxy.api.envelope import answer_errors, json_response
from lava_proxy.api.operations import Body, LenientBody, Operation, QueryString, checked, routes_of
from lava_proxy.domain.errors import CallerError


class Fruit(Body):
    name: str = Field(min_length=1, max_length=5)
    weight: Decimal = Decimal(1)


class Basket(LenientBody):
    fruits: list[Fruit]


class Wanted(QueryString):
    limit: int = Field(10, ge=1, le=100)


async def make(_: web.Request, body: Fruit) -> web.Response:
    return json_response({"name": body.name, "weight": str(body.weight)})


async def find(_: web.Request, query: Wanted) -> web.Response:
    return json_response({"limit": query.limit})


OPERATIONS = [
    Operation(method="POST", path="/fruits", handler=make, tag="Fruits", summary="Make a fruit", body=Fruit),
    Operation(method="GET", path="/fruits", handler=find, tag="Fruits", summary="Find fruits", query=Wanted),
]


def test_every_problem_is_named_with_what_came_and_what_is_accepted() -> None:
    with pytest.raises(CallerError) as caught:
        checked(Basket, {"fruits": [{"name": "", "colour": "red"}, {"weight": "heavy"}], "sdk": "2.0"})
    assert caught.value.status == 400 and caught.value.code == "invalid_parameter"
    for part in (
        "fruits[0].name is ''",
        "fruits[0].colour is not a field",
        "fruits[1].name is required",
        "fruits[1].weight is 'heavy'",
    ):
        assert part in caught.value.message, part


async def test_numbers_keep_their_digits_and_bad_json_is_refused() -> None:
    application = web.Application(middlewares=[answer_errors])
    application.add_routes(routes_of(OPERATIONS))
    async with TestClient(TestServer(application)) as client:
        answer = await client.post("/fruits", data=b'{"name":"fig","weight":0.12345678901234567890}')
        assert await answer.json() == {"name": "fig", "weight": "0.12345678901234567890"}
        for body in (b"[1]", b"{", b'{"weight":NaN}', b"\xff", b"[" * 100_000):
            answer = await client.post("/fruits", data=body)
            assert answer.status == 400 and (await answer.json())["error"]["code"] == "invalid_json"
        assert (await client.get("/fruits?limit=7&other=1")).status == 200
        assert "limit is '0'" in (await (await client.get("/fruits?limit=0")).json())["error"]["message"]
