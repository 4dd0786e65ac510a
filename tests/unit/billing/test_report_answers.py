"""billing/report_answers.py: what is joined from pieces is what `request_object` says, byte for byte."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.billing.report_answers import Changing, ReportAnswers, reported_row
from lava_proxy.billing.request_object import request_object
from lava_proxy.billing.rows import packed
from lava_proxy.domain.catalog import Grant, MeterVersion, Tier, TokenBasis
from lava_proxy.domain.fees import charge
from lava_proxy.domain.usage import Usage

ANSWERS = ReportAnswers()
NAMES = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()) | st.sampled_from(
    ["@key@", "#key#", "@flags@", "311111111111111", "422222222222222", "688888888.8888888890", "%b", "%%", '"']
)
USAGE = st.dictionaries(st.sampled_from(["input_tokens", "output_tokens"]), st.integers(0, 10**12))


def granted(
    slug: str, token_basis: TokenBasis = "input+output", tiers: tuple[Tier, ...] = (Tier(start=0, rate=20_000_000_000),)
) -> Grant:
    meter = MeterVersion(
        version_id=1, meter_id="prd_1", slug=slug, name="m", rate_type="fixed", tier_type="tokens_1m", tiers=tiers,
        token_basis=token_basis,
    )  # fmt: skip
    return Grant(merchant_id="mer_1", wallet_id="wal_1", connection_id="con_1", meter=meter)


@given(
    key=NAMES, slug=NAMES, provider=NAMES, model=NAMES | st.none(), basis=st.sampled_from(["input+output", "output"]),
    metadata=st.dictionaries(NAMES, NAMES, max_size=3), usage=USAGE,
    rate=st.sampled_from([0, 1, 20_000_000_000]), flags=st.sampled_from(["", "d", "b"]), at=st.integers(0, 4_000_000_000),
)  # fmt: skip
def test_a_joined_answer_is_the_request_object_whatever_it_is_about(
    key: str, slug: str, provider: str, model: str | None, basis: TokenBasis, metadata: dict[str, str], usage: dict[str, int],
    rate: int, flags: str, at: int,
) -> None:  # fmt: skip
    """35: an answer is the same whoever writes it, also about names that look like the markers."""
    grant = granted(slug, basis, (Tier(start=0, rate=rate),))
    meter = grant.meter
    assert meter is not None
    charged = charge(meter, Usage(usage), None, 0)
    found = ANSWERS.template(grant, meter, provider, model, usage, charged)
    if found is None:
        return
    row = reported_row(grant, meter, provider=provider, model=model, cost_nanos=0, price_version=None) | {
        "request_key": key,
        "usage": usage,
        "charge_nanos": charged.amount_nanos,
        "breakdown": {"charge": [(0, rate, charged.units, charged.amount_nanos)]},
        "flags": flags,
        "metadata": metadata,
        "created_at": datetime.fromtimestamp(at, UTC),
        "completed_at": datetime.fromtimestamp(at + 1, UTC),
    }
    read = Usage(usage)
    values = Changing(
        packed(key), packed(metadata), flags, read.input_tokens, read.output_tokens, charged.units, charged.amount_nanos, at, at + 1
    )
    assert found.body(values) == packed(request_object(row, meter))


@pytest.mark.parametrize("slug", ["@key@", "#flags#", "311111111111111"])
def test_a_name_like_a_marker_has_no_template(slug: str) -> None:
    """35: it would be cut in the wrong place."""
    grant = granted(slug)
    assert grant.meter is not None
    charged = charge(grant.meter, Usage({"input_tokens": 7}), None, 0)
    assert ANSWERS.template(grant, grant.meter, "reported", None, {"input_tokens": 7}, charged) is None


def test_only_reports_of_tokens_by_one_tier_have_a_template() -> None:
    """35: seconds, no usage and a tier's boundary change the answer in more places."""
    grant = granted("m", tiers=(Tier(start=0, rate=2_000_000), Tier(start=10, rate=1_000_000)))
    assert grant.meter is not None
    for usage, has_template in (
        ({"input_tokens": 7}, True),
        ({"input_tokens": 17}, False),
        ({}, False),
        ({"input_seconds": 3}, False),
    ):
        charged = charge(grant.meter, Usage(usage), None, 0)
        assert (ANSWERS.template(grant, grant.meter, "reported", "m", usage, charged) is not None) is has_template, usage
