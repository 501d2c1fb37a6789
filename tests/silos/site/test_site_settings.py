"""site.toml: its example, its paths, its faults, and a request laid over it."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from shepherd import world
from shepherd.errors import FolderError, SettingsError
from shepherd.model.digest import digest
from shepherd.settings import MachineTable, RunSettings
from shepherd.silos.site import site_settings
from shepherd.silos.site.site_settings import PolicyTable, SiteDataTable, SiteSettings, minutes
from tests.silos.site.asking import request

DIGEST = "0123456789abcdef" * 4


def written(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text, encoding="utf8")
    return path


def fault(tmp_path: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        site_settings.read(written(tmp_path, text))
    return str(caught.value)


# --- the example


def test_the_example_reads_back_as_the_defaults_with_the_embedded_base(tmp_path: Path) -> None:
    site = site_settings.read(written(tmp_path, site_settings.example('my "own".jsonl')))
    assert site.data == SiteDataTable(source=str(tmp_path / 'my "own".jsonl'))
    assert site.policy == PolicyTable()
    assert site.trainer == site_settings.TrainerTable()
    assert site.scoring == site_settings.ScoringTable()
    assert [(base.folder, base.sha256) for base in site.bases] == [("tiny", digest(world.base_path()))]


def test_the_example_has_every_key_with_its_meaning_and_every_key_behind_a_hash_works(tmp_path: Path) -> None:
    lines = site_settings.example().splitlines()
    bare = [line.removeprefix("# ") for line in lines]

    def keys(table: type[BaseModel]) -> None:
        for key, field in table.model_fields.items():
            if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
                if key != "bases":
                    place = next(n for n, line in enumerate(bare) if line.startswith(f"{key} = "))
                    assert lines[place - 1].startswith("# "), key
                assert field.description or key == "bases", key

    for table in (
        SiteDataTable,
        site_settings.BaseTable,
        site_settings.ScoringTable,
        site_settings.TrainerTable,
        PolicyTable,
    ):
        keys(table)
    text = site_settings.example()
    for line in ("threads = 2", 'hours = "18:00-06:00"', 'config = "default"'):
        assert f"# {line}" in text
        text = text.replace(f"# {line}", line)
    site = site_settings.read(written(tmp_path, text))
    assert (site.trainer.threads, site.policy.hours, site.data.config) == (2, "18:00-06:00", "default")


def test_the_file_that_the_example_names_is_the_one_it_is_written_to() -> None:
    assert "shepherd silos check north.toml " in site_settings.example(name="north.toml")
    assert all(len(line) <= 110 for line in site_settings.example().splitlines())


def test_an_example_is_written_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "north.toml"
    site_settings.write_example(path, "rows.csv")
    assert path.read_text() == site_settings.example("rows.csv", "north.toml")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("mine")
    with pytest.raises(FolderError, match=r"north\.toml exists already; name another file"):
        site_settings.write_example(path)
    assert path.read_text() == "mine"
    with pytest.raises(FolderError, match=r"cannot be written \(No such file"):
        site_settings.write_example(tmp_path / "nowhere" / "site.toml")


# --- reading


def test_only_the_data_have_to_be_named(tmp_path: Path) -> None:
    site = site_settings.read(written(tmp_path, '[data]\nsource = "rows.jsonl"\n'))
    assert site == SiteSettings(data=SiteDataTable(source=str(tmp_path / "rows.jsonl")))
    assert site.bases == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("rows.jsonl", "{here}/rows.jsonl"),  # not there yet, but no id ends so
        ("there", "{here}/there"),
        ("../rows", "{up}/rows"),
        ("./some", "{here}/some"),
        ("/data/rows", "/data/rows"),
        ("~/rows", "{home}/rows"),
        ("databricks/databricks-dolly-15k", "databricks/databricks-dolly-15k"),
    ],
)
def test_a_path_is_taken_from_the_files_own_folder(
    tmp_path: Path, monkeypatch: Any, text: str, found: str
) -> None:
    here = tmp_path / "site"
    (here / "there").mkdir(parents=True)
    written(here, f'[data]\nsource = "{text}"\n[[bases]]\nname = "b"\nfolder = "{text}"\n')
    monkeypatch.chdir(tmp_path)
    site = site_settings.read(Path("site") / "site.toml")
    known = {"here": here, "up": tmp_path, "home": os.path.expanduser("~")}
    assert site.data.source == site.bases[0].folder == found.format(**known)


def test_the_embedded_data_are_not_a_path_and_a_bare_base_is_one(tmp_path: Path) -> None:
    written(tmp_path, '[data]\nsource = "world"\n[[bases]]\nname = "b"\nfolder = "world"\n')
    site = site_settings.read(tmp_path / "site.toml")
    assert (site.data.source, site.bases[0].folder) == ("world", str(tmp_path / "world"))


def test_the_embedded_base_is_not_a_path(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    site = site_settings.read(
        written(tmp_path, '[data]\nsource = "a.csv"\n[[bases]]\nname = "t"\nfolder = "tiny"\n')
    )
    assert site.bases[0].folder == "tiny"


DATA = '[data]\nsource = "a.csv"\n'
POLICY = DATA + "[policy]\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "key data is missing; add it"),
        ("[data]", "key data.source is missing; add it"),
        (POLICY + "max_rang = 3", "unknown key policy.max_rang; known keys there are algorithms, "),
        (DATA + 'template = "chat"', "unknown key data.template; known keys there are category, columns, "),
        (POLICY + "max_rank = 0", "key policy.max_rank: input should be greater than 0 (got 0)"),
        (POLICY + "max_rank = true", "key policy.max_rank: input should be a valid integer"),
        (POLICY + "max_epochs = inf", "key policy.max_epochs: input should be a finite number"),
        (POLICY + 'algorithms = "fedavg"', "key policy.algorithms: input should be a list (got 'fedavg')"),
        (POLICY + 'metrics = ["loss", "text"]', "key policy.metrics.1: input should be 'loss', "),
        (POLICY + 'require_noise = "yes"', "key policy.require_noise: input should be a valid boolean"),
        (POLICY + 'dates = ["28.11.2026"]', "key policy.dates.0: write a date as 2026-11-28 (got '28.11."),
        (DATA + '[scoring]\ndate = "today"', "key scoring.date: write a date as 2026-11-28"),
        (POLICY + 'hours = "8-18"', "key policy.hours: write it as 08:00-18:00 (got '8-18')"),
        (POLICY + 'hours = "08:00-25:00"', "key policy.hours: a day has the hours 00:00 to 24:00"),
        (POLICY + 'hours = "08:60-09:00"', "key policy.hours: a day has the hours"),
        (POLICY + 'hours = "08:00-08:00"', "key policy.hours: the window is empty; leave the key out"),
        (
            DATA + '[[bases]]\nname = "b"\nfolder = "b"\nsha256 = "12"',
            "key bases.0.sha256: a digest has 64 hex digits",
        ),
        (DATA + 2 * '[[bases]]\nname = "b"\nfolder = "b"\n', "two bases have the name b; give each its"),
        ("[data", "site.toml is not TOML: "),
    ],
)
def test_a_fault_is_one_sentence_with_its_key(tmp_path: Path, text: str, sentence: str) -> None:
    found = fault(tmp_path, text)
    assert sentence in found
    assert str(tmp_path / "site.toml") in found
    assert "\n" not in found


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"site file .*none\.toml cannot be read \(No such file"):
        site_settings.read(tmp_path / "none.toml")


@given(st.text(max_size=14))
def test_hours_are_two_times_or_an_error(text: str) -> None:
    try:
        start, end = minutes(text)
    except ValueError:
        return
    assert text == f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"


def test_nothing_of_it_can_change() -> None:
    site = SiteSettings(data=SiteDataTable(source="a"))
    with pytest.raises(SettingsError, match="max_rank cannot be set"):
        site.policy.max_rank = 99  # type: ignore[misc]


# --- a request over it


def laid(text: str = DATA, **asked: Any) -> RunSettings:
    site = SiteSettings.model_validate(tomllib.loads(text))
    return site_settings.settings_at_site(site, request(**asked).settings, "/bases/b")


def test_what_is_the_sites_stays_the_sites() -> None:
    run = laid(
        DATA
        + 'part = "mine"\n[data.fields]\ninstruction = "frage"\n[trainer]\ndevice = "cuda:1"\nthreads = 3',
        model={
            "base": "/etc",
            "revision": "x",
            "dtype": "float32",
            "trust_remote_code": True,
        },
        data={"source": "/etc/passwd", "part": "theirs", "on_bad_row": "skip", "limit": 1},
        machine={"device": "cpu", "threads": 64, "stack_size": 9},
    )
    assert (run.model.base, run.model.revision, run.machine.device) == ("/bases/b", None, "cuda:1")
    assert run.model.trust_remote_code is False
    assert (run.data.source, run.data.part, run.data.on_bad_row) == ("a.csv", "mine", "error")
    assert run.data.limit is None  # all its rows, and not some that another chooses
    assert (run.data.fields.instruction, run.machine.threads) == ("frage", min(3, os.cpu_count()))


def test_what_the_run_decides_travels() -> None:
    tables = {
        "seed": 7,
        "model": {"dtype": "float32"},
        "adapter": {"rank": 3},
        "data": {"template": "vicuna", "holdout": 0.25, "max_tokens": 77},
        "tuning": {"max_steps": 3},
    }
    run = laid(settings=tables)
    assert (run.seed, run.model.dtype, run.adapter.rank) == (7, "float32", 3)
    assert (run.data.template, run.data.max_tokens) == ("vicuna", 77)
    assert run.tuning.max_steps == 3


def test_what_is_held_out_and_how_it_is_scored_is_the_owners() -> None:
    scoring = DATA + '[scoring]\nshare = 0.5\nseed = 4\ntemplate = "plain"\nmax_tokens = 99\n'
    asked = {
        "seed": 7,
        "data": {"template": "chat", "holdout": 0.25, "max_tokens": 77, "seed": 8, "system": "x"},
        "tuning": {"loss_on": "all"},
        "evaluation": {"examples": 1},
    }
    run = laid(scoring, settings=asked)
    assert (run.data.holdout, run.data_seed) == (0.5, 4)
    site = SiteSettings.model_validate(tomllib.loads(scoring))
    scored = site_settings.scoring_settings(site, run)
    assert (scored.data.template, scored.data.system, scored.data.max_tokens) == ("plain", None, 99)
    assert scored.tuning.loss_on == "responses"


SIZES = st.fixed_dictionaries(
    {}, optional={key: st.integers(1, 10**12) for key in ("threads", "workers", "micro_batch_tokens")}
)


@pytest.mark.parametrize("table", ["machine", "tuning"])
@given(asked=SIZES)
def test_how_the_machine_is_used_is_the_owners_alone(table: str, asked: dict[str, int]) -> None:
    """Also where a request says it by the keys of the version before."""
    assert laid(**{table: asked}).machine == MachineTable()
    owned = DATA + '[trainer]\ndevice = "mps"\nthreads = 1\n'
    assert laid(owned, **{table: asked}).machine == MachineTable(device="mps", threads=1)


def test_no_more_threads_are_used_than_there_are_cores() -> None:
    assert laid(DATA + "[trainer]\nthreads = 1000000\n").machine.threads == os.cpu_count()
