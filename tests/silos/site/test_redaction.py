"""What a site says of its faults: one line of bounded length, whatever a request brought."""

from __future__ import annotations

import pytest

from shepherd import errors
from shepherd.errors import BadRow, PluginError, SettingsError, ShepherdError, WireError
from shepherd.overrides import parse
from shepherd.silos.protocol import schema
from shepherd.silos.site import redaction


@pytest.mark.parametrize(
    "error",
    [
        WireError("tensor a\n2026-11-22 INFO granted is missing\x1b[2J"),
        SettingsError("unknown key " + "x" * 10**6),
        BadRow("line 3\nof a file"),
        redaction.Cancelled("a\u2028b"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_line_of_the_log_stays_one(error: Exception) -> None:
    said = redaction.log_message(error)
    assert said.isprintable()
    assert len(said) <= schema.MAX_SENTENCE_CHARS


KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.ShepherdError) and kind is not errors.PluginError
]


@pytest.mark.parametrize("kind", [*KINDS, ValueError, FloatingPointError, OSError, KeyError], ids=str)
def test_what_fails_over_the_examples_is_told_in_a_fixed_sentence(kind: type[Exception]) -> None:
    """Whatever its text is made of, and of whatever class it is."""

    def told(text: str) -> str:
        with pytest.raises(Exception) as caught, redaction.of_the_examples():  # noqa: PT011
            raise kind(text)
        return redaction.server_message(caught.value)

    assert told("tensor a of 17") == told("tensor b of 18")
    assert told("tensor a of 17") in {
        redaction.VISIT, redaction.DATA, redaction.BASE, redaction.FOLDER, redaction.OTHER,
    }  # fmt: skip


def test_what_was_given_up_is_told_as_it_is() -> None:
    with pytest.raises(redaction.Cancelled), redaction.of_the_examples():
        raise redaction.Cancelled("it did not finish within 5 s")


def test_what_a_module_of_the_sites_says_stays_there() -> None:
    error = PluginError(
        "algorithm 'ours.best' cannot be imported (KeyError: '/srv/patients.csv'); correct it"
    )
    assert "patients" not in redaction.server_message(error)
    assert "ours.best" in redaction.log_message(error)


def test_a_key_of_the_settings_forges_no_line() -> None:
    with pytest.raises(ShepherdError) as caught:
        parse({"seed": 0, "a\n2026-11-22 10:00:00 INFO all is well": 1}, "the request")
    assert "unknown key a 2026-11-22" in redaction.log_message(caught.value)
