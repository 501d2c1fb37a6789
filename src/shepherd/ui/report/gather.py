"""Collect a run folder into one value: all that the report shows, in JSON's types."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from shepherd.evaluate.how import asked_by, words
from shepherd.evaluate.sentences import ALPHA, missing
from shepherd.io.lock import is_held
from shepherd.io.progress import many
from shepherd.run import claims, hidden, ledger, lineage, release, score_file
from shepherd.run import folder as folders
from shepherd.run.changes import NO_DIFFERENCE
from shepherd.run.folder import RUN_FILE, planned
from shepherd.run.log import LOG, hides_amounts, read_rows
from shepherd.run.measured import figures
from shepherd.run.versions import VERSIONS
from shepherd.settings import published
from shepherd.ui.report import single_run
from shepherd.ui.report.reading import (
    Row,
    interval,
    items,
    number,
    numbers,
    plain,
    read_lines,
    read_object,
    table,
    text,
)

FORMAT = 1
MEASURES = ("right", "exact", "f1", "rouge_l", "loss")
"""Usual measures in the order of the page: `loss` in nats per response token, the others as shares."""
BY_EXAMPLES = ("loss", "preference", "margin")
"""Measures of the examples that are scored, and not of answers."""
KINDS = ("base", "start", "local", "centralised", "federated", "variant")
MAX_ARMS_IN_ORDER = 16
"""If there are more arms than this, the local ones come last."""
_FIGURES = ("bytes_down", "bytes_up", "gap", "energy_kept", "spread", "cosine", "learning_rate")
"""Figures of a round that are taken as they are in the log."""
OWN_ARM = "its own arm"
"""Column of `client_loss` for the local arm that trained on that client's data alone."""
OWN_MODEL = "its own model"
"""Column of `client_loss` for the model of which the client keeps a part."""


def collect(folder: str | Path) -> dict[str, Any]:
    """All that the report of a run shows, ready for JSON; nothing is written and no lock is held.

    The run may be training, and may have no comparison, no judge, nothing held out, or no round yet.

    Raises:
        FolderError: there is no run in the folder, or a file of it is damaged.
    """
    path = Path(folder)
    whole, rows = planned(path), read_rows(path)
    settings = published(whole).model_dump(mode="json", exclude_none=True)
    hidden.require_ledgers(path, whole, rows)
    spent = claims.spent(path, rows)
    hides = hidden.of_run(whole, rows, spent.get(ledger.CLIENTS, {}))
    compared = read_object(
        path / "compare" / "comparison.json",
        "remove it and run `shepherd compare` again; the trained arms are kept",
    )
    index = read_object(path / "data" / "index.json", "start the run again in a new folder")
    answered = read_lines(path / "answers.jsonl")
    status = _status(path, rows, settings)
    others = _other_measures(compared)
    measures = (*MEASURES, *others)
    began = single_run.began_with(settings)
    arms = _arms(compared, measures) or single_run.arms(rows, answered, began)
    if hides.clients:  # what each client holds is its own
        index = {}
    elif hides.examples:  # all but how many examples each has
        kept = sum(number(size) or 0 for size in items(index.get("sizes")))
        index = {"clients": index.get("clients"), "summary": {"kept": kept}} if index else {}
    holdings = {text(client): numbers(mix) for client, mix in table(index.get("mixes")).items()}
    shown = {
        "format": FORMAT,
        "title": path.resolve().name,
        "status": status,
        "says": _says(compared) or single_run.says(rows, answered, status, began),
        "settings": settings,
        "versions": _versions(path),
        "comparison": _comparison(compared),
        "arms": arms,
        "measures": [m for m in measures if any(m in arm["measures"] for arm in arms)],
        "other_measures": others,
        "differences": [{**each, "lacks": _lacks(each, compared)} for each in _differences(compared)],
        "data": numbers(index.get("summary")),
        "clients": _clients(index, rows),
        "categories": _categories(index, arms),
        "holdings": holdings,
        "held": {client: sum(count or 0 for count in mix.values()) for client, mix in holdings.items()},
        "coverage": _last(rows, "coverage"),
        "client_loss": _client_loss(arms, rows),
        "hides": {"clients": hides.clients, "examples": hides.examples},
        "caveats": lineage.caveats(lineage.source(path), lineage.before(path)),
        ledger.CLIENTS: _privacy(spent.get(ledger.CLIENTS)),
        ledger.EXAMPLES: _example_privacy(spent.get(ledger.EXAMPLES), settings),
        "rounds": [_round(row) for row in rows],
        "curves": _curves(path, rows, settings, compared),
        "totals": _totals(rows),
        "planned": [] if hides.clients else _planned(path, rows),
        "failures": _failures(rows),
        "contribution": _contribution(rows),
        "scores": _scores(path),
        "release": release.of_run(path).row(),
        "judge": _judge(compared),
        "samples": _samples(compared) or single_run.samples(answered, began),
    }
    return dict(plain(shown))


