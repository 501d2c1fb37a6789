"""The release gate of a run: whether its adapter is released, and if not, why (`[evaluation.gate]`).

The verdict is made of what is in the run folder each time, so it is never that of older files. A score that
the gate names and nobody measured is a reason, too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd.data import data_folder
from shepherd.errors import FolderError, NotReleased
from shepherd.evaluate.how import How, words
from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.run import checkpoint, folder, hidden, lineage, score_file
from shepherd.run.changes import NO_DIFFERENCE
from shepherd.run.log import read_rows
from shepherd.run.score_file import BASE, FEDERATED, WEIGHTS, Own, digest_of
from shepherd.settings import GateTable, RunSettings
from shepherd.visible import shown_line

Row = Mapping[str, Any]
CARD = "README.md"
SUFFIX = "-audit"
"""What `shepherd audit RUN.toml` adds to the run's output for the folder of its audit."""


@dataclass(frozen=True, slots=True)
class Release:
    """Whether an adapter is released: with no reason against it, it is."""

    asked: bool
    """Whether the run has a gate."""
    reasons: tuple[str, ...] = ()

    @property
    def released(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"asked": self.asked, "released": self.released, "reasons": list(self.reasons)}

    def sentence(self) -> str:
        """The verdict in words; "" without a gate."""
        if not self.asked:
            return ""
        if self.released:
            return "Released: the adapter passes every condition of [evaluation.gate]."
        return f"NOT RELEASED: {'; '.join(self.reasons)}."


