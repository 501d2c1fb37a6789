"""What a federation of real processes does when parts of it die, hang, fill up or are cut off."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nvflare")

from benchmarks.silos_faults import KINDS, Trial, digest, process

from benchmarks import silos_faults
from shepherd.core import Adapter, Update
from shepherd.data import pipeline
from shepherd.errors import ShepherdError
from shepherd.overrides import dump, overridden
from shepherd.run.folder import Row
from shepherd.run.log import read_rows
from shepherd.silos import loopback
from shepherd.silos.coordinator import coordinate
from shepherd.silos.loopback import Loopback
from shepherd.silos.protocol import wire
from tests.silos.tap import tapped

pytestmark = pytest.mark.silos
ROUNDS = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    place = tmp_path_factory.mktemp("faults")
    sites = loopback.write_sites(silos_faults.run_settings(ROUNDS), place / "sites")
    with loopback.running(place / "federation", sites) as federation:
        yield federation


@pytest.fixture(scope="module")
def whole(made: Loopback, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    rows, _ = run(made, output)
    assert [row["round"] for row in rows] == [0, 1, 2, 3, 4]
    return output


def run(
    made: Loopback, output: Path, *overrides: str, during: Callable[[Row], None] = lambda row: None
) -> tuple[list[Row], list[str]]:
    """Go through a run; its rows, and what was said."""
    said: list[str] = []
    settings = overridden(silos_faults.run_settings(ROUNDS), [f"output={output}", *overrides])
    going = coordinate.open_run(settings, made.admin, said.append)
    try:
        for _, row in going.rounds():
            during(row)
        going.finish()
    finally:
        going.close()
    return read_rows(output), said


def failures(rows: Sequence[Row]) -> dict[int, dict[str, str]]:
    return {row["round"]: row["failures"] for row in rows if row.get("failures")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_costs_no_round(made: Loopback, whole: Path, tmp_path: Path, kind: str) -> None:
    planned = Trial(kind=kind, site="site-2", after=5.0)

    done = silos_faults.trial(silos_faults.run_settings(ROUNDS), made, tmp_path / "run", planned)

    assert (done.struck, done.ended, done.why) == (True, True, "")
    assert done.rounds_lost == 0
    assert len(done.failures) <= (1 if kind == "trainer" else 0)
    if not done.failures:
        assert digest(tmp_path / "run") == digest(whole)


def test_a_trainer_that_dies_at_work_is_one_counted_failure(made: Loopback, tmp_path: Path) -> None:
    def strike(row: Row) -> None:
        if row["round"] == 2:
            threading.Timer(1.0, lambda: _kill(process("trainer", "site-1", made))).start()

    rows, _ = run(made, tmp_path / "run", "tuning.max_steps=30", during=strike)

    found = failures(rows)
    assert list(found) == [3]
    assert set(found[3]) == {"site-1"}
    assert "died while working" in found[3]["site-1"]
    assert [row["round"] for row in rows] == [0, 1, 2, 3, 4]


def amiss(asked: bytes, answer: bytes, kept: list[Update]) -> bytes:
    """An answer to train as a broken site might send it, in each round another way."""
    request, update = wire.decode_request(asked), wire.decode_reply(answer)
    if request.kind != "train" or not isinstance(update, Update):
        return answer
    kept.append(update)
    name, tensor = next(iter(update.delta.items()))
    changes = (
        {"delta": Adapter({**update.delta, name: np.full_like(tensor, np.nan)})},
        {"delta": Adapter({**update.delta, name: tensor[:, :1]})},
        {"round": 7},
        {name: getattr(kept[0], name) for name in ("delta", "round")},  # the first answer once more
    )
    return wire.encode_reply(replace(update, **changes[request.round]))


def test_what_a_site_sends_amiss_is_its_failure_and_never_in_the_mean(
    made: Loopback, whole: Path, tmp_path: Path
) -> None:
    kept: list[Update] = []
    assert whole.is_dir()  # so that the trainer is there
    with tapped(made.kit("site-2") / "shepherd", lambda asked, answer: amiss(asked, answer, kept)):
        rows, _ = run(made, tmp_path / "run")
    run(made, tmp_path / "others", 'silos.sites=["site-1", "site-3"]')

    found = failures(rows)
    assert len(kept) == 4
    assert [set(found[number]) for number in range(1, 5)] == 4 * [{"site-2"}]
    words = ("is not finite", "shape", "answers round 8, not 3", "answers round 1, not 4")
    said = [found[number]["site-2"] for number in range(1, 5)]
    assert all(word in sentence for word, sentence in zip(words, said, strict=True)), said
    assert digest(tmp_path / "run") == digest(tmp_path / "others")


def test_a_slow_site_costs_its_share_and_no_more_than_the_deadline(made: Loopback, tmp_path: Path) -> None:
    """Its trainer is stopped (SIGSTOP) for the length of a run."""
    found = process("trainer", "site-3", made)
    assert found is not None
    run(made, tmp_path / "before")  # so that base and data are loaded
    found.send_signal(signal.SIGSTOP)
    try:
        rows, _ = run(made, tmp_path / "run", "silos.deadline_s=25.0", "federation.rounds=2")
    finally:
        found.send_signal(signal.SIGCONT)

    assert [sorted(row["failures"]) for row in rows[1:]] == 2 * [["site-3"]]
    assert all("did not reply within 25 s" in row["failures"]["site-3"] for row in rows[1:])
    assert all(row["seconds"]["round"] < 25 + 10 for row in rows[1:])
    assert sorted(rows[-1]["weights"]) == ["site-1", "site-2"]


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"0" * 4096)


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A file system of its own for a folder, of `size`."""
    place.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("skipped: a small disk needs the right to mount one")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_at_the_server_ends_the_run_in_one_sentence_and_it_can_go_on(
    made: Loopback, whole: Path, tmp_path: Path
) -> None:
    runs = made.folder / "server" / "shepherd" / "runs"
    with small_disk(runs, "1m"):
        filler = runs / "filler"

        def fill(row: Row) -> None:
            if row["round"] == 2 and not filler.exists():
                _fill(filler)

        with pytest.raises(ShepherdError, match=r"free the disk|disk .* is full"):
            run(made, tmp_path / "run", during=fill)
        finished = [row["round"] for row in read_rows(tmp_path / "run")]
        assert finished[-1] >= 2
        filler.unlink()
        going = coordinate.resume(tmp_path / "run", lambda line: None)
        assert [row["round"] for _, row in going.rounds()] == list(range(finished[-1] + 1, ROUNDS + 1))
        going.finish()
    assert digest(tmp_path / "run") == digest(whole)


