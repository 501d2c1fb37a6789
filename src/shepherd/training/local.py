"""Local training: the objective and the optimiser of a client's steps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import NamedTuple

from shepherd import plugins
from shepherd.core import IN_PYTHON, Algorithm
from shepherd.data import split as splits
from shepherd.errors import SettingsError
from shepherd.plugins import Kind
from shepherd.settings import RunSettings, TuningTable
from shepherd.training import objectives, optimisers
from shepherd.training.objective import Objective
from shepherd.training.objectives import sft
from shepherd.training.optimiser import Optimiser
from shepherd.training.optimisers import adamw

OPTIMISER = Kind(name="optimiser", folder=optimisers, type=Optimiser, chosen_by="[tuning.optimiser] name")
OBJECTIVE = Kind(name="objective", folder=objectives, type=Objective, chosen_by="[tuning.objective] name")


class LocalTraining(NamedTuple):
    """The local optimiser and the local objective of a run."""

    optimiser: Optimiser
    objective: Objective

    @property
    def paired(self) -> bool:
        """Whether two answers to each prompt are trained on."""
        return self.objective.group_size == 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenTraining:
    """Parts of the local training given as values, each in place of the one that the run file names.

    Raises:
        SettingsError: a value is of another type.
    """

    optimiser: Optimiser | None = None
    objective: Objective | None = None

    def __post_init__(self) -> None:
        for name, kind in (("optimiser", OPTIMISER), ("objective", OBJECTIVE)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind.type):
                raise SettingsError(
                    f"{name}= got a {type(value).__name__}; give a value of"
                    f" {kind.type.__module__}.{kind.type.__name__}, such as build(Config()) of a plug-in"
                    f" returns, or name a module in {kind.chosen_by}"
                )

    @property
    def given(self) -> list[str]:
        """Names of the parts that are given."""
        return [each.name for each in fields(self) if getattr(self, each.name) is not None]


NAMED_TRAINING = GivenTraining()
"""No part is given: the run file names both."""
DEFAULT_TRAINING = LocalTraining(adamw.build(adamw.Config()), sft.build(sft.Config()))
"""The default: supervised fine-tuning with AdamW."""


def local_training(
    table: TuningTable, allowed: Collection[str] = (), parts: GivenTraining = NAMED_TRAINING
) -> LocalTraining:
    """The optimiser and objective that `[tuning.optimiser]` and `[tuning.objective]` name.

    Args:
        parts: values that stand in for those that the table names.

    Raises:
        PluginError: as `plugins.built`.
        SettingsError: as `plugins.built`, or the objective draws other groups of examples than pairs, which
            no reader of data supports; or it draws pairs, and the prompts are trained as well.
    """
    found = LocalTraining(
        parts.optimiser or plugins.built(OPTIMISER, table.optimiser, allowed),
        parts.objective or plugins.built(OBJECTIVE, table.objective, allowed),
    )
    if found.objective.group_size > 2:
        raise SettingsError(
            f"the objective {table.objective.name!r} draws {found.objective.group_size} examples together,"
            ' and data come one by one or in pairs of answers; set tuning.objective.name = "sft"'
        )
    if found.objective.group_size == 2 and table.loss_on != "responses":
        raise SettingsError(
            f'tuning.loss_on = "{table.loss_on}" trains on prompts, which are the same for both answers of a'
            f' pair; with the objective {table.objective.name!r}, set tuning.loss_on = "responses"'
        )
    return found


def require_single(objective: Objective, doing: str) -> None:
    """Raise SettingsError if an objective compares two answers, which what is being done does not read.

    Args:
        doing: what is being done, as the subject of a sentence.
    """
    if objective.group_size > 1:
        raise SettingsError(
            f"{doing} reads examples one by one, and the objective of this run compares two answers to each"
            ' prompt; use a run with [tuning.objective] name = "sft"'
        )


def require_separate(objective: Objective) -> None:
    """Raise SettingsError if an objective draws several examples together, of which noise protects none."""
    if objective.group_size > 1:
        raise SettingsError(
            f"[privacy.examples] protects single examples, and the objective draws {objective.group_size}"
            ' together; set [tuning.objective] name = "sft", or remove [privacy.examples]'
        )


def with_given(settings: RunSettings, parts: GivenTraining) -> RunSettings:
    """The settings with `plugins.IN_PYTHON` as the name of each part that is given as a value."""
    tables = {name: type(getattr(settings.tuning, name))(name=IN_PYTHON) for name in parts.given}
    return settings.model_copy(update={"tuning": settings.tuning.model_copy(update=tables)})


def given(settings: RunSettings) -> list[str]:
    """Names of the parts of a run's local training that were given as values."""
    return [name for name in LocalTraining._fields if getattr(settings.tuning, name).name == IN_PYTHON]


def require_steps_of(algorithm: Algorithm, optimiser: Optimiser, settings: RunSettings) -> None:
    """Raise SettingsError if the algorithm is right only for SGD, and the local optimiser is another."""
    if algorithm.needs_sgd and not optimiser.plain:
        name = settings.tuning.optimiser.name
        momentum = " with momentum" * ("momentum" in settings.tuning.optimiser.own)
        raise SettingsError(
            f"the algorithm {settings.algorithm.name!r} is right only for local steps of plain SGD, and"
            f' tuning.optimiser is {name!r}{momentum}; set [tuning.optimiser] name = "sgd" without'
            ' momentum and a larger tuning.learning_rate, such as 0.1, or [algorithm] name = "fedavg"'
        )


def require_at_server(settings: RunSettings, allowed: Collection[str] = ()) -> None:
    """Raise the errors of `require`, as far as a server can know: it imports no training of a site."""
    plugins.require(settings, allowed)
    if settings.privacy.examples is not None and settings.tuning.objective.name in plugins.names(objectives):
        require_separate(plugins.built(OBJECTIVE, settings.tuning.objective))
    if settings.tuning.optimiser.name in plugins.names(optimisers):
        made: Optimiser = plugins.built(OPTIMISER, settings.tuning.optimiser)
        require_steps_of(plugins.algorithm(settings.algorithm, allowed), made, settings)


def require(settings: RunSettings, allowed: Collection[str] = ()) -> None:
    """Raise the errors of `completed` if a part of a run cannot be built, before anything is loaded."""
    plugins.require(settings, allowed)
    splits.rule(settings.split, allowed)
    training = local_training(settings.tuning, allowed)
    require_steps_of(plugins.algorithm(settings.algorithm, allowed), training.optimiser, settings)
    if settings.privacy.examples is not None:
        require_separate(training.objective)


def completed(settings: RunSettings, allowed: Collection[str] = ()) -> RunSettings:
    """The settings with every named part's defaults filled in, so that a later version keeps them.

    Raises:
        PluginError, SettingsError: as `plugins.built`.
    """
    settings, tuning = plugins.completed(settings, allowed), settings.tuning
    split = plugins.completed_table(splits.SPLIT, settings.split, allowed)
    parts = {
        "optimiser": plugins.completed_table(OPTIMISER, tuning.optimiser, allowed),
        "objective": plugins.completed_table(OBJECTIVE, tuning.objective, allowed),
    }
    return settings.model_copy(update={"split": split, "tuning": tuning.model_copy(update=parts)})
