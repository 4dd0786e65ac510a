"""How values look in answers: timestamps, lists, balances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lava_proxy.billing.request_object import seconds, timestamp
from lava_proxy.domain.money import format_usd
from lava_proxy.stores.outbox import WalletState

__all__ = ["balance_fields", "listing", "seconds", "short_usd", "timestamp"]


def listing(items: Sequence[dict[str, Any]], limit: int, id_field: str) -> dict[str, Any]:
    """{"data", "has_more", "next_cursor"} from up to limit + 1 items; next_cursor only when there is more."""
    shown = list(items[:limit])
    if len(items) <= limit:
        return {"data": shown, "has_more": False}
    return {"data": shown, "has_more": True, "next_cursor": shown[-1][id_field]}


def balance_fields(state: WalletState | None) -> dict[str, Any]:
    """A wallet's live figures as decimal dollars with ten places; null when the wallet is not known at the moment.

    `balance` is everything, what open calls hold included; `balance_available` can be spent now and is negative below zero.
    """
    if state is None:
        return {"balance": None, "balance_available": None, "balance_held": None, "pots": None}
    return {
        "balance": format_usd(state.balance_nanos),
        "balance_available": format_usd(state.plan_available + state.funds_available),
        "balance_held": format_usd(state.plan_held + state.funds_held),
        "pots": {
            "plan": {"available": format_usd(state.plan_available), "held": format_usd(state.plan_held)},
            "funds": {"available": format_usd(state.funds_available), "held": format_usd(state.funds_held)},
        },
    }


def short_usd(nanos: int) -> str:
    """Exact dollars with at least two places: 50.00, 49.9993."""
    text = format_usd(nanos, 9)
    return text[:-7] + text[-7:].rstrip("0")
