"""The command line's own checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from lava_proxy import settings
from lava_proxy.cli import _options
from lava_proxy.domain.errors import CallerError


@pytest.mark.parametrize("variables", [{"LAVA_WORKERS": "-1"}, {"LAVA_PORT": "99999"}, {"LAVA_PORT": "abc"}])
def test_ports_and_workers_out_of_range_are_refused_by_name(variables: dict[str, str]) -> None:
    with pytest.raises(CallerError, match=r"LAVA_PORT.*LAVA_WORKERS"):
        _options(settings.load(variables), None, None, None, (), False, Path(), None)
