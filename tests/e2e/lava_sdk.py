"""The official SDK in a Node process that does what it is told a line at a time, and the shapes that its answers must have."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.daemon import Daemon
from tests.e2e import node_packages

SCRIPT = "lava_sdk.mjs"


class SdkError(Exception):
    """What the SDK threw."""


class Sdks:
    """A running script; `call("lava11", "customers.create", {...})` is one method call of that version."""

    def __init__(self, process: subprocess.Popen[str], opened: Path) -> None:
        self._process = process
        self.opened = opened  # where the address is written that `login` opens in a browser

    def send(self, sdk: str, action: str, path: str = "", *args: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"sdk": sdk, "do": action, "path": path, "args": args}) + "\n")
        self._process.stdin.flush()

    def read(self) -> Any:
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise SdkError(answer["error"])
        return answer.get("value")

    def call(self, sdk: str, path: str, *args: object) -> Any:
        """What the method answers. Raises SdkError."""
        self.send(sdk, "call", path, *args)
        return self.read()

    def ask(self, sdk: str, action: str) -> Any:
        self.send(sdk, action)
        return self.read()


@contextmanager
def running_sdks(daemon: Daemon, folder: Path) -> Iterator[Sdks]:
    """The script beside its packages, with a browser that only writes down where it was sent. Raises node_packages.NotHere."""
    node, modules = node_packages.node(), node_packages.installed()
    (folder / "node_modules").symlink_to(modules)
    script = shutil.copy(node_packages.FOLDER / SCRIPT, folder)
    programs, opened = folder / "bin", folder / "opened"
    programs.mkdir()
    browser = programs / "xdg-open"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}.part && mv {opened}.part {opened}\n')
    browser.chmod(0o755)
    settings = {"base_url": daemon.base_url, "secret_key": daemon.info["secret_key"]}
    process = subprocess.Popen(
        [node, script, json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    try:
        yield Sdks(process, opened)
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


# A shape is a type, a pattern of text, a set of texts, a list of one shape, a tuple of alternatives or a dict of keys (absent ones
# with `?`). Keys beyond it are fine: newer and older vocabularies stand beside each other.
DOLLARS = re.compile(r"-?\d+\.\d{10}")
ANY_DOLLARS = re.compile(r"-?\d+(\.\d{1,10})?")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
DATE = re.compile(r"\d{4}-\d\d-\d\d")
LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d([+-]\d\d:\d\d|Z)")
NUMBER = (int, float)
TEXT_OR_NULL = (str, None)


def problems(value: Any, shape: Any, where: str = "answer") -> list[str]:
    """Each place where a value does not have its shape; [] when it does."""
    if isinstance(shape, tuple):
        return [] if any(not problems(value, one, where) for one in shape) else [f"{where} is {value!r}"]
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{where} is {value!r}, not an object"]
        found = [f"{where}.{key} is missing" for key in shape if not key.endswith("?") and key not in value]
        named = {key.rstrip("?"): one for key, one in shape.items()}
        return found + [one for key in named if key in value for one in problems(value[key], named[key], f"{where}.{key}")]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where} is {value!r}, not a list"]
        return [one for index, item in enumerate(value) for one in problems(item, shape[0], f"{where}[{index}]")]
    if isinstance(shape, re.Pattern):
        return [] if isinstance(value, str) and shape.fullmatch(value) else [f"{where} is {value!r}, not {shape.pattern}"]
    if isinstance(shape, set):
        return [] if value in shape else [f"{where} is {value!r}, not one of {sorted(map(str, shape))}"]
    if shape is None:
        return [] if value is None else [f"{where} is {value!r}, not null"]
    is_right = isinstance(value, shape) and not (isinstance(value, bool) and shape is not bool)
    return [] if is_right else [f"{where} is {value!r}, not {shape.__name__}"]


def has_shape(value: Any, shape: Any) -> Any:
    """The value; AssertionError naming each place that is wrong."""
    found = problems(value, shape)
    assert not found, "\n".join(found)
    return value


def page_of(shape: Any) -> dict[str, Any]:
    return {"data": [shape], "has_more": bool, "next_cursor?": str}


CONTACT = {"phone": TEXT_OR_NULL, "email": TEXT_OR_NULL, "first_name": TEXT_OR_NULL, "last_name": TEXT_OR_NULL}
CUSTOMER = {
    "customer_id": str,
    "reference_id": TEXT_OR_NULL,
    "contact": CONTACT,
    "subscription": ({"subscription_id": str, "plan_id": str, "name": str, "status": str}, None),
    "metadata": (dict, None),
    "created_at": TIME,
}
CONNECTION_8 = {
    "connection_id": str,
    "has_lava_credit_balance": bool,
    "customer": CONTACT,
    "subscription": ({"subscription_id": str, "subscription_config_id": str, "name": str, "status": str}, None),
    "created_at": TIME,
}
CONNECTION_2 = {
    "connection_id": str,
    "reference_id": TEXT_OR_NULL,
    "wallet": {"balance": DOLLARS, **CONTACT, "autopay_enabled": bool},
    "next_usage_reset": TIME,
    "previous_usage_reset": TIME,
    "created_at": TIME,
}
TIER = {"start": int, "rate": str, "type": {"tokens_1m", "characters_1m", "minutes", "requests"}}
BREAKDOWN = [{"tier": TIER, "tokens": int, "characters": int, "seconds": NUMBER, "cost": DOLLARS}]
RATE_TYPE = {"fixed", "percentage"}
MODEL_USAGE = {
    **{f"{side}_{unit}": int for side in ("input", "output", "total") for unit in ("tokens", "characters")},
    **{f"{side}_seconds": NUMBER for side in ("input", "output", "total")},
    **{f"{side}_cost": DOLLARS for side in ("input", "output", "total")},
}
_REQUEST_HEAD = {
    "request_id": str,
    "status": {"pending", "completed", "error"},
    "provider": str,
    "provider_key_type": {"managed", "unmanaged", "stored"},
    "endpoint": str,
    "model?": str,
    "response_id?": str,
    "metadata": dict,
    "timestamp?": TIME,
    "created_at": TIME,
}
REQUEST = {
    **_REQUEST_HEAD,
    "customer_id?": str,
    "meter_id?": str,
    "model_usage": MODEL_USAGE,
    "cost": DOLLARS,
    "charge": {"amount": DOLLARS, "rate_type": RATE_TYPE, "breakdown": BREAKDOWN},
}
PAYER = {"wallet", "merchant"}
OLDER_REQUEST = {
    **_REQUEST_HEAD,
    "connection_id?": str,
    "product_id?": str,
    "model_usage": {**MODEL_USAGE, "payer": PAYER},
    "fee": {"amount": DOLLARS, "rate_type": RATE_TYPE, "token_basis": {"input+output", "output"}, "breakdown": BREAKDOWN},
    "service_charge": {"amount": DOLLARS, "payer": PAYER},
    "total_request_cost": DOLLARS,
    "total_wallet_cost": DOLLARS,
    "total_merchant_cost": DOLLARS,
}
_BUCKET = {"date": DATE, "start": LOCAL_TIME, "end": LOCAL_TIME}


def _usage(*dollars: str) -> dict[str, Any]:
    sums = {"total_requests": int, "total_usage_tokens": int, **dict.fromkeys(dollars, DOLLARS)}
    return {"items": [{**_BUCKET, **sums}], "totals": sums}


USAGE = _usage("total_cost", "total_charge")
USAGE_2 = _usage(
    "total_usage_cost", "total_fee_amount", "total_service_charge_amount", "total_request_cost", "total_wallet_cost",
    "total_merchant_cost",
)  # fmt: skip
USAGE_8 = _usage(*[key for key in USAGE_2["totals"] if key.endswith(("cost", "amount"))], "total_gross_volume", "total_net_volume")
METER = {"meter_id": str, "meter_slug": str, "name": str, "rate_type": RATE_TYPE, "tiers": [TIER], "created_at": TIME}
METER_8 = {**METER, "token_basis": {"input+output", "output"}, "base_cost_payer": PAYER, "service_charge_payer": PAYER}
WEBHOOK = {"webhook_id": str, "name": str, "url": str, "created_at": TIME}
SECRET_KEY = {"secret_key_id": str, "name": str, "secret_key_hint": str, "created_at": TIME}
CYCLE = {"daily", "weekly", "monthly", "total"}
SPEND_KEY = {
    "spend_key_id": str,
    "key_preview": str,
    "wallet_id": str,
    "name": str,
    "status": {"active", "paused"},
    "request_shape": {"openai", "anthropic"},
    "allowed_models": ([str], None),
    "allowed_providers": ([str], None),
    "spend_limit": ({"amount": ANY_DOLLARS, "cycle": CYCLE}, None),
    "request_limit": ({"count": int, "cycle": CYCLE}, None),
    "rate_limit": ({"rpm": int, "burst?": (int, None)}, None),
    "expires_at": (TIME, None),
    "current_spend": DOLLARS,
    "total_spend": DOLLARS,
    "current_requests": int,
    "total_requests": int,
    "last_used_at": (TIME, None),
    "created_at": TIME,
}
MODELS = {"object": {"list"}, "data": [{"id": str, "object": {"model"}, "created": int, "owned_by": str}]}
LOGIN = {"wallet_id": str, "secret_key_id": str, "secret_key": str, "merchant_id": str, "account_id": str}
SUCCESS = {"success": {True}}
DELETED = {"id": str, "deleted": {True}}

INTERVAL = {"day", "week", "month", "year"}
ROLLOVER = {"full", "none"}
BUNDLE = {"credit_bundle_id": str, "name": str, "cost": ANY_DOLLARS, "credit_amount": ANY_DOLLARS}
_PLAN = {
    "merchant_id": str,
    "name": str,
    "period_amount": ANY_DOLLARS,
    "included_credit": ANY_DOLLARS,
    "billing_interval": INTERVAL,
    "rollover_type": ROLLOVER,
    "bundle_rollover_type": ROLLOVER,
    "credit_bundles": [BUNDLE],
    "created_at": TIME,
}
PLAN = {
    "plan_id": str, **_PLAN, "default_auto_top_up_bundle_id": TEXT_OR_NULL, "linked_meters": [{"meter_id": str, "name": str}],
}  # fmt: skip
CONFIG = {"subscription_config_id": str, **_PLAN}
CREDIT_BUNDLE = {**BUNDLE, "plan_id": str, "created_at": TIME}
PENDING_CHANGE = {
    "type": {"cancellation", "downgrade"}, "effective_at": (TIME, None), "plan_id?": TEXT_OR_NULL, "name?": TEXT_OR_NULL,
    "period_amount?": (ANY_DOLLARS, None), "included_credit?": (ANY_DOLLARS, None),
}  # fmt: skip
_SUBSCRIPTION = {
    "subscription_id": str,
    "status": {"active", "cancelled"},
    "started_at": TIME,
    "cancelled_at": (TIME, None),
    "cycle_start_at": (TIME, None),
    "cycle_end_at": (TIME, None),
    "plan": {
        "name": str, "period_amount": ANY_DOLLARS, "included_credit": ANY_DOLLARS, "billing_interval": INTERVAL,
        "rollover_type": ROLLOVER, "bundle_rollover_type": ROLLOVER,
    },
    "credits": {"total_remaining": ANY_DOLLARS, "cycle_remaining": ANY_DOLLARS, "bundle_remaining": ANY_DOLLARS},
    "pending_change": (PENDING_CHANGE, None),
}  # fmt: skip
SUBSCRIPTION = {**_SUBSCRIPTION, "plan_id": str, "auto_top_up_bundle_id": TEXT_OR_NULL}
_PERSON = {"phone": TEXT_OR_NULL, "email?": TEXT_OR_NULL, "first_name?": TEXT_OR_NULL, "last_name?": TEXT_OR_NULL}
LISTED_SUBSCRIPTION = {**SUBSCRIPTION, "customer_id": str, "customer": _PERSON}
SUBSCRIPTION_8 = {**_SUBSCRIPTION, "subscription_config_id": str}
LISTED_SUBSCRIPTION_8 = {**SUBSCRIPTION_8, "connection_id": str, "customer": _PERSON}
_CHECKOUT = {
    "checkout_session_id": str, "checkout_session_token": str, "checkout_mode": str, "origin_url": str, "created_at": TIME,
    "completed_at?": (TIME, None),
}  # fmt: skip
CHECKOUT = {**_CHECKOUT, "customer_id?": TEXT_OR_NULL, "plan_id?": TEXT_OR_NULL}
CHECKOUT_8 = {**_CHECKOUT, "connection_id?": TEXT_OR_NULL, "subscription_config_id?": TEXT_OR_NULL}
CHECKOUT_2 = {**_CHECKOUT, "connection_id?": TEXT_OR_NULL, "reference_id?": TEXT_OR_NULL}
