"""The model card says what was done, loads where it says so, and holds no example."""

import ast
import tomllib
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from shepherd.data.examples import Turn
from shepherd.data.template import Template, prompt
from shepherd.data.template_pieces import styled
from shepherd.overrides import parse
from shepherd.run import card
from shepherd.visible import shown
from tests.data.kinds import made

HUB = {"model": {"base": "org/model", "revision": "v2"}, "data": {"source": "org/data", "holdout": 0.2}}
ROWS = [
    {"round": 0, "heldout": {"loss": 3.0, "category": {"qa": 3.5}}},
    {"round": 1, "bytes_down": 10, "bytes_up": 7, "tokens": {"trained": 5}, "failures": {"b": "late"}},
    {
        "round": 2,
        "heldout": {"loss": 2.0, "category": {"qa": 2.25}},
        "bytes_down": 10,
        "bytes_up": 9,
        "tokens": {"trained": 6},
        "failures": {},
        "coverage": {"a": 1.0, "b": 0.5},
    },
]
CLIENTS = {"a": 40, "b": 20}


def written(table: dict[str, object], **changes: object) -> str:
    given = {"rows": ROWS, "answers": {"qa": (0.0, 0.5)}, "data": {"heldout": 15}, "clients": CLIENTS}
    return card.text(parse(table), **{**given, **changes})  # type: ignore[arg-type]


def test_the_hub_reads_its_metadata() -> None:
    found = ModelCard(written(HUB)).data.to_dict()
    assert (found["base_model"], found["datasets"], found["library_name"]) == (
        "org/model",
        ["org/data"],
        "peft",
    )
    assert "fedavg" in found["tags"]


@pytest.mark.parametrize("base", ["tiny", "/models/llama", "./a/b", "a/b/c"])
def test_a_base_that_is_no_hub_id_stays_out_of_the_metadata(base: str) -> None:
    text = written({"model": {"base": base}, "data": {"source": "world"}})
    assert "base_model" not in ModelCard(text).data.to_dict()
    assert ("base_path()" in text) == (base == "tiny")


def test_the_figures_are_the_logs() -> None:
    text = written(HUB)
    for line in (
        "| qa | 0.0% | 50.0% | 3.5000 | 2.2500 |",
        "| all |  |  | 3.0000 | 2.0000 |",
        "| training examples | 60, from 20 to 40 a client |",
        "| coverage | 75.0% of a client's data seen on average, 50.0% at least |",
        "| tokens trained | 11 |",
        "| bytes sent down, up | 20, 16 |",
        "| updates missed | 1 |",
        "| heldout | 15 |",
    ):
        assert line in text
    assert "from_pretrained('org/model', revision='v2')" in text


def test_the_run_file_in_it_runs_again() -> None:
    text = written(HUB)
    table = text.split("```toml\n")[1].split("```")[0]
    assert parse(tomllib.loads(table)) == parse(HUB)


def test_the_folders_of_a_machine_stay_there() -> None:
    text = written(
        {
            "model": {"base": "/home/me/models/llama"},
            "data": {"source": "/data/clinic/notes.jsonl"},
            "output": "/scratch/me/first",
        }
    )
    for word in ("/home", "models", "clinic", "/data", "scratch"):
        assert word not in text
    for line in (
        'base = "llama"',
        "| source | `notes.jsonl` |",
        "base's public name at `base_model_name_or_path`",
    ):
        assert line in text
    assert "public name" not in written(HUB)


def test_the_prompt_in_it_is_what_was_trained_on() -> None:
    for template in ("alpaca", "alpaca-short", "vicuna", "plain"):
        text = written({**HUB, "data": {**HUB["data"], "template": template}})
        line = next(line for line in text.splitlines() if line.startswith("prompt = tokenizer("))
        (part,) = styled([Turn(role="user", text="Name two rivers.")], template, 0)
        assert (
            ast.literal_eval(line.removeprefix("prompt = tokenizer(").partition(", return")[0]) == part.text
        )
    text = written({**HUB, "data": {**HUB["data"], "template": "chat"}})
    assert '[{"role": "user", "content": "Name two rivers."}]' in text


@pytest.mark.parametrize("template", ["alpaca", "vicuna", "plain"])
def test_the_system_prompt_of_the_run_is_in_the_prompt(template: str) -> None:
    data = {**HUB["data"], "template": template, "system": "Be brief."}
    trained = prompt_turns(data, tokenizer := chatty(""))
    assert asked_as_the_card_says(data, tokenizer) == trained
    assert "Be brief." in tokenizer.decode(trained)


def test_a_chat_in_it_has_the_runs_system_prompt_options_and_date() -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
        "{{ strftime_now('%d %B %Y') }}{% if enable_thinking is false %}<off>{% endif %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    options = {"enable_thinking": False}
    data = {
        **HUB["data"],
        "template": "chat",
        "system": 'Sag "ja".',
        "template_options": options,
        "date": "2001-02-03",
    }
    trained = prompt_turns(data, tokenizer := chatty(source))
    assert asked_as_the_card_says(data, tokenizer) == trained
    for part in ('<system>Sag "ja".', "03 February 2001", "<off>"):
        assert part in tokenizer.decode(trained)


def chatty(source: str) -> Any:
    tokenizer = made()
    tokenizer.chat_template = source
    return tokenizer