NO_GATE = Release(asked=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Score:
    """A score of the base and of this very adapter; the difference is adapter minus base."""

    base: float
    run: float
    low: float | None = None
    high: float | None = None
    lower_is_better: bool = False
    share: bool = True
    way: str = ""
    """How it was measured, where a reader cannot take that for granted."""

    @property
    def drop(self) -> float:
        """How much worse the adapter is than the base; below 0 it is better."""
        return (self.run - self.base) if self.lower_is_better else (self.base - self.run)


def of_run(path: str | Path) -> Release:
    """Judge the final adapter of the run in `path` by the gate of its run file.

    Raises:
        FolderError: there is no run, or a file of it is damaged.
    """
    run = Path(path)
    settings = folder.read_settings(run)
    asks = settings.evaluation.gate.asks
    return Release(asked=asks, reasons=tuple(_reasons(run, settings)) if asks else ())


def require_released(path: Path, verdict: Release, unreleased: bool) -> Release:
    """The verdict on an adapter of the run in `path`, if it is for it, or if somebody has overruled it.

    Raises:
        NotReleased: it is against it, and nobody has.
    """
    if not verdict.released and not unreleased:
        raise NotReleased(
            f"the adapter of {path} is not released: {'; '.join(verdict.reasons)}; fix that, or add"
            " --unreleased to write it all the same, which its card will say"
        )
    return verdict


def settled(path: str | Path) -> Release:
    """Judge as `of_run`, and write the verdict into the card of the run's adapter, where the run has a gate.

    Raises:
        FolderError: as for `of_run`, or the card cannot be written.
    """
    run, verdict = Path(path), of_run(path)
    card = run / "adapter" / CARD
    if verdict.asked and card.is_file():
        with disk_errors(run):
            before = card.read_text(encoding="utf8")
        after = marked(before, verdict)
        if after != before:
            write_atomic(card, after)
    return verdict


def marked(card: str, verdict: Release, more: str = "") -> str:
    """A model card with the verdict in a section of its own; without a gate, with none.

    Args:
        more: a sentence after the verdict.
    """
    text = re.sub(r"^## Release\n.*?(?=^## )", "", card, flags=re.MULTILINE | re.DOTALL)
    if not verdict.asked:
        return text
    said = f"## Release\n\n{inert(' '.join(filter(None, (verdict.sentence(), more))))}\n\n"
    return re.sub(r"^(?=## Licence\n)", lambda _: said, text, count=1, flags=re.MULTILINE)


def inert(text: str) -> str:
    """Text as one line, with Markdown and HTML escaped."""
    return re.sub(r"[\\`*\[\]<>!&~$]", r"\\\g<0>", shown_line(text))


def _reasons(run: Path, settings: RunSettings) -> Iterator[str]:
    gate = settings.evaluation.gate
    every = score_file.current(run) if gate.drops else []
    for name, most in gate.drops.items():
        named = _named(every, name)
        found = _scores(run, settings, name, named)
        if not found:
            ways = "; ".join(dict.fromkeys(words(each.row) for each in named))
            otherwise = f" as the gate takes it, but otherwise ({ways})" if ways else ""
            yield f"{name} is not measured for this adapter{otherwise}: {_how(name)}"
        for each in found:
            if not math.isfinite(each.drop):
                yield f"{name} is no number for the base or for this adapter ({each.base} and {each.run})"
            elif each.drop > most:
                yield _dropped(name, each, most)
    if gate.audit or gate.membership is not None:
        yield from _audited(run, gate)


def _dropped(name: str, found: _Score, most: float) -> str:
    def shown(value: float) -> str:
        return f"{100 * value:.1f}" if found.share else f"{value:.3f}"

    unit = " points" if found.share else ""
    span = ""
    if found.low is not None and found.high is not None:
        span = f" (95% of the difference: {shown(found.low)} to {shown(found.high)})"
    way = f" ({found.way})" if found.way else ""
    return (
        f"{name}{way} is {shown(found.drop)}{unit} worse than the base's, from {shown(found.base)} to"
        f" {shown(found.run)}{span}, and at most {shown(most)} are allowed"
    )


def _how(name: str) -> str:
    """What measures a score."""
    if name == "loss":
        return (
            "hold examples out with data.holdout or evaluation.data; of a run that began with an adapter, run"
            " `shepherd compare`"
        )
    if name in ("right", "exact", "f1", "rouge_l"):
        return "run `shepherd compare` with evaluation.answers"
    if name in ("preference", "margin"):
        return "run `shepherd compare`"
    if name.startswith("refusal"):
        return "run `shepherd evaluate RUN_FOLDER --harmful FILE`"
    if name.startswith("flowertune."):
        return f"run `shepherd evaluate RUN_FOLDER --tasks NAME --format {name.partition('.')[2]}`"
    return f"run `shepherd evaluate RUN_FOLDER --tasks {name.partition('.')[0]}`"


def _named(scores: Sequence[Own], name: str) -> list[Own]:
    """The scores of a name, in every way that they were measured; a task's name alone is its first metric."""
    if found := [each for each in scores if each.row["name"] == name]:
        return found
    of_task = [each for each in scores if each.row.get("kind") == "task" and each.row.get("task") == name]
    return [each for each in of_task if each.row["name"] == of_task[0].row["name"]]


def _scores(run: Path, settings: RunSettings, name: str, named: Sequence[Own]) -> list[_Score]:
    """The scores that the gate takes of this name, of which each must pass."""
    counted = [_of_row(each) for each in named if _counts(each.row, settings)]
    if found := [each for each in counted if each is not None]:
        return found
    other = _compared(run, name) or (_held_out(run) if name == "loss" else None)
    return [other] if other is not None else []


def _counts(row: Row, settings: RunSettings) -> bool:
    """Whether the gate takes a score: of all documents, with the task's own examples in the prompt.

    Refusals are those that the run file asks for, as far as it says. Where it is not known how a score was
    measured, it does not count.
    """
    how, asked = How.of(row), settings.evaluation
    if how is None or how.limited or not how.own_fewshot:
        return False
    if how.prompts is None:
        return True
    return (
        how.max_new_tokens == asked.max_new_tokens
        and (not asked.harmful or how.prompts == Path(asked.harmful).name)
        and (how.judge is None or not settings.judge.model or how.judge == settings.judge.model)
    )


def _of_row(own: Own) -> _Score | None:
    base, value = own.base.get("value"), own.adapter.get("value")
    if base is None or value is None:
        return None
    return _Score(
        base=base,
        run=value,
        low=own.difference.get("low"),
        high=own.difference.get("high"),
        lower_is_better=bool(own.row["lower_is_better"]),
        share=bool(own.row["share"]),
        way=words(own.row),
    )


def _compared(run: Path, name: str) -> _Score | None:
    """This adapter's own held-out score in a finished comparison."""
    found = _json(run / "compare" / "comparison.json")
    digest = _digest(run)
    if not found.get("finished") or digest is None:
        return None
    arms = {arm["name"]: arm for arm in found["arms"]}
    base, arm = arms.get(BASE, {}), arms.get(FEDERATED, {})
    before = base.get("measures", {}).get(name) or {}
    after = score_file.own(arm.get("adapters", ()), arm.get("by_adapter", {}).get(name, ()), digest) or {}
    measure: Row | None = next((each for each in found["measures"] if each["name"] == name), None)
    if measure is None or before.get("value") is None or after.get("value") is None:
        return None
    return _Score(
        base=before["value"],
        run=after["value"],
        low=after["difference"]["low"],
        high=after["difference"]["high"],
        lower_is_better=measure["lower_is_better"],
        share=measure["share"],
    )


def _held_out(run: Path) -> _Score | None:
    """The held-out loss that the run's own rounds measured, of the base and of the adapter that it gives.

    None for a run that began with an adapter: its first loss is that adapter's, and not the base's.
    """
    if folder.read_settings(run).adapter.start:
        return None
    losses = {row["round"]: row["heldout"].get("loss") for row in read_rows(run) if "heldout" in row}
    base, after = losses.get(0), losses.get(_round_of(run))
    if base is None or after is None:
        return None
    return _Score(base=base, run=after, lower_is_better=True, share=False)


def _round_of(run: Path) -> int:
    """The round of the adapter that the run gives: the final one, else that of its last checkpoint."""
    ended = folder.ended(run)
    if ended is not None and (run / "adapter" / WEIGHTS).is_file():
        return ended
    return max(checkpoint.kept(run / "checkpoints"), default=0)


def _digest(run: Path) -> str | None:
    return digest_of(run / "adapter") if (run / "adapter" / WEIGHTS).is_file() else None


def _audited(run: Path, gate: GateTable) -> Iterator[str]:
    audits = list(_audits(run))
    if not audits:
        yield "there is no leak audit of this adapter: run `shepherd audit RUN_FOLDER`"
        return
    if any(each.get("contradicted") for each in audits):
        yield "the leak audit contradicts the epsilon that the run claims"
    if gate.audit and hidden.of_folder(run) and not any(each.get("canaries") for each in audits):
        yield (
            "the run claims an epsilon, which only an audit with canaries tests: run `shepherd audit"
            " RUN.toml` with its run file"
        )
    if gate.membership is None:
        return
    found = [auc for each in audits if (auc := _auc(each)) is not None]
    if not found:
        yield "the leak audit compared no training examples with held-out ones; hold examples out"
    elif (worst := max(each["value"] for each in found)) > gate.membership:
        yield (
            f"the leak audit tells training examples from held-out ones with AUC {worst:.3f}, and at most"
            f" {gate.membership:.3f} is allowed"
        )


def _audits(run: Path) -> Iterator[Row]:
    """The audits of the run's adapter, and of a training like it with canaries in its data."""
    of_adapter = _json(run / "audit" / "audit.json")
    if of_adapter.get("adapter") and of_adapter["adapter"] == _digest(run):
        yield of_adapter
    other = run.parent / f"{run.name}{SUFFIX}"
    of_file = _json(other / "audit.json")
    alike = folder.is_run(other / "run") and _same_training(other / "run", run)
    if alike and of_file.get("data") == data_folder.digest(data_folder.load(run / "data")):
        yield of_file


def _same_training(one: Path, other: Path) -> bool:
    """Whether two runs were asked to train the same, from the same adapter; not whether on the same data."""
    first, second = (
        folder.planned(each).model_dump(mode="json", exclude={*NO_DIFFERENCE, "evaluation"})
        for each in (one, other)
    )
    return first == second and lineage.source(one).get("sha256") == lineage.source(other).get("sha256")


def _auc(audit: Row) -> Row | None:
    """The AUC of the released adapter's attack by the loss against the base."""
    scores: Row = audit.get("membership", {}).get("released", {}).get("scores", {})
    found: Row | None = scores.get("reference", {}).get("auc")
    return found


def _json(path: Path) -> Row:
    """The object of a JSON file; empty if there is no such file."""
    with disk_errors(path.parent):
        if not path.is_file():
            return {}
        content = path.read_bytes()
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise FolderError(f"{path} cannot be read ({error}); remove it, and make it again") from error
