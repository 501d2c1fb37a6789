"""The delta of client-level privacy, and what is said of it."""

from __future__ import annotations

import re

import pytest

from shepherd import plugins
from shepherd.errors import SettingsError
from shepherd.overrides import parse
from shepherd.privacy import client_level
from shepherd.privacy.client_level import ClientPrivacy
from shepherd.settings import RunSettings
from shepherd.silos.site import policy
from shepherd.silos.site.site_settings import PolicyTable


def run(**privacy: float) -> RunSettings:
    return parse(
        {
            "model": {"base": "tiny"},
            "data": {"source": "world"},
            "federation": {"rounds": 4, "weights": "equal"},
            "selection": {"name": "poisson", "share": 0.5},
            "transforms": [{"name": "gaussian", "noise": 5.0}],
            "privacy": privacy,
        }
    )


def privacy_of(clients: int, **table: float) -> ClientPrivacy:
    settings = run(**table)
    found = client_level.of_run(settings, plugins.method(settings), plugins.selection(settings), clients)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("clients", "delta"), [(2, 1e-5), (4, 1e-5), (30, 1e-5), (1_000, 1e-5), (100_000, 100_000**-1.1)]
)
def test_the_default_delta_is_small_for_few_clients_too(clients, delta) -> None:
    """At 4 to the power of -1.1 a round of four clients spent epsilon 0."""
    assert privacy_of(clients).delta == pytest.approx(delta)
    assert privacy_of(clients).epsilon(4) > 0.1


@pytest.mark.parametrize("clients", [4, 1_000])
def test_what_a_refusal_says_is_more_than_is_allowed_and_would_be_enough(clients) -> None:
    spent = privacy_of(clients).epsilon(4)
    for digits in (3, 5):
        allowed = float(f"{spent * (1 - 10.0**-digits):.{digits}g}")
        with pytest.raises(SettingsError) as found:
            privacy_of(clients, epsilon=allowed).require_within()
        shown = re.search(
            r"spend epsilon (\S+) at delta \S+ for each client, and .* allows (\S+);", str(found.value)
        )
        assert float(shown[2]) < spent <= float(shown[1])
        privacy_of(clients, epsilon=float(shown[1])).require_within()


def test_a_site_counts_itself_at_the_same_delta() -> None:
    asked = PolicyTable(require_privacy=("client",), max_epsilon=3.0)
    (budget,) = policy.budgets(asked, 100)
    assert budget.delta == privacy_of(3).delta


def test_a_large_delta_is_as_asked_and_said_to_be_large() -> None:
    assert privacy_of(4, delta=0.1).delta == 0.1
    assert "Delta 0.1 is large" in " ".join(privacy_of(4, delta=0.1).sentences())
    assert "large" not in " ".join(privacy_of(4).sentences())


def test_a_delta_that_allows_to_publish_one_client_is_refused_with_one_that_does_not() -> None:
    with pytest.raises(SettingsError, match=r"delta = 0.25 is not below 1 / 4, .* set it to 1e-05 or less"):
        privacy_of(4, delta=0.25)
    with pytest.raises(SettingsError, match="there is 1"):
        privacy_of(1)