def test_a_full_disk_at_a_site_is_that_sites_failure(made: Loopback, tmp_path: Path) -> None:
    with small_disk(made.kit("site-2") / "shepherd" / "state", "64k"):
        rows, _ = run(made, tmp_path / "run")

    assert [sorted(row["failures"]) for row in rows[1:]] == ROUNDS * [["site-2"]]
    assert all("disk" in row["failures"]["site-2"] for row in rows[1:])
    assert sorted(rows[-1]["weights"]) == ["site-1", "site-3"]


def test_a_coordinator_that_is_gone_is_not_needed_for_the_rounds(
    made: Loopback, whole: Path, tmp_path: Path
) -> None:
    """It is killed after the first round; the server goes on, and `resume` collects."""
    output = tmp_path / "run"
    run_file = tmp_path / "run.toml"
    run_file.write_text(dump(silos_faults.run_settings(ROUNDS).model_copy(update={"output": str(output)})))
    words = [sys.executable, "-m", "shepherd", "run", str(run_file), "--silos", str(made.admin)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as coordinator:
        assert coordinator.stdout is not None
        assert any(line.startswith("round 1/") for line in coordinator.stdout)
        coordinator.kill()
    told = len(read_rows(output))
    time.sleep(15)

    again = coordinate.resume(output, lambda line: None)
    rounds = [row["round"] for _, row in again.rounds()]
    again.finish()

    assert rounds == list(range(told, ROUNDS + 1))
    assert [row["round"] for row in read_rows(output)] == list(range(ROUNDS + 1))
    assert digest(output) == digest(whole)


NET = "10.98.7"


@contextmanager
def own_network(name: str) -> Iterator[list[str]]:
    """Words that run a command in a network namespace, linked to this one by a cable."""
    commands = [
        f"ip netns add {name}",
        f"ip link add {name}h type veth peer name {name}s",
        f"ip link set {name}s netns {name}",
        f"ip addr add {NET}.1/24 dev {name}h",
        f"ip link set {name}h up",
        f"ip -n {name} addr add {NET}.2/24 dev {name}s",
        f"ip -n {name} link set {name}s up",
        f"ip -n {name} link set lo up",
    ]
    try:
        for command in commands:
            if subprocess.run(command.split(), capture_output=True, check=False).returncode:
                pytest.skip(f"skipped: a network of its own needs the right to `{command}`")
        yield ["ip", "netns", "exec", name]
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", f"{name}h"], capture_output=True, check=False)


def test_a_site_that_is_cut_off_and_comes_back_is_asked_again(tmp_path: Path) -> None:
    """Also where nobody noticed, and where FLARE has counted it as gone, after 30 s, and takes it back."""
    settings = silos_faults.run_settings(3)
    sites = loopback.write_sites(settings, tmp_path / "sites")

    def cut(row: Row, seconds: float) -> None:
        if row["round"] == 1:
            subprocess.run(["ip", "link", "set", "shepcuth", "down"], check=True)
            plug = ["ip", "link", "set", "shepcuth", "up"]
            threading.Timer(seconds, lambda: subprocess.run(plug, check=True)).start()

    with (
        own_network("shepcut") as words,
        loopback.running(tmp_path / "federation", sites, host=f"{NET}.1", within={"site-2": words}) as made,
    ):
        undisturbed, _ = run(made, tmp_path / "whole", "federation.rounds=3")
        assert failures(undisturbed) == {}
        for seconds in (10.0, 17.0, 28.0, 45.0):
            output = tmp_path / f"cut-{seconds:g}"
            rows, said = run(
                made, output, "federation.rounds=3", during=lambda row, cut_for=seconds: cut(row, cut_for)
            )

            assert [row["round"] for row in rows] == list(range(4))
            # back within its time, it was asked the same again
            assert failures(rows) == {}, said
            assert rows[2]["seconds"]["round"] < seconds + 60, said
            assert digest(output) == digest(tmp_path / "whole")
            assert not any("the server" in line for line in said)  # which was there all the time


def test_a_site_that_stays_away_costs_its_share_and_the_rest_goes_on(tmp_path: Path) -> None:
    sites = loopback.write_sites(silos_faults.run_settings(ROUNDS), tmp_path / "sites")

    def leave(row: Row) -> None:
        if row["round"] == 1:
            subprocess.run(["ip", "link", "set", "shepgoneh", "down"], check=True)

    with (
        own_network("shepgone") as words,
        loopback.running(tmp_path / "federation", sites, host=f"{NET}.1", within={"site-2": words}) as made,
    ):
        rows, _ = run(made, tmp_path / "run", during=leave)

    assert [row["round"] for row in rows] == list(range(ROUNDS + 1))
    assert {name for each in failures(rows).values() for name in each} == {"site-2"}
    # one round waits for it, the others do not
    waited = sorted(row["seconds"]["round"] for row in rows[1:])
    assert waited[-1] < 120
    assert waited[-2] < 30


def test_prepared_data_are_whole(made: Loopback) -> None:
    """The trials' sites hold what the run file's split gave them, so nothing above is vacuous."""
    division = pipeline.divide(silos_faults.run_settings(ROUNDS))
    for site, places in zip(made.sites, division.clients.values(), strict=True):
        lines = (made.folder.parent / "sites" / site / "data.jsonl").read_text().splitlines()
        assert len(lines) == len(places) >= 16


def _kill(found: object) -> None:
    assert found is not None
    found.kill()  # type: ignore[attr-defined]
