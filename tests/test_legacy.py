"""Run files of the version before are read, with a warning that says the new key."""

import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from shepherd import plugins
from shepherd.errors import SettingsError
from shepherd.legacy import renamed
from shepherd.overrides import dump, overridden, parse, read, read_kept
from shepherd.run import folder
from shepherd.training.local import require

LEAST = '[model]\nbase = "tiny"\n[data]\nsource = "world"\n'
WHOLE_SPLIT = """[split]
by = "shards"
clients = 4
alpha = 0.5
shards_per_client = 3
field = ""
size_exponent = 1.0
"""


def written(path: Path, text: str) -> Path:
    path.write_text(LEAST + text)
    return path


def test_old_keys_of_the_selection_are_read_with_their_new_names(tmp_path: Path, caplog) -> None:
    old = written(tmp_path / "old.toml", '[federation]\nrounds = 3\nselect = "round-robin"\nshare = 0.25\n')
    new = written(
        tmp_path / "new.toml", '[federation]\nrounds = 3\n[selection]\nname = "round_robin"\nshare = 0.25\n'
    )
    with caplog.at_level(logging.WARNING):
        assert read(old) == read(new)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all(str(old) in sentence for sentence in said)
    assert "federation.share is now selection.share" in said[0]
    assert "federation.select is now selection.name" in said[1]


def test_an_old_run_folder_is_read_and_warned_of_once(tmp_path: Path, caplog) -> None:
    kept = written(
        tmp_path / folder.RUN_FILE, f'{WHOLE_SPLIT}[federation]\nselect = "uniform"\nshare = 0.5\n'
    )
    with caplog.at_level(logging.WARNING):
        settings = read_kept(kept)
        assert read_kept(kept) == settings
    assert plugins.selection(settings).share == 0.5
    assert settings.split.own == {"clients": 4, "shards_per_client": 3, "field": ""}
    require(settings)
    assert len(caplog.records) == 3
    assert "split.alpha, split.size_exponent have no effect if split.by is 'shards'" in caplog.text


def test_what_is_written_anew_has_no_old_key(tmp_path: Path, caplog) -> None:
    settings = read(written(tmp_path / "run.toml", f"{WHOLE_SPLIT}[federation]\nshare = 0.5\n"))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert parse(tomllib.loads(dump(settings))) == settings
    assert not caplog.records


@pytest.mark.parametrize("by", ["iid", "dirichlet", "shards", "natural", "size", "ready-made"])
def test_every_old_split_can_still_be_built(by: str) -> None:
    text = WHOLE_SPLIT.replace('shards"', f'{by}"').replace('field = ""', 'field = "who"')
    require(parse(tomllib.loads(LEAST + text)))


def test_a_share_of_all_clients_did_nothing(caplog) -> None:
    settings = parse({**tomllib.loads(LEAST), "federation": {"select": "all", "share": 0.1}})
    assert settings.selection.own == {}
    assert plugins.selection(settings).share == 1.0


def test_the_same_key_under_both_names_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"federation\.share and selection\.share are both set"):
        parse({**tomllib.loads(LEAST), "federation": {"share": 0.1}, "selection": {"share": 0.2}})


def test_an_old_override_is_laid_over_a_new_file(tmp_path: Path, caplog) -> None:
    path = written(tmp_path / "run.toml", "[selection]\nshare = 0.2\n")
    with caplog.at_level(logging.WARNING):
        settings = read(path, ["federation.share=0.5"])
        assert overridden(settings, ["federation.select=all"]).selection.own == {}
    assert settings.selection.own == {"share": 0.5}
    assert "override federation.share: federation.share is now selection.share" in caplog.text


def test_a_table_without_old_keys_is_as_it_was() -> None:
    table = {
        "federation": {"rounds": 3},
        "selection": {"share": 0.1},
        "split": {"by": "their.split", "alpha": 1},
    }
    assert renamed(table) == (table, [])


