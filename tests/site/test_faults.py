"""What a site says of its faults: one line of bounded length, whatever a request brought."""

from __future__ import annotations

import pytest

from shepherd.errors import BadRow, PluginError, SettingsError, ShepherdError, WireError
from shepherd.federation import fields
from shepherd.settings import parse
from shepherd.site import faults


@pytest.mark.parametrize(
    "error",
    [
        WireError("tensor a\n2026-11-22 INFO granted is missing\x1b[2J"),
        SettingsError("unknown key " + "x" * 10**6),
        BadRow("line 3\nof a file"),
        faults.GivenUp("a\u2028b"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_line_of_the_log_stays_one(error: Exception) -> None:
    said = faults.logged(error)
    assert said.isprintable()
    assert len(said) <= fields.MOST_SENTENCE


def test_what_a_module_of_the_sites_says_stays_there() -> None:
    error = PluginError("algorithm 'ours.best' cannot be imported (KeyError: '/srv/patients.csv'); mend it")
    assert "patients" not in faults.told(error)
    assert "ours.best" in faults.logged(error)


def test_a_key_of_the_settings_forges_no_line() -> None:
    with pytest.raises(ShepherdError) as caught:
        parse({"seed": 0, "a\n2026-11-22 10:00:00 INFO all is well": 1}, "the request")
    assert "unknown key a 2026-11-22" in faults.logged(caught.value)
