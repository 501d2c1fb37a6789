"""What workers are told to load."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shepherd.consent import NOTHING
from shepherd.machine.executors.source import Source
from shepherd.model import base as bases
from shepherd.settings import AdapterTable, ModelTable


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_workers_compute_in_the_number_type_that_was_chosen_here(llama_folder, dtype) -> None:
    """And not in what another device would choose: "auto" is decided once."""
    base = bases.load(ModelTable(base=str(llama_folder)), AdapterTable(rank=3), device="cpu")
    assert base.table.dtype == "auto"
    source = Source.of(replace(base, dtype=dtype))
    assert source.model.dtype == str(dtype).removeprefix("torch.")
    assert source.load(NOTHING).dtype == dtype
