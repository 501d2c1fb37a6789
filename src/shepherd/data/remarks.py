"""What is to be said of a run's data: what was read, held out, cut, dropped or masked, and of whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shepherd.data.dataset import Partition, TokenisedData
from shepherd.data.examples import Example
from shepherd.data.holdout import duplicate_remarks, duplicate_warning, hold_out_remarks
from shepherd.data.tokens import response_remarks
from shepherd.io.phrases import listed
from shepherd.io.progress import many
from shepherd.settings import RunSettings
from shepherd.visible import shown_line

MAX_CLIENTS_NAMED = 5


def heldout_remarks(prepared: TokenisedData) -> list[str]:
    """What is to be said of what was held out, if anything."""
    return _remarks(prepared.summary, list(prepared.clients), prepared.heldout_examples, prepared.places)


def training_remarks(prepared: TokenisedData) -> list[str]:
    """Sentences on the rows, and on what was dropped, cut or masked; empty if there is nothing to report."""
    counts = prepared.summary
    return [
        *prepared.notes.sentences(),
        *_halved_remarks(counts.get("pairs_halved", 0)),
        *_repeat_remarks(counts, prepared.places),
        *prepared.dropped,
        *response_remarks(
            kept=counts["kept"],
            cut=counts.get("cut_responses", 0),
            marked=counts.get("marked_responses", 0),
        ),
        *client_remarks(prepared.by_client),
    ]


def division_remarks(division: Partition, settings: RunSettings) -> list[str]:
    """Sentences on the rows and on what is held out, before anything is tokenised."""
    held = division.of(division.held.heldout.tolist())
    counts, places = division_counts(division, settings, held), division_places(division)
    return [
        *division.reading.notes.sentences(),
        *repeat_remarks(division, settings),
        *_remarks(counts, list(division.clients), held, places),
    ]


def repeat_remarks(division: Partition, settings: RunSettings) -> list[str]:
    """Sentences on duplicates: how many, the first few, and whether they are too many."""
    counts = division_counts(division, settings, ())
    said = [*_repeat_remarks(counts, division_places(division)), _repeat_warning(counts)]
    return [sentence for sentence in said if sentence]


def training_warnings(prepared: TokenisedData) -> list[str]:
    """What should be looked at before the run goes on."""
    return list(filter(None, [_repeat_warning(prepared.summary)]))


def client_remarks(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Sentences on which clients what is cut, dropped, masked or not read belongs to; none for one client."""
    kinds = (
        ("skipped_rows", "rows skipped", ""),
        ("dropped", "examples dropped", "examples"),
        ("cut", "examples cut to fit", "kept"),
        ("cut_responses", "of these, responses cut", "kept"),
        ("marked_responses", "responses masked by marks", ""),
    )
    said = []
    for key, what, whole in kinds if len(counts) > 1 else ():
        own = sorted((-count[key], name) for name, count in counts.items() if count[key])
        named = [
            f"{shown_line(name)} {-count:,}" + (f" of {counts[name][whole]:,}" if whole else "")
            for count, name in own
        ]
        said += [f"{what}, by client: {listed(named, MAX_CLIENTS_NAMED)}"] if own else []
    return said


def _halved_remarks(count: int) -> list[str]:
    """What is to be said where worse answers are read and not trained on."""
    if not count:
        return []
    has = "has a rejected answer" if count == 1 else "have a rejected answer each"
    return [
        f"{many(count, 'example')} {has}, which this objective does not use: the chosen one is trained on;"
        ' [tuning.objective] name = "dpo" trains on both'
    ]


def _repeat_remarks(counts: Mapping[str, int], places: Mapping[str, Sequence[str]]) -> list[str]:
    repeated = counts.get("repeated", 0)
    return duplicate_remarks(
        repeated,
        kept=counts["duplicates"] < repeated,
        size=_own_size(counts),
        places=places.get("repeated", ()),
    )


def _repeat_warning(counts: Mapping[str, int]) -> str:
    repeated = counts.get("repeated", 0)
    return duplicate_warning(repeated, kept=counts["duplicates"] < repeated, size=_own_size(counts))


