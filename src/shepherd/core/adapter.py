"""LoRA factors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shepherd.core.payload import Payload, frozen, require_same_layout

Array = NDArray[np.float32]
FLOAT32 = np.dtype(np.float32)


def is_a(name: str) -> bool:
    """Whether a tensor is the factor A of a module, (r, in).

    >>> is_a("q_proj.lora_A.weight"), is_a("q_proj.lora_B.weight"), is_a("lora_Adapted.weight")
    (True, False, False)
    """
    return "lora_A" in name.split(".")


def is_b(name: str) -> bool:
    """Whether a tensor is the factor B of a module, (out, r).

    >>> is_b("q_proj.lora_B.weight"), is_b("q_proj.lora_A.weight")
    (True, False)
    """
    return "lora_B" in name.split(".")


class Adapter(Payload):
    """LoRA factors by PEFT name: `(r, in)` for A, `(out, r)` for B; float32; read-only.

    Names are PEFT's state-dict keys without the adapter's own name, for example
    `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`. The arrays are copies where the
    caller's were writable, so that nothing outside can change an adapter.

    >>> a = Adapter({"q.lora_A.weight": [[1, 2]], "q.lora_B.weight": [[0], [0]]})
    >>> a["q.lora_A.weight"].dtype, len(a), a.nbytes
    (dtype('float32'), 2, 16)
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def __getitem__(self, name: str) -> Array: ...

    @staticmethod
    def _convert(name: str, tensor: ArrayLike) -> Array:
        return frozen(tensor, FLOAT32)

    def plus(self, other: Mapping[str, ArrayLike], scale: float = 1.0) -> Adapter:
        """Return self + scale * other, tensor by tensor.

        Raises:
            AdapterError: the names or shapes of the two differ.
        """
        require_same_layout(self, other)
        return Adapter({n: t + np.float32(scale) * other[n] for n, t in self.items()})  # type: ignore[operator]
