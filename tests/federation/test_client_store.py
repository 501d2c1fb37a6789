"""What clients remember: read back as it was, old ones let go of, damage refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.core import Payload
from shepherd.errors import CheckpointError, FolderError
from shepherd.federation.client_store import InMemory, OnDisk, StoredMemory

MEMORY = Payload({"q": np.arange(6, dtype=np.float32).reshape(2, 3), "codes": np.array([1, -2], np.int8)})


def numbered(number: int) -> Payload:
    return Payload({"n": np.array([number], np.float32)})


def test_a_memory_is_read_back_to_the_bit_whatever_the_clients_name(tmp_path: Path) -> None:
    store = OnDisk(tmp_path / "clients", checkpoints=2)
    for name in ("ann", "../b/ö b", "x" * 500, ""):
        kept = store.put(name, 3, MEMORY)
        assert store.get(name, kept) == MEMORY
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {tmp_path / "clients"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "clients").iterdir())


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=8, unique=True).map(sorted),
    st.integers(1, 4),
    st.data(),
)
def test_every_kept_checkpoint_finds_its_memory(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[int], checkpoints: int, data: st.DataObject
) -> None:
    """The last `checkpoints` rounds are kept; each names the client's last memory up to it."""
    folder = tmp_path_factory.mktemp("clients")
    store = OnDisk(folder, checkpoints)
    last = max(rounds) + data.draw(st.integers(0, 3))
    kept: dict[int, StoredMemory] = {}
    held: dict[int, StoredMemory | None] = {0: None}
    for round in range(1, last + 1):
        if round in rounds:
            kept[round] = store.put("ann", round, numbered(round))
        held[round] = kept.get(round, held[round - 1])
        for checkpoint in range(max(1, round - checkpoints + 1), round + 1):
            named = held[checkpoint]
            assert named is None or store.get("ann", named) == numbered(named.round)
    assert len(list(folder.iterdir())) <= checkpoints + 1


def test_a_round_that_is_made_again_takes_the_place_of_its_first_try(tmp_path: Path) -> None:
    store = OnDisk(tmp_path, checkpoints=2)
    first = store.put("ann", 1, numbered(1))
    tried = store.put("ann", 2, numbered(2))
    assert store.get("ann", first) == numbered(1)
    again = store.put("ann", 2, numbered(3))
    assert store.get("ann", again) == numbered(3)
    with pytest.raises(CheckpointError, match="is truncated or was changed"):
        store.get("ann", tried)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_memory_is_refused_with_the_clients_name_and_what_to_do(
    tmp_path: Path, damage: str
) -> None:
    store = OnDisk(tmp_path, checkpoints=2)
    kept = store.put("ann", 1, MEMORY)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(data[:-1])
        case "changed":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case _:
            path.unlink()
    with pytest.raises(CheckpointError, match=f"{path.name}.*the memory of client ann: delete the last"):
        store.get("ann", kept)


def test_a_folder_that_cannot_be_written_is_said_and_the_old_memory_stands(tmp_path: Path) -> None:
    store = OnDisk(tmp_path / "clients", checkpoints=2)
    kept = store.put("ann", 1, MEMORY)
    (tmp_path / "other").write_text("a file")
    with pytest.raises(FolderError):
        OnDisk(tmp_path / "other", checkpoints=2).put("ann", 1, MEMORY)
    assert store.get("ann", kept) == MEMORY


def test_in_memory_the_round_before_is_still_there() -> None:
    store = InMemory()
    first = store.put("ann", 1, numbered(1))
    for number in (4, 5):
        second = store.put("ann", 2, numbered(number))
        assert store.get("ann", first) == numbered(1)
        assert store.get("ann", second) == numbered(number)
    store.put("ann", 3, numbered(6))
    assert len(store.memories["ann"]) == 2


def test_the_folder_is_listed_once_however_many_clients_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each visit that would be thousands of names for one; a run that goes on looks once more."""
    listed: list[Path] = []
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, *words: (listed.append(path), glob(path, *words))[1])
    for times, checkpoints in enumerate((1, 2), 1):
        store = OnDisk(tmp_path, checkpoints)
        for round in (2 * checkpoints, 2 * checkpoints + 1):
            for number in range(9):
                store.put(f"client-{number}", round, numbered(round))
        assert len(listed) == times
    assert {path.stem[-1] for path in tmp_path.iterdir()} == {"3", "4", "5"}  # of before: what may be named
