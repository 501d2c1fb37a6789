"""The script for a GPU works before there is one: rehearsed on the processor, every row, sides that agree."""

from __future__ import annotations

import json
from typing import Any

import torch

from benchmarks import gpu
from shepherd.errors import BaseError


def rehearsed(place, *more: str) -> int:
    return gpu.main(["--rehearse", "--threads", str(torch.get_num_threads()), "--json", str(place), *more])


def raising(error: Exception) -> Any:
    def act(*args: Any, **options: Any) -> Any:
        raise error

    return act


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_rehearsed_it_prints_and_writes_every_row(tmp_path, capsys) -> None:
    place = tmp_path / "gpu.json"
    threads = str(torch.get_num_threads())
    assert gpu.main(["--rehearse", "--threads", threads, "--json", str(place)]) == 0
    figures = json.loads(place.read_text())["figures"]
    assert list(figures["cases"]) == [case.name for case in gpu.REHEARSED]
    for case in gpu.REHEARSED:
        sides = figures["cases"][case.name]["sides"]
        assert list(sides) == [gpu.RECIPE, *(gpu.ENGINE.format(size) for size in case.stacks)]
        assert all(len(side["seconds"]) == 1 and side["tokens_per_second"] > 0 for side in sides.values())
    assert "tiny 4 bits: engine, stack of 1" in capsys.readouterr().out


def without_recipe(monkeypatch) -> None:
    """Its turns take seconds, and one case is enough."""
    monkeypatch.setattr(gpu.recipe, "one_round", raising(OUT_OF_MEMORY))
    monkeypatch.setattr(gpu, "REHEARSED", gpu.REHEARSED[:1])


def engine_of(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [side for name, side in case["sides"].items() if name != gpu.RECIPE]


def test_a_side_and_a_case_that_fail_are_rows_and_the_others_are_measured(
    tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(gpu.recipe, "one_round", raising(OUT_OF_MEMORY))
    monkeypatch.setattr(gpu, "_quantise", raising(BaseError("4 bits are not to be had")))
    assert rehearsed(tmp_path / "gpu.json") == 1
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert "partial" not in written
    cases = written["figures"]["cases"]
    sides = cases["tiny"]["sides"]
    assert "out of memory" in sides[gpu.RECIPE]["failed"]
    for size in gpu.REHEARSED[0].stacks:
        assert len(sides[gpu.ENGINE.format(size)]["seconds"]) == 1
    assert "4 bits are not to be had" in cases["tiny 4 bits"]["failed"]
    printed = capsys.readouterr().out
    assert "tiny: recipe failed: OutOfMemoryError: CUDA out of memory" in printed
    assert "tiny 4 bits failed: BaseError: 4 bits are not to be had" in printed
    assert "tiny: engine, stack of 2" in printed


def test_a_side_that_fails_in_a_later_turn_keeps_what_it_had(tmp_path, capsys, monkeypatch) -> None:
    whole, turns = gpu._engine_round, []
    without_recipe(monkeypatch)

    def second_fails(*args: Any) -> Any:
        turns.append(args)
        return raising(OUT_OF_MEMORY)() if len(turns) == 3 else whole(*args)

    monkeypatch.setattr(gpu, "_engine_round", second_fails)
    assert rehearsed(tmp_path / "gpu.json") == 1
    sides = json.loads((tmp_path / "gpu.json").read_text())["figures"]["cases"]["tiny"]["sides"]
    first, second = (sides[gpu.ENGINE.format(size)] for size in gpu.REHEARSED[0].stacks)
    assert "warm_up_s" in first
    assert "out of memory" in first["failed"]
    assert len(second["seconds"]) == 1


def test_a_proof_that_refuses_ends_nothing(tmp_path, capsys, monkeypatch) -> None:
    without_recipe(monkeypatch)
    monkeypatch.setattr(gpu, "CASES", gpu.REHEARSED)  # whose first is proven
    monkeypatch.setattr(gpu, "verify_packing", raising(BaseError("its answers differ")))
    assert rehearsed(tmp_path / "gpu.json") == 1
    cases = json.loads((tmp_path / "gpu.json").read_text())["figures"]["cases"]
    assert cases["tiny"]["proof"]["failed"] == "BaseError: its answers differ"
    assert all(len(side["seconds"]) == 1 for side in engine_of(cases["tiny"]))
    assert "tiny: the proof failed: BaseError: its answers differ" in capsys.readouterr().out


def test_a_pass_is_as_long_as_memory_allows(tmp_path, monkeypatch) -> None:
    without_recipe(monkeypatch)
    monkeypatch.setattr(gpu.memory, "micro_batch", lambda base: 16_384)
    monkeypatch.setattr(gpu.memory, "bytes_per_token", lambda base: 2**20)
    monkeypatch.setattr(gpu.memory, "free_bytes", lambda device: 200 * 2**20)
    rehearsed(tmp_path / "gpu.json")
    sides = json.loads((tmp_path / "gpu.json").read_text())["figures"]["cases"]["tiny"]["sides"]
    assert sides[gpu.ENGINE.format(2)]["micro_batch_tokens"] == 120


def test_on_a_gpu_it_writes_without_being_asked() -> None:
    options = gpu.parsed(["--threads", "1"])
    assert options.json.name == "gpu.json"
    assert gpu.parsed(["--rehearse"]).json is None
    assert gpu.parsed(["--json", "mine.json"]).json.name == "mine.json"


def test_what_there_is_no_time_for_is_said_and_the_rest_is_kept(tmp_path, capsys) -> None:
    place = tmp_path / "gpu.json"
    threads = str(torch.get_num_threads())
    assert gpu.main(["--rehearse", "--threads", threads, "--limit", "0", "--json", str(place)]) == 0
    assert "tiny was skipped: no time was left" in capsys.readouterr().out
    assert json.loads(place.read_text())["figures"]["peak_tflops"] > 0


def test_without_a_gpu_it_says_so(capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--threads", str(torch.get_num_threads())]) == 0
    assert "skipped: a GPU that PyTorch can use" in capsys.readouterr().out


def test_the_cases_are_those_that_a_gpu_must_show() -> None:
    first, *others = gpu.CASES
    assert (first.name, first.stacks, first.batch) == ("1B bfloat16", (1, 4, 16), 32)
    assert {case.name for case in others} == {"7B bfloat16", "7B 4 bits", "1B 4 bits"}