def collect_runs(paths: Sequence[Path], compared: Mapping[str, Any]) -> dict[str, Any]:
    """All that the page of several runs shows; `compared` is what `shepherd.compare.runs` found.

    Raises:
        FolderError: a path holds no run, or a file of it is damaged.
    """
    others = _other_measures(compared)
    arms = _arms(compared, (*MEASURES, *others))
    # a PEFT folder that was compared with them has neither a run file nor rounds
    named = [
        (arm["name"], path) for arm, path in zip(arms, paths, strict=True) if (path / RUN_FILE).is_file()
    ]
    names, paths = [name for name, _ in named], [path for _, path in named]
    settings = [published(planned(path)).model_dump(mode="json", exclude_none=True) for path in paths]
    curves = [
        _curve(name, given["seed"], read_rows(path))
        for name, given, path in zip(names, settings, paths, strict=True)
    ]
    shown = {
        "format": FORMAT,
        "title": ", ".join(arm["name"] for arm in arms),
        "runs": [
            {
                "name": name,
                "base": given["model"]["base"],
                "algorithm": given["algorithm"]["name"],
                "rank": given["adapter"]["rank"],
            }
            for name, given in zip(names, settings, strict=True)
        ],
        "differing": list(_differing(settings)),
        "says": _says(compared),
        "comparison": _comparison(compared),
        "arms": arms,
        "measures": [m for m in (*MEASURES, *others) if any(m in arm["measures"] for arm in arms)],
        "other_measures": others,
        "labels": {
            text(table(each)["name"]): text(table(each).get("label"))
            for each in items(compared.get("measures"))
            if table(each).get("name")
        },
        "differences": [{**each, "lacks": _lacks(each, compared)} for each in _differences(compared)],
        "clients": [],
        "categories": _categories({}, arms),
        "holdings": {},
        "client_loss": _client_loss([], []),
        "rounds": [],
        "curves": [{**curve, "name": curve["arm"]} for curve in curves if curve["points"]],
        "judge": None,
        "samples": _samples(compared),
        "settings": {},
    }
    return dict(plain(shown))


