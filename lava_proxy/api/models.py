"""GET /v1/models and /v1/models/{id}: what the model routes serve, in OpenAI's and Anthropic's vocabulary at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal

from aiohttp import web

from lava_proxy.api.authentication import spend_key_of
from lava_proxy.api.envelope import json_response
from lava_proxy.api.operations import Answer, Operation
from lava_proxy.domain.errors import NotFound
from lava_proxy.providers.model_list import ListedModel

TAG = "Models"
_UNKNOWN_TIME = "1970-01-01T00:00:00Z"


class ModelAnswer(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelAnswer]


class Models:
    """The model resource: with a spend key, only what it lets its holder call."""

    def __init__(self, models: Sequence[ListedModel], clock: Callable[[], datetime]) -> None:
        self._models = models
        self._clock = clock

    def operations(self) -> list[Operation]:
        return [
            Operation(
                method="GET", path="/v1/models", handler=self.many, tag=TAG, summary="List models", answer=ModelList,
                description="With a spend key, only what it lets its holder call.",
            ),
            Operation(
                method="GET", path="/v1/models/{model:.+}", handler=self.one, tag=TAG, summary="Read a model", answer=ModelAnswer
            ),
        ]  # fmt: skip

    async def many(self, request: web.Request) -> web.Response:
        items = [model_object(model) for model in self._allowed(request)]
        ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": None, "last_id": None}
        return json_response({"object": "list", "data": items, "has_more": False, **ends})

    async def one(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        for model in self._allowed(request):
            if model.model == name:
                return json_response(model_object(model))
        raise NotFound("No model of this name is listed here.", code="model_not_found")

    def _allowed(self, request: web.Request) -> list[ListedModel]:
        key = spend_key_of(request)
        if key is None:
            return list(self._models)
        rules = key.rules
        rules.check_time(self._clock())
        return [
            model
            for model in self._models
            if model.shape == rules.request_shape
            and rules.allows_provider(*model.providers)
            and rules.allows_model(model.model, *model.providers)
        ]


def model_object(model: ListedModel) -> dict[str, Any]:
    """Release dates are not known here."""
    return {
        "id": model.model,
        "object": "model",
        "created": 0,
        "owned_by": model.providers[0],
        "type": "model",
        "display_name": model.model,
        "created_at": _UNKNOWN_TIME,
    }
