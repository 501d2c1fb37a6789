"""The values that travel between clients and server, and the parts of a method. numpy only."""

from shepherd.core.adapter import Adapter, Array
from shepherd.core.aggregation import Aggregation
from shepherd.core.algorithm import Algorithm, Expected, LocalResult, Observer, Step
from shepherd.core.messages import (
    Broadcast,
    ClientInfo,
    Context,
    EndsEarly,
    Failure,
    Federation,
    LocalReport,
    ServerState,
    Update,
    Usable,
    any_update,
)
from shepherd.core.method import IN_PYTHON, NAMED, Method, Parts
from shepherd.core.payload import (
    Layout,
    Payload,
    not_finite,
    require_same_layout,
    require_shapes,
    shapes_of,
)
from shepherd.core.randomness import Draws, FromSystem, Scoped, Seeded, seed_for
from shepherd.core.ranks import corner, of_rank, padded, unpadded
from shepherd.core.selection import Cohort, Draw, Selection, names_at, share_of
from shepherd.core.server_optimiser import ServerOptimiser, moved
from shepherd.core.spending import FixedSize, Poisson, Sampling, Shuffled, Spending, Turns
from shepherd.core.transform import Mechanism, Original, Transform, chain

__all__ = [
    "IN_PYTHON",
    "NAMED",
    "Adapter",
    "Aggregation",
    "Algorithm",
    "Array",
    "Broadcast",
    "ClientInfo",
    "Cohort",
    "Context",
    "Draw",
    "Draws",
    "EndsEarly",
    "Expected",
    "Failure",
    "Federation",
    "FixedSize",
    "FromSystem",
    "Layout",
    "LocalReport",
    "LocalResult",
    "Mechanism",
    "Method",
    "Observer",
    "Original",
    "Parts",
    "Payload",
    "Poisson",
    "Sampling",
    "Scoped",
    "Seeded",
    "Selection",
    "ServerOptimiser",
    "ServerState",
    "Shuffled",
    "Spending",
    "Step",
    "Transform",
    "Turns",
    "Update",
    "Usable",
    "any_update",
    "chain",
    "corner",
    "moved",
    "names_at",
    "not_finite",
    "of_rank",
    "padded",
    "require_same_layout",
    "require_shapes",
    "seed_for",
    "shapes_of",
    "share_of",
    "unpadded",
]