def _differing(settings: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Keys whose values differ between runs, with the value in each as JSON, or "not set"."""
    flat = [dict(_flat(given)) for given in settings]
    for key in dict.fromkeys(key for each in flat for key in each):
        values = [each.get(key, "not set") for each in flat]
        if key.split(".")[0] not in NO_DIFFERENCE and len(set(values)) > 1:
            yield {"key": key, "values": values}


def _flat(given: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, str]]:
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{inside}{key}.")
        else:
            yield inside + key, json.dumps(value, ensure_ascii=False)


def _failures(rows: Sequence[Row]) -> list[Row]:
    return [
        {"round": row["round"], "client": client, "reason": text(reason)}
        for row in rows
        for client, reason in table(row.get("failures")).items()
    ]


def _status(path: Path, rows: Sequence[Row], settings: Mapping[str, Any]) -> Row:
    done, until = (rows[-1]["round"] if rows else 0), settings["federation"]["rounds"]
    if done >= until:
        return {
            "state": "finished",
            "round": done,
            "rounds": until,
            "says": f"finished, {many(done, 'round')}",
        }
    state = {True: "running", False: "stopped", None: "unfinished"}[is_held(path / folders.LOCK)]
    says = {"running": "still running", "stopped": "stopped", "unfinished": "not finished"}[state]
    return {"state": state, "round": done, "rounds": until, "says": f"{says}, round {done} of {until}"}


def _versions(path: Path) -> Row:
    found = read_object(path / VERSIONS, "remove it; a run can be resumed without it")
    return {name: text(version) for name, version in found.items()}


def _says(compared: Mapping[str, Any]) -> list[str]:
    sentences = items(compared.get("says")) or [
        table(difference).get("says") for difference in items(compared.get("differences"))
    ]
    return [text(sentence) for sentence in sentences if sentence]


def _comparison(compared: Mapping[str, Any]) -> Row | None:
    if not compared:
        return None
    return {
        "finished": compared.get("finished") is True,
        "match": text(compared.get("match")),
        "seeds": list(filter(_is_seed, items(compared.get("seeds")))),
        "against": text(compared.get("against")) or "federated",
        "questions": number(compared.get("questions")),
        "loss_examples": number(compared.get("loss_examples")),
        "seconds": number(compared.get("seconds")),
    }


def _other_measures(compared: Mapping[str, Any]) -> dict[str, Row]:
    """Measures of plug-in metrics, as the comparison describes them."""
    found = [table(measure) for measure in items(compared.get("measures"))]
    return {
        text(measure["name"]): {
            "label": text(measure.get("label")),
            "lower_is_better": measure.get("lower_is_better") is True,
            "share": measure.get("share") is not False,
        }
        for measure in found
        if measure.get("name") and text(measure["name"]) not in MEASURES
    }


def _arms(compared: Mapping[str, Any], measures: Sequence[str]) -> list[Row]:
    """The arms in the order given; if there are many, the local ones come last."""
    arms = [_arm(table(arm), place, measures) for place, arm in enumerate(items(compared.get("arms")), 1)]
    return arms if len(arms) <= MAX_ARMS_IN_ORDER else sorted(arms, key=lambda arm: arm["kind"] == "local")


def _arm(arm: Row, place: int, measures: Sequence[str]) -> Row:
    worst, trained = table(arm.get("worst_client")), arm.get("trained")
    kind = text(arm.get("kind"))
    return {
        "name": text(arm.get("name")) or f"arm {place}",
        "kind": kind if kind in KINDS else "variant",
        "client": text(arm["client"]) if arm.get("client") is not None else None,
        "categories": numbers(arm.get("categories")),
        "overrides": [text(override) for override in items(arm.get("overrides"))],
        "trained": numbers(trained) if isinstance(trained, Mapping) else None,
        **{key: _spent(arm[key]) if isinstance(arm.get(key), Mapping) else None for key in ledger.UNITS},
        "measures": _intervals(arm.get("measures"), measures),
        "category": {
            measure: _intervals(table(arm.get("category")).get(measure))
            for measure in measures
            if table(table(arm.get("category")).get(measure))
        },
        "client_loss": numbers(arm.get("client_loss")),
        "worst_client": {"name": text(worst["name"]), "loss": number(worst.get("loss"))}
        if worst.get("name") is not None
        else None,
    }


def _spent(given: Mapping[str, Any]) -> Row:
    return {key: number(given.get(key)) for key in ("epsilon", "delta")}


def _intervals(values: Any, names: Sequence[str] | None = None) -> Row:
    given = table(values)
    found = {name: interval(given.get(name)) for name in (given if names is None else names)}
    return {name: value for name, value in found.items() if value is not None}


def _differences(compared: Mapping[str, Any]) -> list[Row]:
    """The differences in the order of their measures on the page."""
    found = [_difference(table(given)) for given in items(compared.get("differences"))]
    places = {measure: place for place, measure in enumerate(MEASURES)}
    return sorted(found, key=lambda each: places.get(each["measure"], len(MEASURES)))


def _lacks(difference: Row, compared: Mapping[str, Any]) -> str | None:
    """What a significant difference lacks to be called settled; None if it is not significant."""
    if difference["p_holm"] is None or difference["p_holm"] >= ALPHA:
        return None
    loss = difference["measure"] in BY_EXAMPLES
    asked = number(compared.get("loss_examples" if loss else "questions")) or 0
    return missing(int(asked), len(items(compared.get("seeds"))), "examples" if loss else "questions")


def _difference(given: Row) -> Row:
    return {
        "arm": text(given.get("arm")),
        "measure": text(given.get("measure")),
        "difference": interval(given.get("difference")),
        "relative": interval(given.get("relative")),
        **{key: number(given.get(key)) for key in ("p", "p_holm", "questions_needed")},
        "says": text(given.get("says")),
    }


def _clients(index: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    named = [text(name) for name in items(index.get("clients"))]
    return named or list(_last(rows, "coverage"))


def _categories(index: Mapping[str, Any], arms: Sequence[Row]) -> list[str]:
    trained_on = (name for mix in table(index.get("mixes")).values() for name in table(mix))
    scored = (name for arm in arms for by in arm["category"].values() for name in by)
    return sorted({*trained_on, *scored})


def _last(rows: Sequence[Row], key: str) -> dict[str, float | int | None]:
    found = (numbers(row[key]) for row in reversed(rows) if isinstance(row.get(key), Mapping))
    return next(found, {})


def _client_loss(arms: Sequence[Row], rows: Sequence[Row]) -> Row:
    """Loss in nats on data like each client's, of every arm that all clients share and of its own arm.

    Where clients keep a part of the model, also the loss of each one's own model after the last round.
    """
    shared = {arm["name"]: arm["client_loss"] for arm in arms if arm["kind"] != "local"}
    own = {
        arm["client"]: arm["client_loss"].get(arm["client"])
        for arm in arms
        if arm["kind"] == "local" and arm["client"] is not None
    }
    kept = (numbers(table(row["personal"]).get("client")) for row in reversed(rows) if "personal" in row)
    columns = {OWN_ARM: own, **shared, OWN_MODEL: next(kept, {})}
    columns = {name: by for name, by in columns.items() if by}
    clients = list(dict.fromkeys(client for by in columns.values() for client in by))
    return {
        "columns": list(columns),
        "rows": {client: {name: by.get(client) for name, by in columns.items()} for client in clients},
    }


def _round(row: Row) -> Row:
    seconds, heldout = row.get("seconds"), table(row.get("heldout"))
    coverage = [share for share in numbers(row.get("coverage")).values() if share is not None]
    personal = table(row.get("personal"))
    cosines = [cosine for cosine in numbers(row.get("cosines")).values() if cosine is not None]
    return {
        "round": row["round"],
        "train_loss": number(row.get("loss")),
        "heldout_loss": number(heldout.get("loss")),
        "worst_client": number(heldout.get("worst_client")),
        "client_spread": number(heldout.get("spread")),
        "personal_loss": number(personal.get("loss")),
        "worst_personal": number(personal.get("worst_client")),
        "personal_spread": number(personal.get("spread")),
        **{key: number(row.get(key)) for key in _FIGURES},
        "lowest_cosine": min(cosines, default=None),
        "clients": len(items(row.get("cohort"))) if "cohort" in row else None,
        "failures": len(table(row.get("failures"))) if row["round"] and "privacy" not in row else None,
        **{
            name: number(table(row[level]).get("epsilon"))
            for name, level in (("epsilon", ledger.CLIENTS), ("example_epsilon", ledger.EXAMPLES))
            if level in row
        },
        "coverage": sum(coverage) / len(coverage) if coverage else None,
        "seconds": number(table(seconds).get("round")),
    }


def _privacy(kept: Row | None) -> Row | None:
    """What the run has spent of each client's privacy, by its ledger; None if noise hides nobody."""
    if not kept:
        return None
    return {
        **{
            key: number(kept.get(key))
            for key in ("epsilon", "delta", "budget", "noise", "clients", "rounds", "begun", "finished")
        },
        "again": number(kept.get("again", 0)),
        "says": [text(sentence) for sentence in items(kept.get("says"))],
    }


def _example_privacy(kept: Row | None, settings: Mapping[str, Any]) -> Row | None:
    """What the steps have spent of single examples' privacy, by its ledger; None if noise hides none."""
    if not kept:
        return None
    asked = table(settings.get("privacy"))
    return {
        **{key: number(kept.get(key)) for key in ("epsilon", "delta")},
        "budget": number(asked.get("epsilon")),
        **{key: number(table(asked.get("examples")).get(key)) for key in ("norm", "noise")},
        "says": [text(each) for each in items(kept.get("says"))],
    }


def _contribution(rows: Sequence[Row]) -> list[Row]:
    """What each client added to the fall of the held-out loss, in nats, over the scored rounds."""
    found: dict[str, Row] = {}
    for row in rows:
        given = table(row.get("contribution"))
        measures = {key: numbers(given.get(key)) for key in ("leave_one_out", "projection")}
        for client in dict.fromkeys(name for by in measures.values() for name in by):
            sums = found.setdefault(
                client, {"client": client, "rounds": 0, "leave_one_out": None, "projection": None}
            )
            sums["rounds"] += 1
            for key, by in measures.items():
                if (value := by.get(client)) is not None:
                    sums[key] = (sums[key] or 0.0) + value
    return sorted(found.values(), key=lambda each: -(each["projection"] or 0.0))


def _curves(
    path: Path, rows: Sequence[Row], settings: Mapping[str, Any], compared: Mapping[str, Any]
) -> list[Row]:
    """Held-out and training loss by round, of the run and of each run folder inside its comparison."""
    seeds = list(filter(_is_seed, items(compared.get("seeds")))) or [settings["seed"]]
    found = [_curve("federated", seeds[0], rows)]
    for repetition, inner in _arm_folders(path / "compare"):
        seed = seeds[repetition] if repetition < len(seeds) else seeds[0] + repetition
        found.append(_curve(unquote(inner.name), seed, read_rows(inner)))
    several = len({curve["seed"] for curve in found}) > 1
    named = [{**c, "name": f"{c['arm']}, seed {c['seed']}" if several else c["arm"]} for c in found]
    return [curve for curve in named if curve["points"]]


def _arm_folders(path: Path) -> Iterator[tuple[int, Path]]:
    """The run folders in a comparison, each with the number of its repetition."""
    for log in sorted(path.glob(f"seed-*/*/{LOG}"), key=_by_number):
        repetition = log.parent.parent.name.removeprefix("seed-")
        if repetition.isdecimal():
            yield int(repetition), log.parent


def _by_number(path: Path) -> list[str | int]:
    """Sort key that orders numbers in a path by value."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def _is_seed(seed: Any) -> bool:
    return isinstance(seed, int) and not isinstance(seed, bool)


def _curve(arm: str, seed: int, rows: Sequence[Row]) -> Row:
    points = [
        {
            "round": row["round"],
            "heldout": number(table(row.get("heldout")).get("loss")),
            "train": number(row.get("loss")),
        }
        for row in rows
    ]
    scored = [p for p in points if p["heldout"] is not None or p["train"] is not None]
    return {"arm": arm, "seed": seed, "points": scored}


def _planned(path: Path, rows: Sequence[Row]) -> list[Row]:
    """What the run was expected to take, and what it took."""
    return [
        {
            "name": figure.name,
            "form": "bytes" if figure.unit == "bytes" else "duration",
            "planned": figure.planned,
            "measured": figure.measured,
            "off": figure.off,
        }
        for figure in figures(path, rows)
    ]


def _totals(rows: Sequence[Row]) -> Row:
    def total(*keys: str) -> float | int:
        return sum(_number_at(row, keys) or 0 for row in rows)

    told = not any(hides_amounts(row) for row in rows if row["round"] > 0)
    return {
        "rounds": max((row["round"] for row in rows), default=0),
        "bytes_down": total("bytes_down"),
        "bytes_up": total("bytes_up"),
        "seconds": total("seconds", "round"),
        "examples": total("examples") if told else None,
        "steps": total("steps") if told else None,
        "tokens": total("tokens", "trained") if told else None,
        "failures": sum(len(table(row.get("failures"))) for row in rows),
        "late": sum(len(items(row.get("late"))) for row in rows),
        "dropped": sum(len(items(row.get("dropped"))) for row in rows),
        "carried": sum(len(table(row.get("carried"))) for row in rows),
    }


def _number_at(row: Any, keys: Sequence[str]) -> float | int | None:
    for key in keys:
        row = table(row).get(key)
    return number(row)


def _scores(path: Path) -> Row | None:
    """Benchmark tasks and refusals of the folder's arms; None if there are none."""
    kept = score_file.read(path)
    rows = [_score(row) for row in kept]
    if not rows:
        return None
    return {
        "arms": list(dict.fromkeys(arm for row in rows for arm in row["arms"])),
        "asked_by": asked_by(kept),
        "rows": rows,
    }


def _score(row: Row) -> Row:
    federated = table(table(row.get("differences")).get(score_file.FEDERATED))
    return {
        **{key: text(row.get(key)) for key in ("name", "label", "kind")},
        "how": words(row),
        "share": row.get("share") is True,
        "lower_is_better": row.get("lower_is_better") is True,
        "documents": number(row.get("documents")),
        "arms": _intervals(row["arms"]),
        "difference": interval(federated),
        **{key: number(federated.get(key)) for key in ("p", "p_holm")},
        "says": text(table(row.get("says")).get(score_file.FEDERATED)),
    }


def _judge(compared: Mapping[str, Any]) -> Row | None:
    given = table(compared.get("judge"))
    if not given:
        return None
    counts = ("questions", "asked", "calls", "tokens", "unreadable", "refused", "wordless", "left")
    rows, strengths = (
        [_verdicts(table(row)) for row in items(given.get(key))] for key in ("rows", "strengths")
    )
    return {
        **{key: text(given.get(key)) for key in ("protocol", "model")},
        **{key: number(given.get(key)) for key in counts},
        "rows": [row for row in rows if row],
        "strengths": [row for row in strengths if row],
        "says": [text(sentence) for sentence in items(given.get("says"))],
    }


def _verdicts(row: Row) -> Row:
    """A row of the judge's tables without its sentence, which is in `says`."""
    named = {key: value for key, value in row.items() if key not in ("says", "category")}
    found = {key: _verdict(value) for key, value in named.items()}
    by_category = _intervals(row.get("category"))
    return {**found, **({"category": by_category} if by_category else {})}


def _verdict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return interval(value)
    return number(value) if value is None or isinstance(value, int | float) else text(value)


def _samples(compared: Mapping[str, Any]) -> list[Row]:
    return [single_run.sample(table(given)) for given in items(compared.get("samples"))]
