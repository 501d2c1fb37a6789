"""What a worker needs to load the base that this process has loaded."""

from __future__ import annotations

from dataclasses import dataclass

from shepherd.consent import Consent
from shepherd.model import base as bases
from shepherd.model.base import Base, Proof
from shepherd.settings import AdapterTable, ModelTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a worker loads its base from, and how."""

    model: ModelTable
    adapter: AdapterTable
    device: str
    proof: Proof
    """Result of this process's proof of the base, which workers do not repeat."""

    @classmethod
    def of(cls, base: Base) -> Source:
        """The source of a base that this process has loaded.

        A worker computes in the same number type, whatever its own device would choose: else a run would
        have other bits there, and after it is resumed with the type that was written down.
        """
        table = base.table.model_copy(update={"dtype": str(base.dtype).removeprefix("torch.")})
        return cls(model=table, adapter=base.adapter, device=str(base.device), proof=base.proof)

    def load(self, consent: Consent) -> Base:
        """Load the base.

        Raises:
            BaseError: as `model.base.load`.
        """
        return bases.load(self.model, self.adapter, device=self.device, proof=self.proof, consent=consent)
