"""The script for a GPU works before there is one: rehearsed on the processor, every row, sides that agree."""

from __future__ import annotations

import json

import torch

from benchmarks import gpu


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