def _own_size(counts: Mapping[str, int]) -> int:
    """How many examples the data have, without the test set's."""
    return counts["examples"] - counts.get("test_examples", 0)


def _test_remarks(counts: Mapping[str, int], places: Mapping[str, Sequence[str]]) -> list[str]:
    """What is to be said of a test set of one's own, and of what it shares with training."""
    said = [
        f"the test set has {many(counts['test_examples'], 'example')}, which are scored and not trained on;"
        " data.holdout is not used"
    ]
    if gone := counts.get("in_test_set", 0):
        said.append(
            f"{many(gone, 'example')} of the data {'is' if gone == 1 else 'are'} in the test set, or of a"
            f" group that is, and {'is' if gone == 1 else 'are'} not trained on"
            + _first(places, "in_test_set")
        )
    if shared := counts.get("heldout_shared_with_training", 0):
        said.append(
            f"{many(shared, 'example')} of the test set {'shares' if shared == 1 else 'share'} a question"
            " with examples that are trained on, so scores on them may be too good"
            + _first(places, "heldout_shared_with_training")
        )
    return said


def _first(places: Mapping[str, Sequence[str]], key: str) -> str:
    return "".join(f" (the first: {place})" for place in places.get(key, ())[:1])


def _remarks(
    counts: Mapping[str, int],
    clients: Sequence[str],
    heldout: Sequence[Example],
    places: Mapping[str, Sequence[str]],
) -> list[str]:
    tested = counts.get("test_examples", 0) > 0
    said = _test_remarks(counts, places) if tested else []
    if alone := counts.get("without_group", 0):
        said.append(f"{many(alone, 'example')} name no group (data.group); each is a group of its own")
    said += hold_out_remarks(
        shared=0 if tested else counts.get("heldout_shared_with_training", 0),  # older folders lack some
        copies=counts.get("held_by_several_clients", 0),
        common=counts.get("sharing_a_common_instruction", 0),
        commonest=counts.get("sharing_the_commonest", 0),
        size=counts["examples"] - counts["duplicates"],
    )
    without = counts.get("clients_without_heldout", 0)
    if without and without == len(clients):
        said.append(
            "nothing is held out (a client's last example is always trained on), so nothing is scored"
        )
    elif without:
        own = {example.client for example in heldout}
        named = listed([client for client in clients if client not in own], 3)
        said.append(
            f"{without:,} of {many(len(clients), 'client')} have nothing held out ({named}); what is scored"
            " is the others'"
        )
    return said


def division_counts(division: Partition, settings: RunSettings, heldout: Sequence[Example]) -> dict[str, int]:
    """What became of the examples before they were tokenised; of `heldout` some may be dropped by now."""
    scored = {example.client for example in heldout}
    pooled = scored == {""}
    return {
        "examples": len(division.reading.examples),
        "skipped_rows": len(division.reading.skipped),
        "duplicates": division.held.duplicates,
        "held_by_several_clients": division.held.copies,
        "heldout_shared_with_training": division.held.shared,
        "sharing_a_common_instruction": division.held.common,
        "sharing_the_commonest": division.held.commonest,
        "clients_without_heldout": (
            sum(client not in scored for client in division.clients)
            if settings.data.holdout and not pooled
            else 0
        ),
        "heldout": len(heldout),
        "repeated": division.held.repeated,
        "test_examples": len(division.held.heldout) if settings.evaluation.data else 0,
        "in_test_set": division.held.tested,
        "without_group": (
            sum(not example.group for example in division.reading.examples) if settings.data.group else 0
        ),
    }


def division_places(division: Partition) -> dict[str, list[str]]:
    """Where the first are of what `division_counts` counts, as far as the rows have a place."""
    held, of = division.held, division.reading.examples
    repeats = [f"{of[index].where} equals {of[first].where}" for index, first in held.repeats]
    found = {
        "repeated": repeats if all(of[index].where for index, _ in held.repeats) else [],
        "in_test_set": [] if held.first_tested is None else [of[held.first_tested].where],
        "heldout_shared_with_training": [] if held.first_shared is None else [of[held.first_shared].where],
    }
    return {key: [shown_line(place) for place in places] for key, places in found.items() if any(places)}
