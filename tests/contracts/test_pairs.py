"""Every two parts of the package run together, or are refused before the run with both their names."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest
from tests.contracts.filling import filled
from tests.quadratic import Quadratic, drawn

from shepherd import plugins
from shepherd.errors import SettingsError
from shepherd.overrides import parse
from shepherd.plugins import Kind
from shepherd.rounds import context_of, rounds, start
from shepherd.settings import RunSettings
from shepherd.training.local import OPTIMISER, require

KINDS = (*(kind for kind in plugins.KINDS if kind is not plugins.CHECKER), OPTIMISER)
RANK = 2
CLIENTS = 24
Part = tuple[Kind, str]
PARTS = [(kind, name) for kind in KINDS for name in plugins.names(kind.folder)]
PAIRS = [
    (one, two) for one, two in combinations(PARTS, 2) if one[0] is not two[0] or one[0] is plugins.TRANSFORM
]


def table_of(kind: Kind, name: str) -> dict:
    return {"name": name, **filled(kind, name)}


def settings_of(*parts: Part) -> RunSettings:
    """A run file that names these parts, and SGD for local steps if it does not name an optimiser."""
    tables: dict = {
        "model": {"base": "tiny"},
        "data": {"source": "world"},
        "adapter": {"rank": RANK},
        "federation": {"rounds": 2, "weights": "equal"},
        "tuning": {"optimiser": {"name": "sgd"}},
    }
    for kind, name in parts:
        match kind.chosen_by.split()[0].strip("[]"):
            case "transforms":
                tables.setdefault("transforms", []).append(table_of(kind, name))
            case "tuning.optimiser":
                tables["tuning"] = {"optimiser": table_of(kind, name)}
            case key:
                tables[key] = table_of(kind, name)
    return parse(tables)


def fault(settings: RunSettings) -> str:
    """Why a run with these settings is refused; "" if it is not."""
    try:
        require(settings)
    except SettingsError as refusal:
        return str(refusal)
    return ""


def assert_two_rounds(settings: RunSettings) -> None:
    method, selection = plugins.method(settings), plugins.selection(settings)
    aggregation = method.aggregation
    rank = RANK if aggregation.side_rank else None
    federation = Quadratic(method.algorithm, method.transform, clients=CLIENTS, rank=rank)
    context = context_of(settings, selection, drawn(0), CLIENTS)
    loop = rounds(
        method,
        federation,
        start(method, drawn(0), context),
        until=2,
        select=selection.cohort,
        quorum=0.1,
        seed=5,
        context=context,
        root=federation.root,
    )
    done = list(loop)
    assert [state.round for state, _ in done] == [1, 2]
    for state, report in done:
        assert not report.failures
        assert all(np.isfinite(tensor).all() for tensor in state.adapter.values())


def title(part: Part) -> str:
    return f"{part[0].name}:{part[1]}"


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(map(title, pair)))
def test_two_parts_run_two_rounds_or_are_refused_with_both_names(pair: tuple[Part, Part]) -> None:
    settings = settings_of(*pair)
    why = fault(settings)
    if not why:
        assert_two_rounds(settings)
        return
    assert all(re.search(rf"\b{name}\b", why) for _, name in pair), why
    assert any(how in why for how in ("set [", "remove", "list "))
    assert not any(fault(settings_of(part)) for part in pair)  # it is the two together that are refused


REFUSED = {
    "aggregation:coordinate_median+transform:gaussian",
    "aggregation:krum+transform:gaussian_adaptive",
    "algorithm:fed_sb+aggregation:trimmed_mean",
    "algorithm:fedsa_lora+aggregation:krum",
    "algorithm:scaffold+aggregation:geometric_median",
    "transform:gaussian+transform:norm_bound",
    "algorithm:fed_sb+server optimiser:fedadam",
    "algorithm:fed_sb+server optimiser:fedavgm",
    "algorithm:fed_sb+transform:fedrot",
    "algorithm:fedsa_lora+aggregation:zero_padding",
    "algorithm:fednova+optimiser:adamw",
    "algorithm:fednova+transform:clip",
    "algorithm:rolora+aggregation:flora",
    "algorithm:scaffold+optimiser:adamw",
    "algorithm:scaffold+selection:size_weighted",
    "algorithm:scaffold+transform:clip",
    "algorithm:scaffold+transform:quantise",
    "algorithm:fed_sb+transform:top_k",
    "aggregation:product+transform:top_k",
    "server optimiser:fedsvd+transform:top_k",
    "transform:clip+transform:top_k",
    "transform:gaussian+transform:quantise",
    "transform:gaussian+transform:top_k",
    "selection:oort+transform:gaussian",
    "selection:power_of_choice+transform:gaussian",
}
"""Pairs that must be refused, whatever else is."""


def test_what_is_known_to_be_unsound_is_refused() -> None:
    assert {"+".join(map(title, pair)) for pair in PAIRS if fault(settings_of(*pair))} >= REFUSED


@pytest.mark.parametrize("weights", ["examples", "tokens", "size"])
@pytest.mark.parametrize("part", PARTS, ids=title)
def test_each_part_takes_any_weights_or_says_that_they_must_be_equal(part: Part, weights: str) -> None:
    settings = settings_of(part)
    weighed = settings.model_copy(
        update={"federation": settings.federation.model_copy(update={"weights": weights})}
    )
    why = fault(weighed)
    if not why:
        assert_two_rounds(weighed)
        return
    assert repr(part[1]) in why or f'"{part[1]}"' in why
    assert 'set federation.weights = "equal"' in why
