"""The commented run file says all there is to say, and reads back as the defaults and the choices."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shepherd import plugins
from shepherd.data.split import SPLIT
from shepherd.errors import FolderError
from shepherd.overrides import parse, read
from shepherd.run import run_file, stages
from shepherd.run.fitting import Choice, Fit
from shepherd.settings import RunSettings

BARE_SETTINGS = parse({"model": {"base": "tiny"}, "data": {"source": "world"}})
DEFAULTS = plugins.completed(BARE_SETTINGS).model_copy(
    update={"split": plugins.completed_table(SPLIT, BARE_SETTINGS.split, ())}
)
BARE = Fit(
    found=(),
    choices={
        ("model", "base"): Choice(value="tiny", why=""),
        ("data", "source"): Choice(value="world", why=""),
    },
)


def every_key(kind: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for key, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from every_key(field.annotation)
        elif key not in ("transforms", "stages"):
            yield key, field


def uncommented(text: str) -> str:
    """The text with every `# key = value` line switched on, but for plug-ins that are not chosen."""
    tables = (table.split("\n# Instead, each")[0].split("\n# There are:")[0] for table in text.split("\n\n"))
    lines = "\n\n".join(tables).splitlines()
    return "\n".join(line.removeprefix("# ") if " = " in line else line for line in lines)


def test_it_reads_back_as_the_defaults_where_nothing_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(run_file.text(BARE))
    assert read(tmp_path / "run.toml") == DEFAULTS


def test_a_choice_stands_in_its_place_with_its_reason(tmp_path: Path) -> None:
    rate = Choice(value=0.25, why='so """odd"""\n[data]\nthat it must stay a comment ' * 9)
    chosen = Fit(found=("one thing",), choices={**BARE.choices, ("tuning", "learning_rate"): rate})
    text = run_file.text(chosen, "my.toml")
    assert "# Found:\n#   one thing\n" in text
    assert '# Here: so """odd""" [data] that' in text
    assert max(map(len, text.splitlines())) <= 110
    (tmp_path / "my.toml").write_text(text)
    tuning = DEFAULTS.tuning.model_copy(update={"learning_rate": 0.25})
    assert read(tmp_path / "my.toml") == DEFAULTS.model_copy(update={"tuning": tuning})


def test_without_data_it_is_the_embedded_world_as_the_demo_tunes_it(tmp_path: Path) -> None:
    run_file.write(tmp_path / "first.toml")
    settings = read(tmp_path / "first.toml")
    assert (settings.model.base, settings.data.source) == ("tiny", "world")
    assert (settings.data.template, settings.tuning.learning_rate) == ("alpaca-short", 4e-3)
    assert settings.output == "runs/first"


@pytest.mark.parametrize(("key", "field"), list(every_key(RunSettings)))
def test_every_key_is_there_with_its_meaning(key: str, field: FieldInfo) -> None:
    lines = run_file.text(BARE).splitlines()
    places = [n for n, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{key} = ")]
    assert places
    assert field.description
    words = field.description.split()[:4]
    assert any(" ".join(words) in " ".join(lines[max(0, n - 5) : n]) for n in places)


def test_a_key_that_is_not_set_shows_a_value_that_would_do() -> None:
    table = tomllib.loads(uncommented(run_file.text(BARE).split("\n# What happens to each update")[0]))
    table["tuning"].pop("epochs")  # the one pair that excludes each other
    settings = parse(table)
    assert (settings.data.limit, settings.model.revision, settings.tuning.max_steps) == (1, "...", 1)


def test_every_plug_in_shows_its_own_keys() -> None:
    text = run_file.text(BARE)
    for finds, kind in (("name", plugins.ALGORITHM), ("name", plugins.SELECTION), ("by", SPLIT)):
        for name in plugins.names(kind.folder):
            assert f'{finds} = "{name}"' in text
    for line in (
        "# mu = 0.01",
        "# norm = 1.0",
        "clients = 10",
        "# alpha = 0.5",
        'field = "..."',
        "share = 1.0",
    ):
        assert line in text
    assert 'metrics = ["right", "exact", "f1", "rouge_l"]' in text


def test_the_keys_of_the_chosen_split_are_written_and_those_of_others_are_comments() -> None:
    chosen = {
        ("split", "by"): Choice(value="shards", why=""),
        ("split", "clients"): Choice(value=3, why="few"),
    }
    text = run_file.text(Fit(found=(), choices={**BARE.choices, **chosen}))
    assert parse(tomllib.loads(text)).split.own == {"clients": 3, "shards_per_client": 2, "field": ""}
    assert "# Here: few.\nclients = 3" in text


def test_the_example_of_stages_is_one(tmp_path: Path) -> None:
    text = run_file.text(BARE)
    lines = text.splitlines()
    start = lines.index("# [[stages]]")
    switched = [line.removeprefix("# ") if n >= start else line for n, line in enumerate(lines)]
    first, second = stages.settings_of(parse(tomllib.loads("\n".join(switched))))
    assert (first.tuning.objective.name, second.tuning.objective.name) == ("sft", "dpo")
    assert second.tuning.learning_rate == 1e-5


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("mine")
    with pytest.raises(FolderError, match="exists; name another file"):
        run_file.write(tmp_path / "run.toml")
    assert (tmp_path / "run.toml").read_text() == "mine"
    with pytest.raises(FolderError, match="cannot be written"):
        run_file.write(tmp_path / "nowhere" / "run.toml")
