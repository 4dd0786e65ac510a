"""app/card_payments.py: which processor an installation gets."""

from __future__ import annotations

import pytest

from lava_proxy.app.card_payments import processor_of
from lava_proxy.app.run_config import RunConfig
from lava_proxy.domain.errors import CallerError
from lava_proxy.settings import load


@pytest.mark.parametrize(
    ("chosen", "has_key", "dev", "expected"),
    [
        ("auto", False, True, "sandbox"),
        ("auto", False, False, None),  # play money is never a default where real customers are
        ("auto", True, True, "stripe"),
        ("auto", True, False, "stripe"),
        ("none", True, True, None),
        ("sandbox", True, False, "sandbox"),
        ("stripe", True, False, "stripe"),
    ],
)
async def test_the_processor_follows_settings_and_secrets(chosen: str, has_key: bool, dev: bool, expected: str | None) -> None:
    config = RunConfig(redis_url="", database_url="", master_key="", control_socket="", base_url="http://x/v1/", dev=dev)
    environment = {"LAVA_PAYMENTS_PROCESSOR": chosen} | ({"LAVA_STRIPE_SECRET_KEY": "sk_test_1"} if has_key else {})
    processor = processor_of(None, config, load(environment))
    assert (None if processor is None else processor.name) == expected
    if processor is not None:
        await processor.close()


def test_stripe_without_its_key_says_what_to_set() -> None:
    config = RunConfig(redis_url="", database_url="", master_key="", control_socket="", base_url="", dev=True)
    with pytest.raises(CallerError, match="LAVA_STRIPE_SECRET_KEY"):
        processor_of(None, config, load({"LAVA_PAYMENTS_PROCESSOR": "stripe"}))