def test_the_optimisers_keys_stood_in_the_table_of_tuning(caplog) -> None:
    least, keys = tomllib.loads(LEAST), {"betas": [0.8, 0.9], "weight_decay": 0.1}
    old = parse({**least, "tuning": {**keys, "max_steps": 2}})
    assert old == parse({**least, "tuning": {"optimiser": keys, "max_steps": 2}})
    assert old.tuning.optimiser.own == keys
    assert "tuning.betas is now tuning.optimiser.betas" in caplog.text
    assert "tuning.weight_decay is now tuning.optimiser.weight_decay" in caplog.text
    both = {"betas": [0.8, 0.9], "optimiser": {"betas": [0.9, 0.9]}}
    with pytest.raises(SettingsError, match=r"tuning\.betas and tuning\.optimiser\.betas are both set"):
        parse({**least, "tuning": both})


@pytest.mark.parametrize("wrong", ["adamw", 3, [1]])
def test_a_value_where_a_table_should_be_is_said_as_ever(wrong: object) -> None:
    least = tomllib.loads(LEAST)
    with pytest.raises(SettingsError, match=r"tuning\.optimiser"):
        parse({**least, "tuning": {"betas": [0.8, 0.9], "optimiser": wrong}})


OLD: dict[str, tuple[str, object]] = {
    "model.device": ("machine.device", "cuda:1"),
    "tuning.threads": ("machine.threads", 3),
    "tuning.workers": ("machine.workers", 2),
    "tuning.cohort_size": ("machine.stack_size", 5),
    "tuning.micro_batch_tokens": ("machine.micro_batch_tokens", 512),
    "federation.sites": ("silos.sites", ["a", "b"]),
    "federation.deadline": ("silos.deadline_s", 5.5),
    "federation.wave": ("silos.max_in_flight", 7),
    "tuning.betas": ("tuning.optimiser.betas", [0.5, 0.9]),
}


def nested(keys: Mapping[str, object]) -> dict[str, Any]:
    """Dotted keys as the tables of a run file that needs no more."""
    table: dict[str, Any] = tomllib.loads(LEAST)
    for key, value in keys.items():
        *parents, last = key.split(".")
        inner = table
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return table


@given(st.sets(st.sampled_from(sorted(OLD))))
def test_keys_of_the_version_before_are_read_as_their_new_names(keys: set[str]) -> None:
    old = parse(nested({key: OLD[key][1] for key in keys}))
    assert old == parse(nested(dict(OLD[key] for key in keys)))
    assert parse(tomllib.loads(dump(old))) == old


@pytest.mark.parametrize("old", OLD)
def test_a_key_of_the_version_before_is_warned_of_by_its_new_name(
    old: str, caplog: pytest.LogCaptureFixture
) -> None:
    new, value = OLD[old]
    _, said = renamed(nested({old: value}))
    assert said == [f"{old} is now {new}; use the new name, since the next version will not read the old one"]


@pytest.mark.parametrize("old", [key for key in OLD if key != "tuning.betas"])
def test_an_old_key_overrides_and_stands_beside_no_new_one(old: str, tmp_path: Path) -> None:
    path, (new, value) = written(tmp_path / "run.toml", ""), OLD[old]
    override = tomli_w.dumps({"x": value}).removeprefix("x = ").replace("\n", " ").strip()
    asked = [f"{new}={override}"]
    assert read(path, [f"{old}={override}"]) == read(path, asked)
    assert overridden(read(path, asked), [f"{old}={override}"]) == overridden(read(path, asked), asked)
    with pytest.raises(SettingsError, match=rf"{old} and {new} are both set"):
        parse(nested({old: value, new: value}))


def test_no_clipping_is_zero_and_false_is_read_with_a_warning(tmp_path: Path, caplog) -> None:
    path = written(tmp_path / "run.toml", "[tuning]\nclip_norm = false\n")
    settings = read(path)
    assert settings.tuning.clip_norm == read(path, ["tuning.clip_norm=false"]).tuning.clip_norm == 0.0
    assert "clip_norm = 0.0" in dump(settings)
    assert f"{path}: tuning.clip_norm = false is now 0; write 0" in caplog.text