def prompt_turns(data: dict[str, object], tokenizer: Any) -> list[int]:
    """What a run with these data asks for an answer to."""
    settings = parse({**HUB, "data": data})
    return prompt([Turn(role="user", text="Name two rivers.")], Template.of(settings.data), tokenizer)


def asked_as_the_card_says(data: dict[str, object], tokenizer: Any) -> list[int]:
    lines = written({**HUB, "data": data}).split("from_pretrained(base, folder)\n")[1].split("\nends")[0]
    lines = lines[lines.index("\n") :] if lines.startswith("model") else lines
    names = {"tokenizer": tokenizer}
    exec(lines, names)
    return list(names["prompt"]["input_ids"][0].tolist())


@pytest.mark.parametrize(
    ("base", "said"), [("tiny", "embedded in the package"), ("known", ""), ("unknown", "public name at")]
)
def test_where_the_base_comes_from_is_said(
    base: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models--known").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    text = written({**HUB, "model": {"base": base}})
    assert said in text
    assert ("adapter_config.json" in text) == bool(said)
    assert ModelCard(text).data.to_dict().get("base_model") == ("known" if base == "known" else None)


def test_a_folder_has_no_commit_of_the_hub_and_a_folder_of_its_cache_has() -> None:
    cached = f"/home/me/hub/models--org--model/snapshots/{'0a' * 20}"
    for base, named, commit in (("/models/llama", None, ""), (cached, "org/model", "0a" * 20)):
        text = written({**HUB, "model": {"base": base, "revision": "v2"}})
        assert ModelCard(text).data.to_dict().get("base_model") == named
        assert "v2" not in text
        assert ("revision" in text) == bool(commit)
        assert "/home/me" not in text
    for line in (
        f"from_pretrained('org/model', revision='{commit}')",
        f"| base | `org/model` at revision `{commit}` |",
        "for `org/model`",
    ):
        assert line in text


def test_the_command_in_it_is_for_its_reader() -> None:
    for base in ("org/model", "/models/llama"):
        table = {**HUB, "model": {"base": base}}
        for repo, folder in (("", "path/to/this/folder"), ("me/adapter", "me/adapter")):
            for library in ("peft", "transformers"):
                text = card.exported(
                    written(table), library=library, holds_base=False, serve="vllm serve it", repo=repo
                )
                assert text.count("```sh\nvllm serve it\n```\n\nPrompts follow") == 1
                assert ("In this folder:\n\n```sh" in text) == (not repo)
                assert (f'folder = "{folder}"' in text) == (library == "peft")


def test_nothing_scored_has_no_table_of_scores() -> None:
    assert "## Scores" not in written(HUB, rows=[], answers={})
    assert "## Scores" in written(HUB)


def test_the_python_in_it_compiles(tmp_path: Path) -> None:
    for base, template in (("tiny", "alpaca"), ("org/model", "chat")):
        text = written({"model": {"base": base}, "data": {"source": "world", "template": template}})
        compile(text.split("```python\n")[1].split("```")[0], "card", "exec")
    settings = parse(HUB)
    path = card.write(tmp_path, settings, rows=ROWS, answers={}, data={}, clients=CLIENTS)
    assert path == tmp_path / "README.md"
    assert path.read_text().startswith("---\n")


def test_the_score_of_an_earlier_round_is_not_the_adapters() -> None:
    """As with `shepherd export --round 3`, where evaluation.every is 2."""
    rows = [*ROWS, {"round": 3, "bytes_down": 10, "bytes_up": 9, "tokens": {"trained": 6}, "failures": {}}]
    for given, value in ((ROWS, 2.0), (rows, None), (ROWS[:1], None)):
        text = written({**HUB, "model": {"base": "tiny"}}, rows=given, answers={})
        found = [each.metric_value for each in ModelCard(text).data.eval_results or []]
        assert found == ([value] if value else [])
        assert ("2.2500" in text) is (value is not None)


EVIL = "\x1b[2J\x1b]0;owned\x07\u202e"


def test_what_others_have_named_is_text_in_it() -> None:
    name = f"{EVIL}\n| x [y](http://evil.example) <img src=http://evil.example> ![z](http://evil.example) `c`"
    rows = [{"round": n, "heldout": {"loss": 3.0, "category": {name: 3.5}}} for n in (0, 1)]
    table: dict[str, object] = {"model": {"base": f"/m/{EVIL}"}, "data": {"source": f"/d/{EVIL}"}}
    text = written(table, rows=rows, answers={name: (0.0, 0.5)})
    assert shown(text) == text
    (line,) = [line for line in text.splitlines() if "0.0%" in line]
    for mark in "[<`!":
        assert f"\\{mark}" in line
        assert line.count(mark) == line.count(f"\\{mark}")
    assert line.count(" | ") == 4  # the cells are five
    assert "owned" in line


def test_late_updates_are_counted_under_stragglers() -> None:
    rows = [{"round": 1, "late": ["a", "b"], "dropped": ["b"]}, {"round": 2, "carried": {"a": 1}}]
    waits = {**HUB, "stragglers": {"min_updates": 2}}
    assert "updates late, dropped, taken in a later round | 2, 1, 1 |" in written(waits, rows=rows)
    assert "updates late" not in written(HUB, rows=rows)
