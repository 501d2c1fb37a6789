"""The run file: defaults, overrides, and one sentence for each fault."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.config import PartTable, Table, validated
from shepherd.errors import SettingsError
from shepherd.overrides import dump, parse, read
from shepherd.settings import RunSettings

LEAST = {"model": {"base": "tiny"}, "data": {"source": "world"}}
DESIGN = """
seed = 0
output = "runs/fedit"
[model]
base = "tiny"
[adapter]
rank = 8
alpha = 16
targets = "all-linear"
[data]
source = "world"
category = "category"
template = "alpaca"
holdout = 0.1
[split]
by = "shards"
clients = 100
[federation]
rounds = 20
[selection]
share = 0.05
[tuning]
epochs = 1
batch_size = 32
learning_rate = 1.5e-4
[algorithm]
name = "fedavg"
[[transforms]]
name = "clip"
norm = 1.0
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.toml"
    file.write_text(DESIGN)
    return file


def fault(table: dict[str, object]) -> str:
    with pytest.raises(SettingsError) as caught:
        parse(table)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_two_keys_are_enough() -> None:
    settings = parse(LEAST)
    assert settings == RunSettings.model_validate(LEAST)
    assert (settings.adapter.rank, settings.tuning.learning_rate, settings.algorithm.name) == (
        8,
        1.5e-4,
        "fedavg",
    )
    assert "data: " not in fault({"model": {"base": "tiny"}})
    assert "key data is missing; add it" in fault({"model": {"base": "tiny"}})
    assert "key model.base is missing; add it" in fault({"model": {}, "data": {"source": "world"}})


def test_a_run_file_is_read_as_it_stands(path: Path) -> None:
    settings = read(path)
    assert (settings.split.by, settings.split.own) == ("shards", {"clients": 100})
    assert settings.selection.own == {"share": 0.05}
    assert settings.tuning.epochs == 1
    (clip,) = settings.transforms
    assert (clip.name, clip.model_extra) == ("clip", {"norm": 1.0})


def test_settings_never_change(path: Path) -> None:
    settings = read(path)
    for table, key in ((settings, "seed"), (settings.adapter, "rank"), (settings.algorithm, "name")):
        with pytest.raises(SettingsError, match=f"^{key} cannot be set"):
            setattr(table, key, 1)


def test_overrides_are_toml_values_or_bare_words(path: Path) -> None:
    settings = read(
        path,
        [
            "federation.rounds=2",
            "output=runs/two words",
            'adapter.targets=["q_proj", "v_proj"]',
            "tuning.epochs=0.5",
            "tuning.clip_norm=0",
            "model.trust_remote_code=true",
            "algorithm.mu=0.1",
            "split.by = iid",
        ],
    )
    assert settings.federation.rounds == 2
    assert settings.output == "runs/two words"
    assert settings.adapter.targets == ("q_proj", "v_proj")
    assert (settings.tuning.epochs, settings.tuning.clip_norm) == (0.5, 0.0)
    assert settings.model.trust_remote_code is True
    assert settings.algorithm.model_extra == {"mu": 0.1}
    assert settings.split.by == "iid"
    assert settings.split.own == {"clients": 100}  # what is not named stays


