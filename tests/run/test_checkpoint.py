import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as tensors_from
from safetensors.numpy import save as bytes_of

from shepherd.core import Adapter, Payload, ServerState
from shepherd.errors import CheckpointError, FolderError
from shepherd.run import checkpoint as checkpoints
from shepherd.run.checkpoint import Checkpoint, latest, load, save
from tests.quadratic import bits, drawn


def made(round=12, **more):
    return Checkpoint(state=ServerState(round=round, adapter=drawn(round), **more))


def full():
    """Something in every place."""
    state = ServerState(
        round=3,
        adapter=drawn(0),
        memory={"momentum": drawn(1), "none": Adapter()},
        transforms=(
            {},
            {"norm": np.float64(0.1), "counts": np.arange(3), "flags": np.array([True])},
            ({"inner": np.asfortranarray(np.arange(6.0).reshape(2, 3))},),
        ),
    )
    notes = {"cursors": {"c0": [3, 1]}, "row": {"loss": 0.1 + 0.2}, "cohort_size": 4, "none": None}
    return Checkpoint(state=state, notes=notes)


def test_everything_comes_back(tmp_path):
    saved = full()
    loaded = load(save(tmp_path, saved, keep=1))
    assert loaded.state.round == 3
    assert bits(loaded.state.adapter) == bits(saved.state.adapter)
    assert {k: bits(a) for k, a in loaded.state.memory.items()} == {
        "momentum": bits(drawn(1)), "none": {},
    }  # fmt: skip
    assert loaded.notes == saved.notes
    nothing, second, (third,) = loaded.state.transforms
    assert nothing == {}
    assert [(second[k].dtype, second[k].shape, second[k].tolist()) for k in second] == [
        (np.float64, (), 0.1), (np.int64, (3,), [0, 1, 2]), (np.bool_, (1,), [True]),
    ]  # fmt: skip
    assert third["inner"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


NAMES = st.text(st.characters(), max_size=8)  # lone surrogates too


@given(st.dictionaries(NAMES, st.binary(min_size=4, max_size=40).map(lambda b: b[: len(b) // 4 * 4])))
def test_bits_and_names_of_any_kind_are_kept(tmp_path_factory, raw):
    adapter = Adapter({name: np.frombuffer(data, dtype=np.float32) for name, data in raw.items()})
    folder = tmp_path_factory.mktemp("any")
    state = ServerState(round=0, adapter=adapter, memory=dict.fromkeys(raw, adapter))
    saved = Checkpoint(state=state)
    loaded = load(save(folder, saved, keep=1))
    assert bits(loaded.state.adapter) == dict(sorted(raw.items()))
    assert {name: bits(a) for name, a in loaded.state.memory.items()} == dict.fromkeys(raw, bits(adapter))


def test_the_last_rounds_are_kept_by_number(tmp_path):
    assert latest(tmp_path / "not there") is None
    for round in (9, 99_999, 100_000, 100_001):
        path = save(tmp_path, made(round), keep=2)
        assert latest(tmp_path) == path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-100000", "round-100001"]
    assert load(path).state.round == 100_001


def test_a_round_that_is_there_is_not_written_over(tmp_path):
    path = save(tmp_path, made(), keep=1)
    with pytest.raises(FolderError, match=r"round-00012 exists already; resume from it or delete it"):
        save(tmp_path, made(), keep=1)
    assert bits(load(path).state.adapter) == bits(made().state.adapter)


def test_later_rounds_are_not_deleted_for_an_earlier_one(tmp_path):
    save(tmp_path, made(9), keep=1)
    path = save(tmp_path, made(5), keep=1)
    assert path.exists()
    assert latest(tmp_path).name == "round-00009"


def test_sums_are_what_sha256sum_reads(tmp_path):
    path = save(tmp_path, full(), keep=1)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=path, check=True)


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("harm", [cut, flip, os.remove, lambda file: file.write_bytes(b"")])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, name, harm):
    save(tmp_path, made(11), keep=2)
    path = save(tmp_path, full_at(12), keep=2)
    harm(path / name)
    if name == "SHA256SUMS" and harm is cut:
        assert load(path).state.round == 12  # the last newline says nothing
        return
    with pytest.raises(CheckpointError, match=rf"{path}/.* delete {path} to continue from round-00011"):
        load(path)
    shutil.rmtree(path)
    assert load(latest(tmp_path)).state.round == 11


def full_at(round):
    return Checkpoint(state=ServerState(round=round, adapter=drawn(0)), notes={"text": "x" * 1000})


def test_the_only_checkpoint_harmed_says_to_start_again(tmp_path):
    path = save(tmp_path, made(), keep=1)
    cut(path / "state.json")
    with pytest.raises(CheckpointError, match=r"state\.json is cut or changed; no other round is kept"):
        load(path)


def test_another_format_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 3)
    path = save(tmp_path, made(), keep=1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 3, but this version reads 2"):
        load(path)


def test_what_a_kill_left_is_no_checkpoint_and_is_swept(tmp_path):
    save(tmp_path, made(1), keep=3)
    left = tmp_path / ".unfinished-round-00002"
    left.mkdir()
    (left / "tensors.safetensors").write_bytes(b"half")
    assert latest(tmp_path).name == "round-00001"
    save(tmp_path, made(2), keep=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-00001", "round-00002"]


@pytest.mark.parametrize("call", ["mkdir", "open", "fsync", "rename"])
def test_a_disk_that_is_full_anywhere_loses_nothing(tmp_path, monkeypatch, call):
    before = save(tmp_path, made(1), keep=1)

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {"mkdir": checkpoints.Path, "rename": checkpoints.Path, "fsync": os}.get(call, checkpoints)
    monkeypatch.setattr(target, call, refuse, raising=call != "open")
    with pytest.raises(FolderError, match=r"round-00002 cannot be written \(No space left .*free the disk"):
        save(tmp_path, made(2), keep=1)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["round-00001"]
    assert load(before).state.round == 1
    assert load(save(tmp_path, made(2), keep=1)).state.round == 2


def test_every_moment_of_a_save_leaves_a_checkpoint_to_load(tmp_path, monkeypatch):
    """A kill after any call that touches the disk: `latest` loads, as the round before or this one."""
    save(tmp_path / "first", made(1), keep=1)
    for moment in range(40):
        folder = tmp_path / f"at-{moment}"
        shutil.copytree(tmp_path / "first", folder)
        done = killed_at(moment, monkeypatch, lambda folder=folder: save(folder, made(2), keep=1))
        assert load(latest(folder)).state.round in ((2,) if done else (1, 2))
        assert all(load(path) for path in folder.glob("round-*"))  # nothing half written or half deleted
        load(save(folder, made(3), keep=1))
        assert [p.name for p in folder.iterdir()] == ["round-00003"]
        if done:
            break
    assert moment > 8


class Killed(BaseException):
    """In place of a signal that no code can catch."""


def killed_at(moment, monkeypatch, work):
    """Run `work`, and stop at the disk call numbered `moment` as a kill would, cleaning nothing up."""
    calls = iter(range(1000))

    def counted(original):
        def call(*args, **kwargs):
            if next(calls) >= moment:
                raise Killed
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in [(os, "fsync"), (os, "rename"), (os, "mkdir"), (os, "unlink"), (os, "rmdir")]:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        try:
            work()
        except Killed:
            return False
    return True


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_disk_that_is_really_full(tmp_path):
    mounted = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        before = save(tmp_path, made(1), keep=1)
        large = Checkpoint(state=ServerState(round=2, adapter=Adapter({"w": np.zeros(100_000)})))
        with pytest.raises(FolderError, match="No space left"):
            save(tmp_path, large, keep=1)
        assert [p.name for p in tmp_path.iterdir()] == ["round-00001"]
        assert load(before).state.round == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_notes_stay_json(tmp_path):
    path = save(tmp_path, full(), keep=1)
    assert json.loads((path / "state.json").read_text())["notes"]["cursors"] == {"c0": [3, 1]}


def copied(tmp_path, round=4, name="round-00004"):
    """A checkpoint as it lies beside its place while it is copied, and the place."""
    source = save(tmp_path / "elsewhere", made(round), keep=9)
    unfinished = tmp_path / "here" / f".unfinished-{name}"
    shutil.copytree(source, unfinished)
    return unfinished, tmp_path / "here" / name


def test_a_whole_copy_becomes_the_folders_own(tmp_path):
    for round in (1, 2, 3):
        save(tmp_path / "here", made(round), keep=3)
    unfinished, place = copied(tmp_path)
    assert checkpoints.adopt(unfinished, place, keep=2) == place
    assert bits(load(latest(tmp_path / "here")).state.adapter) == bits(drawn(4))
    assert sorted(path.name for path in place.parent.iterdir()) == ["round-00003", "round-00004"]


@pytest.mark.parametrize("name", checkpoints.FILES)
@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    ],
)
def test_of_a_cut_copy_nothing_is_kept(tmp_path, name, harm):
    save(tmp_path / "here", made(3), keep=3)
    unfinished, place = copied(tmp_path)
    harm(unfinished / name)
    with pytest.raises(CheckpointError, match="the copy of round-00004 is cut or changed; resume"):
        checkpoints.adopt(unfinished, place, keep=1)
    assert [path.name for path in place.parent.iterdir()] == ["round-00003"]


@pytest.mark.parametrize(
    "state",
    ["[]", "{}", '{"format": 1}', "no json", '{"format": 1, "round": 4, "tree": {"adapter": {"x": null}}}'],
)
def test_sums_that_fit_over_nonsense_convince_nobody(tmp_path, state):
    unfinished, place = copied(tmp_path)
    (unfinished / "state.json").write_text(state)
    lines = (unfinished / "SHA256SUMS").read_text().splitlines()
    lines = [line for line in lines if "state.json" not in line]
    digest = hashlib.sha256(state.encode()).hexdigest()
    (unfinished / "SHA256SUMS").write_text("\n".join([*lines, f"{digest}  state.json"]) + "\n")
    with pytest.raises(CheckpointError, match="cut or changed"):
        checkpoints.adopt(unfinished, place, keep=1)
    assert list(place.parent.iterdir()) == []


def test_a_copy_of_another_round_is_refused(tmp_path):
    unfinished, place = copied(tmp_path, round=3)
    with pytest.raises(CheckpointError, match="the copy of round-00004 holds another round"):
        checkpoints.adopt(unfinished, place, keep=1)
    assert list(place.parent.iterdir()) == []


def test_a_copy_whose_place_is_taken_changes_nothing(tmp_path):
    unfinished, place = copied(tmp_path)
    kept = save(tmp_path / "here", made(4, memory={"m": drawn(9)}), keep=1)
    shutil.copytree(tmp_path / "elsewhere" / "round-00004", unfinished, dirs_exist_ok=True)
    with pytest.raises(FolderError, match="cannot be written"):
        checkpoints.adopt(unfinished, place, keep=1)
    assert load(kept).state.memory


def as_first_format(path: Path, clients: Mapping[str, Payload]) -> None:
    """Make a checkpoint what the first version would have written: no server optimiser, but memories."""
    kept = json.loads((path / checkpoints.STATE).read_bytes())
    assert kept.pop("format") == 2
    assert kept["tree"].pop("optimiser") == {}
    kept["notes"].pop("memories", None)
    tensors = tensors_from((path / checkpoints.TENSORS).read_bytes())
    kept["tree"]["clients"] = {client: dict.fromkeys(memory) for client, memory in clients.items()}
    for client, memory in clients.items():
        tensors |= {json.dumps(["clients", client, name]): tensor for name, tensor in memory.items()}
    (path / checkpoints.TENSORS).write_bytes(bytes_of(tensors))
    (path / checkpoints.STATE).write_bytes(json.dumps({"format": 1, **kept}).encode())
    sums = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in checkpoints.FILES[:2]}
    (path / checkpoints.SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def test_a_checkpoint_of_the_first_format_is_read_with_what_clients_remembered(tmp_path):
    path = save(tmp_path, made(), keep=1)
    as_first_format(path, {"c/0": drawn(2), "c1": Adapter()})
    back = load(path)
    assert {client: bits(memory) for client, memory in back.clients.items()} == {
        "c/0": bits(drawn(2)),
        "c1": {},
    }
    assert bits(back.state.adapter) == bits(made().state.adapter)
    assert back.state.optimiser == {}
