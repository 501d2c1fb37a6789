"""The arms of a comparison: base, each client alone, all data in one place, federated, and variants of it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shepherd.errors import SettingsError
from shepherd.io import paths

Kind = Literal["base", "start", "local", "centralised", "federated", "variant"]
Way = Literal["steps", "examples"]
WAYS: tuple[Way, ...] = ("steps", "examples")
BY_STEPS = "centralised-steps"
BASE, START, CENTRALISED, FEDERATED, LOCAL = "base", "start", "centralised", "federated", "local-"
UNTRAINED = (BASE, START)
"""Arms that a comparison does not train: the base, and the adapter that the run began from."""
SCORES = "scores"  # name of a folder beside those of the arms
# a variant answers the same questions, with an adapter of the same shape, over the same base
FIXED = ("seed", "output", "model", "adapter", "data", "split", "evaluation", "tracking", "judge")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of training.

    client: the client of a local arm. overrides: changes of a variant to the run file. match: how long a
    local or centralised arm trains: as many consecutive optimiser steps as a client that is in every round
    ("steps"), or as many examples as the federated arm saw over all its clients ("examples"). twin: whether
    another client's name differs only in case, which some file systems ignore.
    """

    name: str
    kind: Kind
    client: str | None = None
    overrides: tuple[str, ...] = ()
    match: Way = "steps"
    twin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareSpec:
    """The arms to compare.

    locals: clients that also tune alone; None is all of them. variants: "name: key=value ..." each.
    match: how long the other arms train, see `Arm`; "both" trains the centralised arm in both ways, which
    costs as many examples as the federated arm again, and local arms by steps.
    seeds: number of trainings of each arm, with consecutive seeds.
    """

    locals: tuple[str, ...] | None = None
    variants: tuple[str, ...] = ()
    match: Literal["both", "steps", "examples"] = "both"
    seeds: int = 1


def arms(spec: CompareSpec, clients: Sequence[str], started: bool = False) -> tuple[Arm, ...]:
    """List the arms of a comparison of a run with these clients.

    Args:
        started: whether the run began from an adapter, from which all arms begin then.

    Raises:
        SettingsError: a client is unknown, or a variant cannot be read, is named twice, or changes a key that
            all arms share.
    """
    names = tuple(clients) if spec.locals is None else _local_clients(spec.locals, clients)
    twins = paths.alike(clients)
    both = spec.match == "both"
    local: Way = "steps" if spec.match == "both" else spec.match
    central: Way = "examples" if spec.match == "both" else spec.match
    found = (
        Arm(name=BASE, kind="base"),
        *[Arm(name=START, kind="start")] * started,
        *(
            Arm(name=LOCAL + name, kind="local", client=name, match=local, twin=name in twins)
            for name in names
        ),
        Arm(name=CENTRALISED, kind="centralised", match=central),
        *[Arm(name=BY_STEPS, kind="centralised", match="steps")] * both,
        Arm(name=FEDERATED, kind="federated"),
        *map(variant, spec.variants),
    )
    seen: set[str] = set()
    for arm in found:
        name = arm.name.lower() if arm.kind == "variant" else arm.name  # its folder has no other name
        if name in seen:
            raise SettingsError(f"two arms are called {arm.name!r}; give each a name of its own")
        seen.add(name)
    return found


def _local_clients(wanted: Sequence[str], clients: Sequence[str]) -> tuple[str, ...]:
    """The clients of these names, each once; a name may be typed in another Unicode form than a file has it.

    Raises:
        SettingsError: there is no client of a name.
    """
    known, forms = set(clients), {unicodedata.normalize("NFC", name): name for name in clients}
    found = [name if name in known else forms.get(unicodedata.normalize("NFC", name)) for name in wanted]
    if None in found:
        some = ", ".join(clients[:8]) + (", ..." if len(clients) > 8 else "")
        raise SettingsError(
            f"local arm {wanted[found.index(None)]!r} is not a client of this run; its clients are {some}"
        )
    return tuple(dict.fromkeys(name for name in found if name is not None))


def variant(text: str) -> Arm:
    """Parse a variant "name: key=value ...".

    Raises:
        SettingsError: the text has another form, or changes a key that all arms share.

    >>> variant("ffa: algorithm.name=ffa_lora tuning.max_steps=3").overrides
    ('algorithm.name=ffa_lora', 'tuning.max_steps=3')
    """
    name, colon, rest = text.partition(":")
    name, overrides = name.strip(), tuple(rest.split())
    if name == SCORES:
        raise SettingsError(
            f"an arm cannot be called {SCORES!r}, the name of the folder of scores; give another name"
        )
    if not colon or not overrides or not re.fullmatch(r"[\w.-]+", name) or name.startswith((".", LOCAL)):
        raise SettingsError(
            f'arm {text!r} is not "name: key=value ..."; write "ffa: algorithm.name=ffa_lora"'
        )
    for override in overrides:
        key = override.partition("=")[0]
        if key.split(".")[0] in FIXED or key == "tuning.loss_on":
            raise SettingsError(
                f"arm {name!r} changes {key}, but arms share data, base, adapter shape and questions;"
                " compare two runs for that"
            )
    return Arm(name=name, kind="variant", overrides=overrides)
