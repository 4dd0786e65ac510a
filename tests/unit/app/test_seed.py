"""app/supervisor.py: what people are told when the sandbox of `dev` cannot be set up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from lava_proxy.app import supervisor
from lava_proxy.domain.errors import LavaError, StoreError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            KeyError("merchant_id"),
            "The sandbox could not be set up (KeyError: 'merchant_id'). Its data is in /data; --data-dir",
        ),
        (RuntimeError("the pool is closed."), "The sandbox could not be set up (RuntimeError: the pool is closed). Its data is in"),
        (StoreError("Redis cannot answer."), "The sandbox could not be set up: Redis cannot answer."),
    ],
)
async def test_a_sandbox_that_cannot_be_set_up_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    async def opened(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(supervisor, "open_stores", opened)
    nothing = cast(Any, None)
    with pytest.raises(LavaError) as caught:
        await supervisor._seed(nothing, nothing, nothing, Path("/data"))
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
