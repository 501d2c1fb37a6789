"""Print what a site would train on and what would leave it, for its owner only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TextIO

from shepherd.silos.site import preview, released
from shepherd.silos.site.preview import BasePreview, DataPreview, Found, OutgoingUpdate
from shepherd.ui.terminal.console import PlainConsole, styled
from shepherd.ui.terminal.data_tables import print_lint_report


def print_preview(found: Found, stream: TextIO | None = None) -> bool:
    """Print samples, counts, bases, the policy, what would leave, and what has to be fixed.

    Returns:
        Whether the site is ready to join: there is nothing to fix.
    """
    console = PlainConsole(stream)
    if found.data is not None:
        _print_data(console, found, found.data, stream)
    _print_title(console, "Bases that may be loaded")
    _print_list(console, _bases(found.bases))
    _print_title(console, "Your policy")
    _print_list(console, found.policy)
    if found.spent:
        _print_title(console, "Your privacy budget")
        _print_list(console, found.spent)
    _print_title(console, "What would leave")
    _print_list(console, _what_leaves(found))
    if found.notes:
        _print_title(console, "Notes")
        _print_list(console, found.notes)
    if found.faults:
        _print_title(console, "To fix")
        _print_list(console, found.faults, "red")
    else:
        console.print(styled("\nNothing has to be fixed: this site is ready to join.", "bold green"))
    return not found.faults


def _print_title(console: PlainConsole, text: str) -> None:
    console.print(styled(f"\n{text}", "bold underline"))


def _print_list(console: PlainConsole, sentences: Iterable[str], style: str = "") -> None:
    for sentence in sentences:
        console.print(styled(f" · {sentence}", style), soft_wrap=True)


def _print_data(console: PlainConsole, found: Found, data: DataPreview, stream: TextIO | None) -> None:
    table = found.run.data
    _print_title(console, f"Training data from {table.source}")
    if data.report is not None:
        print_lint_report(data.report, stream)
    heldout = sum(data.heldout.values())
    _print_list(
        console,
        [
            f"{data.examples:,} examples are trained on; {heldout:,} are held out:"
            f" {_count_list(data.heldout)}.",
            f"{data.duplicates:,} duplicates and {len(data.skipped):,} unreadable rows are left out.",
            *(f"{sentence}." for sentence in data.repeated),
            *(f"{sentence}." for sentence in data.left_out),
            *data.notes,
            f"A run chooses the template (here {table.template}) and the longest example (here"
            f" {table.max_tokens} tokens) within your policy; only [scoring] decides what is held out and how"
            " it is scored.",
        ],
    )


def _count_list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _bases(bases: Iterable[BasePreview]) -> Iterable[str]:
    for base in bases:
        if base.digest:
            verdict = "not the digest in site.toml" if base.fault else "as in site.toml"
            yield f"{base.name} in {base.folder}: {base.digest}, {verdict}"
        else:
            yield f"{base.name}: not found"


def _what_leaves(found: Found) -> Iterable[str]:
    policy = found.site.policy
    yield (
        "On joining: this site's name, how many examples and at what rank it trains, and the version of this"
        " program."
    )
    secure = found.run.secure
    if found.leaving is not None:
        yield from _tensors(found.leaving) if secure is None else _masked(found.leaving, secure.ring_bits)
    names = [name for name in policy.metrics if name != "heldout"]
    if secure is None:
        yield f"With each update, one weight and these numbers: {', '.join(names) or 'none'}."
    if "loss" in policy.metrics and secure is None:
        yield (
            f"A loss is a mean over {policy.min_examples} examples or more, to {released.LOSS_DIGITS} digits"
            f" after the point; each token counts at most {released.CAP_NATS:g} nats in it."
        )
    if "heldout" in policy.metrics and found.data is not None and found.data.scored:
        yield (
            "For a score, once a round: the mean loss on held-out examples and the number of tokens in their"
            f" responses, by category over these many examples: {_count_list(found.data.scored)}. Names of"
            " smaller categories do not leave."
        )
    yield (
        "No message contains text of an example. But an update is computed from your examples: analysing it"
        " may reveal what some of them say, or whether one was among them. Your policy bounds how many"
        " examples are behind an update and how often one is asked for; only noise bounds what it reveals,"
        " and secure sums ([secure] in a run) show it to nobody alone."
    )


def _masked(leaving: OutgoingUpdate, ring_bits: int) -> Iterable[str]:
    count = leaving.bytes // preview.FLOAT32_BYTES
    yield (
        f"Each round, {count:,} whole numbers of {ring_bits} bits, the change of the adapter at rank"
        f" {leaving.rank} over {leaving.base} under masks: {count * ring_bits // 8:,} bytes. The server can"
        " take the masks off the sum over the sites of the round, and off nothing else; no weight and no"
        " number of a visit is sent with it."
    )
    yield (
        "Each round, this site's certificate and two keys of this round, and for each other site shares of"
        " their secrets, which that site alone can read."
    )


def _tensors(leaving: OutgoingUpdate) -> Iterable[str]:
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
    """The last three parts of a tensor's name: q_proj.lora_A.weight."""
    return ".".join(name.split(".")[-3:])