def test_overrides_that_say_nothing_or_the_impossible_are_refused(path: Path) -> None:
    for override, message in (
        ("rounds", "'rounds' is not key=value"),
        ("=3", "'=3' is not key=value"),
        ("seed.more=1", "override seed.more: seed is not a table"),
        (
            "federation.round=3",
            "unknown key federation.round; known keys there are max_share, quorum, rounds",
        ),
        ("federation.rounds=two", "key federation.rounds: .*integer.* \\(got 'two'\\)"),
    ):
        with pytest.raises(SettingsError, match=message):
            read(path, [override])


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no\.toml cannot be read \(No such file"):
        read(tmp_path / "no.toml")
    with pytest.raises(SettingsError, match="is a folder; name the file"):
        read(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = 0\nrounds = = 2\n")
    with pytest.raises(SettingsError, match=r"broken\.toml is not TOML: .*line 2"):
        read(broken)
    broken.write_bytes(b"\xff\xfea")
    with pytest.raises(SettingsError, match=r"broken\.toml, line 1 is not UTF-8; save"):
        read(broken)


def test_unknown_keys_are_refused_with_those_that_are_known() -> None:
    outer = fault({**LEAST, "modle": 1})
    assert "unknown key modle; known keys there are adapter, aggregation, algorithm" in outer
    inner = fault({**LEAST, "data": {"source": "world", "fields": {"prompt": "x"}}})
    assert (
        "unknown key data.fields.prompt; known keys there are chosen, context, history, instruction" in inner
    )


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"seed": -1}, "seed"),
        ({"adapter": {"rank": 0}}, "adapter.rank"),
        ({"adapter": {"dropout": 1.0}}, "adapter.dropout"),
        ({"adapter": {"targets": []}}, "adapter"),
        ({"adapter": {"target_parameters": ["experts.down_proj"], "dropout": 0.1}}, "adapter"),
        ({"federation": {"quorum": 0}}, "federation.quorum"),
        ({"split": {"by": 3}}, "split.by"),
        ({"evaluation": {"metrics": [3]}}, "evaluation.metrics.0"),
        ({"tuning": {"epochs": 1, "max_steps": 1}}, "tuning"),
        ({"tuning": {"learning_rate": 0}}, "tuning.learning_rate"),
        ({"silos": {"deadline_s": 1e10}}, "silos.deadline_s"),
        ({"silos": {"short_deadline_s": 0}}, "silos.short_deadline_s"),
        ({"machine": {"micro_batch_tokens": 0}}, "machine.micro_batch_tokens"),
        ({"tracking": {"trackers": ["pigeon"]}}, "tracking.trackers"),
        ({"model": {"base": "tiny", "dtype": "int8"}}, "model.dtype"),
        ({"data": {"source": "world", "max_tokens": 7}}, "data.max_tokens"),
        ({"data": {"source": "world", "holdout": 1.0}}, "data.holdout"),
        ({"transforms": [{"norm": 1}]}, "transforms.0.name"),
    ],
)
def test_an_impossible_value_is_refused_by_its_dotted_key(table: dict[str, object], key: str) -> None:
    assert f"key {key}" in fault({**LEAST, **table})


def test_numbers_that_are_not_finite_are_refused() -> None:
    for table in ("learning_rate", "clip_norm", "epochs"):
        for value in (float("nan"), float("inf")):
            assert f"key tuning.{table}" in fault({**LEAST, "tuning": {table: value}})


def test_every_fault_is_told_at_once() -> None:
    message = fault({**LEAST, "seed": -1, "federation": {"rounds": 0, "spare": 1}})
    assert all(key in message for key in ("seed", "federation.rounds", "federation.spare"))


def test_what_is_dumped_reads_back_equal(path: Path) -> None:
    overrides = ["tuning.clip_norm=0", "algorithm.mu=0.5", 'tracking.trackers=["wandb"]', "data.limit=3"]
    for settings in (parse(LEAST), read(path), read(path, overrides)):
        assert parse(tomllib.loads(dump(settings))) == settings


TABLES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**62),
        "output": st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
        "adapter": st.fixed_dictionaries(
            {
                "rank": st.integers(1, 512),
                "alpha": st.floats(1e-6, 1e6),
                "targets": st.one_of(
                    st.just("all-linear"), st.lists(st.text("abc_.", min_size=1), min_size=1, max_size=3)
                ),
            }
        ),
        "tuning": st.fixed_dictionaries(
            {"max_steps": st.integers(1, 9), "clip_norm": st.one_of(st.just(0), st.floats(1e-3, 1e3))}
        ),
        "transforms": st.lists(
            st.builds(lambda norm: {"name": "clip", "norm": norm}, st.floats(1e-3, 1e3)), max_size=2
        ),
    }
)


@given(TABLES)
def test_any_settings_are_dumped_and_read_back_to_the_bit(table: dict[str, object]) -> None:
    settings = parse({**LEAST, **table})
    assert parse(tomllib.loads(dump(settings))) == settings


def test_a_part_keeps_its_own_keys() -> None:
    part = PartTable.model_validate({"name": "clip", "norm": 1.0})
    assert part.model_extra == {"norm": 1.0}
    assert part != PartTable.model_validate({"name": "clip", "norm": 2.0})


def test_every_key_says_what_it_means() -> None:
    def described(kind) -> None:
        for name, field in kind.model_fields.items():
            inner = field.annotation
            if hasattr(inner, "model_fields"):
                described(inner)
            elif name not in ("base", "source", "name", "transforms"):
                assert field.description, f"{kind.__name__}.{name}"

    described(RunSettings)


