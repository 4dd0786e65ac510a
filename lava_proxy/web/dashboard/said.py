"""How the pages say what rows hold: how a call ended, and where its usage comes from."""

from __future__ import annotations

from collections.abc import Mapping

SAID: Mapping[str, str] = {
    "completed": "Completed", "client_gone": "Client left early", "provider_error": "Refused by the provider",
    "upstream_broken": "Provider broke off", "upstream_timeout": "Provider timed out", "gateway_stopped": "Gateway stopped",
    "balance_exhausted": "Balance ran out", "orphaned": "Process died", "provider_final": "Reported by the provider",
    "provider_partial": "Provider, in part", "estimated": "Estimated", "reported": "Reported by you", "none": "No usage",
}  # fmt: skip
"""Outcome or provenance -> words."""
