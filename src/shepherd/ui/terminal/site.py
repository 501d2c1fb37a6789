"""What a site would train on and what would leave it, for its owner's terminal alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TextIO

from shepherd.silos.site import released
from shepherd.silos.site.preview import Found, FoundBase, FoundData, Leaving
from shepherd.ui.terminal import data as shown
from shepherd.ui.terminal.console import PlainConsole, styled


def report(found: Found, stream: TextIO | None = None) -> bool:
    """Print samples, counts, bases, the policy, what would leave, and what has to be mended.

    Returns:
        Whether the site is ready: there is nothing to mend.
    """
    console = PlainConsole(stream)
    if found.data is not None:
        _data(console, found, found.data, stream)
    _title(console, "Bases that may be loaded")
    _listed(console, _bases(found.bases))
    _title(console, "Your policy")
    _listed(console, found.policy)
    _title(console, "What would leave")
    _listed(console, _leaving(found))
    if found.notes:
        _title(console, "To think about")
        _listed(console, found.notes)
    if found.faults:
        _title(console, "To mend")
        _listed(console, found.faults, "red")
    else:
        console.print(styled("\nNothing has to be mended: this site is ready to join.", "bold green"))
    return not found.faults


def _title(console: PlainConsole, text: str) -> None:
    console.print(styled(f"\n{text}", "bold underline"))


def _listed(console: PlainConsole, sentences: Iterable[str], style: str = "") -> None:
    for sentence in sentences:
        console.print(styled(f" · {sentence}", style), soft_wrap=True)


def _data(console: PlainConsole, found: Found, data: FoundData, stream: TextIO | None) -> None:
    table = found.run.data
    _title(console, f"What would be trained on, of {table.source}")
    if data.report is not None:
        shown.report(data.report, stream)
    held = sum(data.heldout.values())
    _listed(
        console,
        [
            f"{data.examples:,} examples are trained on; {held:,} are held out: {_counted(data.heldout)}.",
            f"{data.duplicates:,} duplicates and {len(data.skipped):,} unreadable rows are left out.",
            *data.notes,
            f"A run chooses the template (here {table.template}) and the longest example (here"
            f" {table.max_tokens} tokens) of those that your policy allows; [scoring] alone decides what is"
            " held out and how it is scored.",
        ],
    )


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _bases(bases: Iterable[FoundBase]) -> Iterable[str]:
    for base in bases:
        if base.digest:
            verdict = "other than you named" if base.fault else "as you named it"
            yield f"{base.name} in {base.folder}: {base.digest}, {verdict}"
        else:
            yield f"{base.name}: not found"


def _leaving(found: Found) -> Iterable[str]:
    policy = found.site.policy
    yield "On joining: this site's name, how many examples it trains on, and the version of this program."
    if found.leaving is not None:
        yield from _tensors(found.leaving)
    names = [name for name in policy.metrics if name != "heldout"]
    yield f"Beside them one weight, and these numbers: {', '.join(names) or 'none'}."
    if "loss" in policy.metrics:
        yield (
            f"A loss is a mean over {policy.min_examples} examples or more, to {released.DIGITS} digits after"
            f" the point; each token counts at most {released.CAP_NATS:g} nats in it."
        )
    if "heldout" in policy.metrics and found.data is not None and found.data.scored:
        yield (
            "For a score, once a round: the mean loss on held-out examples, and how many tokens they answer"
            f" with, of these many examples: {_counted(found.data.scored)}. Names of smaller categories stay."
        )
    yield (
        "No message holds text of an example. But an update is made of your examples: who studies it may draw"
        " out what single ones say, or whether one was among them. Your policy bounds how many examples are"
        " behind it, and how often it is asked; only noise or secure aggregation would bound what it tells."
    )


def _tensors(leaving: Leaving) -> Iterable[str]:
    yield (
        f"Each round, {len(leaving.tensors)} tensors of float32 at rank {leaving.rank} over {leaving.base}:"
        f" {leaving.bytes:,} bytes, the change of the adapter."
    )
    groups: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for name, shape in leaving.tensors.items():
        groups.setdefault((_kind(name), shape), []).append(name)
    for (kind, (rows, columns)), names in groups.items():
        yield f"{len(names)} x {kind} ({rows}, {columns}), such as {names[0]}"


def _kind(name: str) -> str:
    """The last words of a tensor's name: q_proj.lora_A.weight."""
    return ".".join(name.split(".")[-3:])
