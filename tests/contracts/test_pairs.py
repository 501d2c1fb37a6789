"""Every two parts of the package run together, or are refused before the run with both their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pytest
from tests.contracts.filling import built, filled
from tests.quadratic import Quadratic, drawn

from shepherd import plugins
from shepherd.core import Broadcast, Failure, Federation, Update
from shepherd.errors import SettingsError
from shepherd.federation.client_store import InMemory
from shepherd.federation.clocked import Clocked
from shepherd.federation.summed import Summed
from shepherd.overrides import parse
from shepherd.plugins import Kind
from shepherd.rounds import context_of, rounds, start
from shepherd.settings import RunSettings
from shepherd.training.local import OPTIMISER, require

KINDS = (*(kind for kind in plugins.KINDS if kind is not plugins.CHECKER), OPTIMISER)
RANK = 2
CLIENTS = 12
TABLES = {
    "stragglers": {"stragglers": {"min_updates": 5}},
    "stragglers.carry": {"stragglers": {"min_updates": 5, "carry": True}},
    "secure": {"secure": {"ring_bits": 64}, "tuning": {"max_steps": 2}},
}
"""Tables that change what a round is, by what a refusal calls them."""
Part = tuple[Kind, str]
PARTS = [(kind, name) for kind in KINDS for name in plugins.names(kind.folder)]
PAIRS = [
    (one, two) for one, two in combinations(PARTS, 2) if one[0] is not two[0] or one[0] is plugins.TRANSFORM
]


def table_of(kind: Kind, name: str) -> dict:
    return {"name": name, **filled(kind, name)}


def settings_of(*parts: Part, **tables_: dict) -> RunSettings:
    """A run file that names these parts, and SGD for local steps if it does not name an optimiser.

    Args:
        tables_: further tables; [secure] has a transform that sends whole numbers, if no part does.
    """
    tables: dict = {
        **tables_,
        "model": {"base": "tiny"},
        "data": {"source": "world"},
        "adapter": {"rank": RANK},
        "federation": {"rounds": 2, "weights": "equal"},
        "tuning": {**tables_.get("tuning", {}), "optimiser": {"name": "sgd"}},
    }
    for kind, name in parts:
        match kind.chosen_by.split()[0].strip("[]"):
            case "transforms":
                tables.setdefault("transforms", []).append(table_of(kind, name))
            case "tuning.optimiser":
                tables["tuning"]["optimiser"] = table_of(kind, name)
            case key:
                tables[key] = table_of(kind, name)
    if "secure" in tables and not any(whole(*part) for part in parts):
        tables.setdefault("transforms", []).append({"name": "fixed_point"})
    return parse(tables)


def whole(kind: Kind, name: str) -> bool:
    """Whether a part is a transform that sends whole numbers."""
    return kind is plugins.TRANSFORM and built(kind, name).largest_code > 0


def fault(settings: RunSettings) -> str:
    """Why a run with these settings is refused; "" if it is not."""
    try:
        require(settings)
    except SettingsError as refusal:
        return str(refusal)
    return ""


class Timed(Quadratic):
    """Clients whose visits have a length."""

    def begin(self, round: int) -> None:
        pass

    def visit_examples(self, client: str) -> int:
        return 10

    def run_more(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        return self.run(broadcast, cohort)


def assert_two_rounds(settings: RunSettings) -> None:
    method, selection = plugins.method(settings), plugins.selection(settings)
    aggregation = method.aggregation
    rank = RANK if aggregation.side_rank else None
    clients = Timed(method.algorithm, method.transform, clients=CLIENTS, rank=rank)
    federation: Federation = clients
    if method.stragglers is not None:
        speeds = {info.name: 1.0 + k for k, info in enumerate(clients.clients())}
        federation = Clocked(timed=clients, stragglers=method.stragglers, speeds=speeds, store=InMemory())
    if settings.secure is not None:
        federation = Summed(federation=federation, ring_bits=settings.secure.ring_bits)
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
        root=clients.root,
        by_loss=selection.by_loss,
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


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("part", PARTS, ids=title)
def test_a_part_runs_two_rounds_with_a_table_or_is_refused_with_both_names(part: Part, table: str) -> None:
    settings = settings_of(part, **TABLES[table])
    why = fault(settings)
    if not why:
        assert_two_rounds(settings)
        return
    if table == "secure" and fault(settings_of(part, (plugins.TRANSFORM, "fixed_point"))):
        return  # of the two transforms, whatever the table
    assert re.search(rf"\b{part[1]}\b", why), why
    assert table.removesuffix(".carry") in why
    assert any(how in why for how in ("set [", "remove", "list ", "set stragglers"))


REFUSED_WITH = {
    "stragglers": {"transform:gaussian", "transform:gaussian_adaptive", "transform:skellam"},
    "stragglers.carry": {
        "aggregation:krum",
        "aggregation:product",
        "algorithm:fednova",
        "algorithm:rolora",
        "selection:oort",
        "selection:round_robin",
        "selection:shuffled",
        "selection:size_weighted",
        "server optimiser:fedsvd",
        "transform:top_k",
    },
    "secure": {
        "aggregation:coordinate_median",
        "aggregation:fltrust",
        "aggregation:geometric_median",
        "aggregation:krum",
        "aggregation:trimmed_mean",
        "algorithm:fedsa_lora",
        "algorithm:local_adapter",
        "selection:oort",
        "selection:power_of_choice",
        "transform:norm_bound",
        "transform:quantise",
        "transform:top_k",
    },
}
"""Parts that must be refused with a table, whatever else is."""


def test_what_is_known_to_be_unsound_with_a_table_is_refused() -> None:
    for table, keys in TABLES.items():
        refused = {title(part) for part in PARTS if fault(settings_of(part, **keys))}
        assert refused >= REFUSED_WITH[table], table


REFUSED = {
    "selection:oort+transform:norm_bound",
    "selection:power_of_choice+transform:norm_bound",
    "aggregation:krum+selection:oort",
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