def test_a_wrong_type_is_no_other_value() -> None:
    """`true` is not 1, and text is no number; a whole number is a float."""
    for table, key, value in (
        ("federation", "rounds", True),
        ("federation", "rounds", "3"),
        ("federation", "quorum", "0.5"),
        ("adapter", "rank", 8.0),
        ("adapter", "rank_stabilised", "yes"),
        ("tuning", "clip_norm", True),
        ("machine", "micro_batch_tokens", "4096"),
    ):
        assert f"key {table}.{key}" in fault({**LEAST, table: {key: value}})
    assert "key seed: " in fault({**LEAST, "seed": True})
    whole = {**LEAST, "adapter": {"alpha": 16}, "tuning": {"learning_rate": 1}}
    assert parse(whole).tuning.learning_rate == 1.0


def test_a_fault_speaks_of_the_file_and_not_of_python() -> None:
    assert fault({**LEAST, "adapter": {"targets": "q_proj"}}).endswith(
        "key adapter.targets: input should be 'all-linear' or be a list (got 'q_proj')"
    )
    assert "key algorithm: input should be a table (got 'fedprox')" in fault(
        {**LEAST, "algorithm": "fedprox"}
    )
    assert "unknown key tuning.batch-size; known" in fault({**LEAST, "tuning": {"batch-size": 3}})
    with pytest.raises(SettingsError, match="unknown key mu; known keys there are none"):
        validated(Table, {"mu": 1}, "the algorithm 'fedavg'")


def test_an_output_may_lie_in_ones_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse({**LEAST, "output": "~/runs/one"}).output == "/home/me/runs/one"


def test_a_date_is_a_day(path: Path) -> None:
    def day(text: str) -> str:
        return read(path, [f"data.date={text}"]).data.date

    assert day("2026-11-28") == day('"2026-11-28"') == "2026-11-28"  # a date of TOML's, and a text
    assert read(path).data.date == ""
    for wrong in ('"28.11.2026"', '"20261128"', '"2026-13-01"', "2026-11-28T10:00:00", "5"):
        with pytest.raises(SettingsError, match=r"data\.date"):
            day(wrong)


def test_template_options_are_a_chat_templates(path: Path) -> None:
    asked = ["data.template=chat", "data.template_options.enable_thinking=false"]
    settings = read(path, asked)
    assert settings.data.template_options == {"enable_thinking": False}
    assert parse(tomllib.loads(dump(settings))) == settings
    with pytest.raises(SettingsError, match='only for template = "chat"'):
        read(path, asked[1:])
    with pytest.raises(SettingsError, match="cannot set chat_template"):
        read(path, [*asked, "data.template_options.chat_template=x"])


def test_of_a_table_at_fault_only_the_keys_at_fault_are_printed() -> None:
    data = {
        "source": "world",
        "template": "plain",
        "template_options": {"thinking": False},
        "system": "secret",
    }
    with pytest.raises(SettingsError) as caught:
        parse({"model": {"base": "tiny"}, "data": data})
    assert str(caught.value).endswith("(got template = 'plain', template_options = {'thinking': False})")
    tuning = {"epochs": 1.0, "max_steps": 3, "batch_size": 4}
    with pytest.raises(SettingsError, match=r"keep one of them \(got epochs = 1.0, max_steps = 3\)"):
        parse({"model": {"base": "tiny"}, "data": {"source": "world"}, "tuning": tuning})
    with pytest.raises(SettingsError, match=r"key model.base: input should be a valid string$"):
        parse({"model": {"base": {"name": "secret"}}, "data": {"source": "world"}})


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("rounds", "federation.rounds"),
        ("federation.round", "federation.rounds"),
        ("tuning.rank", "adapter.rank"),
        ("batch_size", "tuning.batch_size or compare.batch_size"),
        ("dta", "data"),
        ("federation.batchsize", None),
        ("xyzzy", None),
    ],
)
def test_an_unknown_key_is_guessed_where_there_is_one_like_it(key: str, meant: str | None) -> None:
    table: dict[str, Any] = {"model": {"base": "tiny"}, "data": {"source": "world"}}
    *above, name = key.split(".")
    inner = table
    for part in above:
        inner = inner.setdefault(part, {})
    inner[name] = 2
    with pytest.raises(SettingsError) as caught:
        parse(table)
    guess = re.search(r"did you mean (.*)\?$", str(caught.value))
    assert (guess and guess[1]) == meant
