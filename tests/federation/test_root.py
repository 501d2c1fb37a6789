"""The server's own examples: tuned by a client's visit, whatever else happens in a run."""

from __future__ import annotations

import numpy as np
import pytest
from tests.runs import rows, settings, written

from shepherd.data import data_folder
from shepherd.errors import DataError, SettingsError
from shepherd.overrides import overridden
from shepherd.rounds.loop import next_broadcast
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume


def asked(llama_folder, tmp_path, **tables):
    return settings(
        llama_folder,
        written(tmp_path / "rows.jsonl"),
        tmp_path / "run",
        **{"adapter": {"dropout": 0.0}, "aggregation": {"name": "fltrust"}, **tables},
    )


def with_root(llama_folder, tmp_path, **tables):
    root = written(tmp_path / "root.jsonl", rows(9, seed=5))
    return asked(llama_folder, tmp_path, data={"root": str(root)}, tuning={"max_steps": 2}, **tables)


def test_a_run_by_trust_resumes_to_the_same_bits(llama_folder, tmp_path):
    with open_run(with_root(llama_folder, tmp_path)) as run:
        whole = [state for state, _ in run.rounds()]
        positions = list(run.root.positions)
    assert len(set(positions)) == 3  # each visit goes on in the server's data
    stopped = with_root(llama_folder, tmp_path).model_copy(update={"output": str(tmp_path / "again")})
    with open_run(stopped) as run:
        next(run.rounds())
    (tmp_path / "root.jsonl").unlink()  # the run folder has its own copy
    with resume(tmp_path / "again") as run:
        assert [state.adapter for state, _ in run.rounds()] == [state.adapter for state in whole[1:]]


def test_the_servers_change_is_that_of_a_client_with_its_examples(llama_folder, tmp_path):
    """A run whose first client has the server's examples, from the same broadcast with the same seeds."""
    with open_run(with_root(llama_folder, tmp_path)) as run:
        broadcast = next_broadcast(run.method, run.state, 3)
        first, again = run.root(broadcast), run.root(broadcast)
        assert first == again
        assert first.keys() == run.state.adapter.keys()
        assert any(np.abs(tensor).max() > 0 for tensor in first.values())
        assert not run.simulation.positions  # no client has moved


def test_the_servers_examples_are_tuned_without_the_clients_transforms(llama_folder, tmp_path):
    """What a broadcast carries for these is not read, and the change is not an encoded one."""
    transforms = ["transforms=[{name='clip', norm=1e-3}, {name='quantise', bits=4}]"]
    with open_run(overridden(with_root(llama_folder, tmp_path), transforms)) as run:
        change = run.root(next_broadcast(run.method, run.state, 3))
        assert change.keys() == run.state.adapter.keys()
        assert change.norm() > 1e-2
        assert len(list(run.rounds())) == 3


def test_a_run_without_examples_of_the_server_is_refused_before_it_begins(llama_folder, tmp_path):
    with pytest.raises(SettingsError, match=r"name a file of examples in data\.root"):
        open_run(asked(llama_folder, tmp_path))
    gone = asked(llama_folder, tmp_path, data={"root": str(tmp_path / "gone.jsonl")})
    with pytest.raises(DataError, match=r"gone\.jsonl does not exist; give a file of rows in data\.root"):
        open_run(gone)
    assert not (tmp_path / "run").exists()


def test_a_cohort_too_small_for_the_rule_is_refused_before_it_begins(llama_folder, tmp_path):
    small = asked(llama_folder, tmp_path, aggregation={"name": "krum", "bad": 1})
    with pytest.raises(SettingsError, match=r'a round asks 2 of 4 clients, .* "krum" .* requires 5 usable'):
        open_run(small)


def test_the_servers_examples_are_kept_with_the_run_and_are_nobodys_elses(llama_folder, tmp_path):
    with open_run(with_root(llama_folder, tmp_path)) as run:
        kept = data_folder.load(tmp_path / "run" / "data")
        assert len(kept.root) == len(run.prepared.root) == 9
        assert set(kept.clients) == set(run.prepared.clients)
