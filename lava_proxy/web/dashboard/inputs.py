"""Groups of fields that several pages have: texts checked as the API checks them, limits, overage policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast, get_args

from lava_proxy.domain.limits import COUNT_MAX, Cycle, Limits
from lava_proxy.domain.money import AMOUNT_NANOS_MAX, NANOS_PER_CENT, NANOS_PER_USD, format_usd
from lava_proxy.domain.plans import BLOCK, Overage, OveragePolicy
from lava_proxy.web.dashboard.forms import Form

INHERIT = "inherit"
_OVERAGE_AMOUNTS = ("limit", "threshold", "increment", "monthly_cap")
_OVERAGE_NANOS_MAX = 100_000 * NANOS_PER_USD
_CYCLES = get_args(Cycle)


def checked(form: Form, name: str, check: Callable[[object], str], *, is_required: bool = True) -> str | None:
    """A field's text as `check` keeps it; what `check` accepts is told at the field otherwise."""
    value = form.value(name).strip()
    if not value:
        if is_required:
            form.fail(name, "This is needed.")
        return None
    try:
        return check(value)
    except ValueError as error:
        form.fail(name, sentence(error))
        return None


def sentence(error: Exception) -> str:
    """A check's message as a sentence for people."""
    text = str(error).rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def dollars(nanos: int | None) -> str:
    """An amount as a field shows it: at least two places, no digit lost; "" for none."""
    if nanos is None:
        return ""
    text = format_usd(nanos, 9)
    return text[:-7] + text[-7:].rstrip("0")


# -- limits of customers and spend keys


def limits_values(limits: Limits | None) -> dict[str, Any]:
    """What the fields of `limits_fields` show."""
    found = limits or Limits()
    return {
        "spend_amount": dollars(found.spend_nanos),
        "spend_cycle": found.spend_cycle,
        "request_count": found.request_count,
        "request_cycle": found.request_cycle,
        "rpm": found.requests_per_minute,
        "burst": found.request_burst,
        "tpm": found.tokens_per_minute,
        "concurrency": found.concurrent_calls,
    }


def read_limits(form: Form) -> Limits:
    """The limits typed; empty fields are no limit. Meaningful only while the form is good."""
    spend_cycle, request_cycle = form.choice("spend_cycle", _CYCLES), form.choice("request_cycle", _CYCLES)

    def count(name: str) -> int | None:
        return form.integer(name, is_required=False, least=1, most=COUNT_MAX)

    spend_nanos = form.usd("spend_amount", is_required=False, most=AMOUNT_NANOS_MAX)
    burst, rpm = count("burst"), count("rpm")
    if burst is not None and rpm is None:
        form.fail("burst", "A burst needs calls a minute beside it.")
    return Limits(
        requests_per_minute=rpm,
        request_burst=burst,
        tokens_per_minute=count("tpm"),
        concurrent_calls=count("concurrency"),
        request_count=count("request_count"),
        request_cycle=cast(Cycle, request_cycle or "monthly"),
        spend_nanos=spend_nanos,
        spend_cycle=cast(Cycle, spend_cycle or "monthly"),
    )


# -- what happens beyond the credit: of the merchant, a plan, a customer


def overage_values(overage: Overage | None) -> dict[str, Any]:
    """What the fields of `overage_fields` show; None: the policy is that of the level above."""
    found = overage or BLOCK
    amounts = {f"overage_{name}": dollars(getattr(found, f"{name}_nanos")) for name in _OVERAGE_AMOUNTS}
    return {"overage_policy": INHERIT if overage is None else overage.policy, **amounts}


def read_overage(form: Form, *, may_inherit: bool) -> Overage | None:
    """The policy typed; None: that of the level above. Meaningful only while the form is good."""
    policies = (*((INHERIT,) if may_inherit else ()), *get_args(OveragePolicy))
    policy = form.choice("overage_policy", policies)
    if policy is None or policy == INHERIT:
        return None
    if policy != "charge":
        return Overage(policy=cast(OveragePolicy, policy))
    found: Mapping[str, int | None] = {
        name: form.usd(f"overage_{name}", least=1, most=_OVERAGE_NANOS_MAX) for name in _OVERAGE_AMOUNTS
    }
    limit, threshold, increment = found["limit"], found["threshold"], found["increment"]
    if limit is not None and threshold is not None and threshold > limit:
        form.fail("overage_threshold", "Not above the line: the card would never be charged before calls are refused.")
    if increment is not None and increment % NANOS_PER_CENT:
        form.fail("overage_increment", "Whole cents, such as 1.00.")
    if form.errors:
        return None
    return Overage(policy="charge", **{f"{name}_nanos": cast(int, value) for name, value in found.items()})
