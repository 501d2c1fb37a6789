"""What a client does in a step, beside the algorithm: the objective and the optimiser."""

from __future__ import annotations

from typing import NamedTuple

from shepherd.training.objective import Objective
from shepherd.training.objectives import sft
from shepherd.training.optimiser import Optimiser
from shepherd.training.optimisers import adamw


class LocalTraining(NamedTuple):
    """A local optimiser and a local objective."""

    optimiser: Optimiser
    objective: Objective


USUAL = LocalTraining(adamw.build(adamw.Config()), sft.build(sft.Config()))
"""Supervised tuning with AdamW."""
