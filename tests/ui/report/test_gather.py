"""What is collected from a run folder, by hand-worked figures; and that nothing missing or mad stops it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from shepherd.errors import FolderError
from shepherd.run import folder
from shepherd.run.log import LOG, read_rows
from shepherd.ui import report
from shepherd.ui.report import collect, page
from shepherd.visible import shown
from tests.ui.report import folders

ROWS: list[dict[str, Any]] = [
    {"round": 0, "heldout": {"loss": 3.0, "category": {"qa": 3.5}, "client": {"a": 3.0, "b": 3.25}}},
    {
        "round": 1,
        "cohort": ["a", "b"],
        "loss": 2.75,
        "failures": {"b": "late"},
        "late": ["c", "d"],
        "dropped": ["d"],
        "bytes_down": 10,
        "bytes_up": 7,
        "gap": 0.125,
        "examples": 4,
        "steps": 2,
        "tokens": {"seen": 9, "trained": 5},
        "coverage": {"a": 0.5, "b": 0.0},
        "learning_rate": 0.01,
        "seconds": {"round": 2.0, "tuning": 1.5},
    },
    {
        "round": 2,
        "cohort": ["a", "b"],
        "loss": 2.5,
        "failures": {},
        "carried": {"c": 1},
        "bytes_down": 10,
        "bytes_up": 10,
        "gap": 0.25,
        "energy_kept": 0.9375,
        "spread": 1.5,
        "cosine": 0.25,
        "cosines": {"a": 0.75, "b": -0.25},
        "examples": 8,
        "steps": 4,
        "tokens": {"seen": 18, "trained": 11},
        "coverage": {"a": 1.0, "b": 0.5},
        "heldout": {"loss": 2.0, "category": {"qa": 2.25}, "client": {"a": 2.0, "b": 2.125}},
        "seconds": {"round": 3.0, "tuning": 2.5},
    },
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The three rows above, as a run of two rounds."""
    path = folders.write(tmp_path / "run", rounds=2, clients=["a", "b"])
    (path / LOG).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    return folders.comparison(folders.write(tmp_path / "run"), seeds=2)


def test_the_rounds_and_their_sums(run: Path) -> None:
    found = collect(run)
    assert found["totals"] == {
        "rounds": 2,
        "bytes_down": 20,
        "bytes_up": 17,
        "seconds": 5.0,
        "examples": 12,
        "steps": 6,
        "tokens": 16,
        "failures": 1,
        "late": 2,
        "dropped": 1,
        "carried": 1,
    }
    assert found["rounds"][1] == {
        "round": 1,
        "train_loss": 2.75,
        "heldout_loss": None,
        "worst_client": None,
        "client_spread": None,
        "personal_loss": None,
        "worst_personal": None,
        "personal_spread": None,
        "bytes_down": 10,
        "bytes_up": 7,
        "gap": 0.125,
        "energy_kept": None,
        "spread": None,
        "cosine": None,
        "lowest_cosine": None,
        "learning_rate": 0.01,
        "clients": 2,
        "failures": 1,
        "coverage": 0.25,
        "seconds": 2.0,
    }
    audited = {
        name: found["rounds"][2][name] for name in ("energy_kept", "spread", "cosine", "lowest_cosine")
    }
    assert list(audited.values()) == [0.9375, 1.5, 0.25, -0.25]
    assert found["failures"] == [{"round": 1, "client": "b", "reason": "late"}]
    assert found["coverage"] == {"a": 1.0, "b": 0.5}
    assert found["status"] == {"state": "finished", "round": 2, "rounds": 2, "says": "finished, 2 rounds"}
    assert found["curves"] == [
        {
            "arm": "federated",
            "seed": 0,
            "name": "federated",
            "points": [
                {"round": 0, "heldout": 3.0, "train": None},
                {"round": 1, "heldout": None, "train": 2.75},
                {"round": 2, "heldout": 2.0, "train": 2.5},
            ],
        }
    ]


def test_what_clients_have_of_it_round_by_round(run: Path) -> None:
    more = {
        "heldout": {"loss": 2.0, "client": {"a": 1.5, "b": 2.5}, "worst_client": 2.5, "spread": 0.5},
        "personal": {"loss": 1.25, "worst_client": 1.5, "spread": 0.25, "client": {"a": 1.0, "b": 1.5}},
        "contribution": {"leave_one_out": {"a": 0.25, "b": -0.5}, "projection": {"a": 0.125, "b": 0.375}},
    }
    alone = {"contribution": {"leave_one_out": {}, "projection": {"a": 0.5, "b": float("nan")}}}
    rows = [ROWS[0], {**ROWS[1], **alone}, {**ROWS[2], **more}]
    (run / LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = collect(run)
    names = ("worst_client", "client_spread", "personal_loss", "worst_personal", "personal_spread")
    assert [found["rounds"][2][name] for name in names] == [2.5, 0.5, 1.25, 1.5, 0.25]
    assert {client: row["its own model"] for client, row in found["client_loss"]["rows"].items()} == {
        "a": 1.0,
        "b": 1.5,
    }
    assert found["contribution"] == [
        {"client": "a", "rounds": 2, "leave_one_out": 0.25, "projection": 0.625},
        {"client": "b", "rounds": 2, "leave_one_out": -0.5, "projection": 0.375},
    ]
    inside = page.main(found)
    for name in ("clients", "personal"):
        assert f"chart-{name}-t" in inside
    assert "Leaving it out" in inside
    assert "of which the client keeps a part" in inside
    plain = page.main({key: value for key, value in found.items() if key != "contribution"})
    assert "Leaving it out" not in plain


def test_a_run_alone_is_its_base_and_its_last_scored_round(run: Path) -> None:
    (run / "answers.jsonl").write_text(
        "".join(json.dumps(folders.answer(k, "qa" if k < 3 else "poem")) + "\n" for k in range(5))
    )
    found = collect(run)
    base, federated = found["arms"]
    bare = {"low": None, "high": None}
    assert base["measures"] == {"right": {"value": 0.0, **bare}, "loss": {"value": 3.0, **bare}}
    assert federated["measures"] == {"right": {"value": 0.6, **bare}, "loss": {"value": 2.0, **bare}}
    assert federated["category"]["right"] == {"qa": {"value": 2 / 3, **bare}, "poem": {"value": 0.5, **bare}}
    assert federated["worst_client"] == {"name": "b", "loss": 2.125}
    assert federated["trained"] == {"steps": 6, "examples": 12, "tokens": 16, "seconds": 4.0}
    assert found["client_loss"]["rows"] == {
        "a": {"base": 3.0, "federated": 2.0},
        "b": {"base": 3.25, "federated": 2.125},
    }
    assert found["says"] == [
        "Held-out loss fell from 3.000 to 2.000 nats a response token by round 2.",
        "Of 5 held-out questions with a checker, the base answers 0 correctly and the trained adapter 3.",
        "To see whether federation is worth it, train and score other arms with `shepherd compare`.",
    ]
    assert [sample["category"] for sample in found["samples"]] == ["qa"] * 3 + ["poem"] * 2
    assert found["samples"][0]["answers"]["federated"] == {"text": "Answer: a spoon", "right": False}
    assert found["comparison"] is None


def test_a_comparison_is_shown_as_it_stands(compared: Path) -> None:
    given = json.loads((compared / "compare" / "comparison.json").read_text())
    found = collect(compared)
    assert found["says"] == given["says"]
    assert found["measures"] == ["right", "exact", "f1", "rouge_l", "loss"]
    for arm, there in zip(given["arms"], found["arms"], strict=True):
        for key in (
            "name",
            "kind",
            "client",
            "categories",
            "overrides",
            "trained",
            "measures",
            "worst_client",
        ):
            assert there[key] == arm[key]
        assert there["category"] == arm["category"]
        assert there["client_loss"] == arm["client_loss"]
    losses = [each for each in given["differences"] if each["measure"] == "loss"]
    rights = [each for each in given["differences"] if each["measure"] == "right"]
    assert len(losses) == len(rights) == len(given["arms"]) - 1
    assert [
        {k: v for k, v in each.items() if k != "lacks"} for each in found["differences"]
    ] == rights + losses
    assert found["samples"] == given["samples"]
    assert found["comparison"] == {
        "finished": True,
        "match": "steps",
        "seeds": [0, 1],
        "against": "federated",
        "questions": 400,
        "loss_examples": 400,
        "seconds": 391.5,
    }
    assert found["judge"]["rows"][0]["win_rate"] == given["judge"]["rows"][0]["win_rate"]
    assert "base_url" not in found["judge"]


def test_clients_are_set_beside_the_arm_of_their_own(compared: Path) -> None:
    given = {
        arm["name"]: arm for arm in json.loads((compared / "compare/comparison.json").read_text())["arms"]
    }
    found = collect(compared)["client_loss"]
    assert found["columns"] == ["its own arm", "base", "centralised", "federated", "ffa"]
    own = given["local-client-1"]["client_loss"]["client-1"]
    assert found["rows"]["client-1"]["its own arm"] == own
    assert found["rows"]["client-9"]["its own arm"] is None
    assert found["rows"]["client-9"]["base"] == given["base"]["client_loss"]["client-9"]


def test_curves_are_of_the_run_its_variants_and_its_other_seeds(tmp_path: Path) -> None:
    path = folders.comparison(folders.write(tmp_path / "run", seed=5), seeds=2)
    found = collect(path)["curves"]
    assert [curve["name"] for curve in found] == ["federated, seed 5", "ffa, seed 5", "federated, seed 6"]
    other = read_rows(path / "compare" / "seed-1" / "federated")
    assert [point["train"] for point in found[2]["points"]] == [row.get("loss") for row in other]


def test_many_local_arms_come_after_the_others(tmp_path: Path) -> None:
    path = folders.comparison(folders.write(tmp_path / "run", clients=20), locals_=20)
    assert [arm["name"] for arm in collect(path)["arms"]][:5] == [
        "base", "centralised", "federated", "ffa", "local-client-0",
    ]  # fmt: skip


def test_a_run_going_on_says_so(tmp_path: Path) -> None:
    path = folders.write(tmp_path / "run", done=3)
    assert collect(path)["status"]["says"] == "stopped, round 3 of 12"
    held = folder.reopen(path)
    found = collect(path)
    assert found["status"] == {
        "state": "running",
        "round": 3,
        "rounds": 12,
        "says": "still running, round 3 of 12",
    }
    assert "still running" in found["says"][-1]
    held.close()
    folder.reopen(path).close()  # looking kept no lock
    (path / folder.LOCK).unlink()
    assert collect(path)["status"]["says"] == "not finished, round 3 of 12"


def test_a_torn_last_line_is_not_there(run: Path) -> None:
    whole = collect(run)
    with open(run / LOG, "a") as log:
        log.write('{"round": 3, "loss": 1.')
    assert collect(run) == whole


def test_only_round_0_and_no_round_at_all(tmp_path: Path) -> None:
    path = folders.write(tmp_path / "run", done=0)
    found = collect(path)
    assert [arm["name"] for arm in found["arms"]] == ["base"]
    assert found["says"][0].startswith("Before training, held-out loss is ")
    (path / LOG).write_text("")
    (path / "data" / "index.json").unlink()
    empty = collect(path)
    assert (empty["arms"], empty["rounds"], empty["curves"]) == ([], [], [])
    assert empty["says"] == ["No round is finished yet, so there is nothing to show."]
    page.html(empty)


def test_what_others_wrote_is_visible_in_json_and_page(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\x9b\u202etxt\u2066\u200b"
    path = folders.comparison(folders.write(tmp_path / "run", clients=[evil, "b"], categories=[evil, "qa"]))
    (path / LOG).write_text(
        json.dumps({"round": 1, "cohort": [evil], "loss": 1.0, "failures": {evil: f"a\r\n{evil}"}}) + "\n"
    )
    report.write(path)
    for name in (report.HTML, report.JSON):
        text = (path / name).read_text(encoding="utf8")
        assert shown(text) == text
        assert "x1b[2J" in text
    assert collect(path)["failures"] == [{"round": 1, "client": shown(evil), "reason": f"a\n{shown(evil)}"}]
    assert shown(page.live(evil, page.trouble(evil), "t", "n")) == page.live(
        evil, page.trouble(evil), "t", "n"
    )


def test_nothing_held_out_leaves_the_training_loss(tmp_path: Path) -> None:
    found = collect(folders.write(tmp_path / "run", heldout=False))
    assert found["arms"] == []
    assert found["says"][0].startswith("Nothing is held out. The clients' training loss fell from ")


def test_what_json_cannot_hold_becomes_null_or_a_mark(run: Path) -> None:
    row = '{"round": 1, "loss": NaN, "gap": Infinity, "failures": {"a\\ud800": "\\u0000"}}\n'
    (run / LOG).write_text(row)
    found = collect(run)
    assert (found["rounds"][0]["train_loss"], found["rounds"][0]["gap"]) == (None, None)
    assert found["failures"][0] == {"round": 1, "client": "a\\ud800", "reason": "\\x00"}
    json.dumps(found, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("compare/comparison.json", "{", "run `shepherd compare` again"),
        ("compare/comparison.json", "[]", "contains no JSON object"),
        ("data/index.json", "\xff", "start the run again"),
        ("versions.json", "no", "remove it"),
        (LOG, '{"round": 1}\nno\n{"round": 2}\n', "line 2 of"),
        (folder.RUN_FILE, "x = ", "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(compared: Path, name: str, content: str, said: str) -> None:
    (compared / name).write_text(content, encoding="latin-1")
    with pytest.raises(FolderError, match=said) as error:
        collect(compared)
    assert name.split("/")[-1] in str(error.value)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="holds no run"):
        collect(tmp_path / "nowhere")


JUNK = (None, "x", [], {}, float("nan"), -1, True, [1, "a"], {"value": 1e308, "low": -1e308}, 10**400, 5e-324)


def _spoiled(rng: random.Random, value: Any, rate: float) -> Any:
    if rng.random() < rate:
        return rng.choice(JUNK)
    if isinstance(value, dict):
        return {key: _spoiled(rng, item, rate) for key, item in value.items() if rng.random() > rate}
    return [_spoiled(rng, item, rate) for item in value] if isinstance(value, list) else value


def test_no_missing_key_and_no_mad_value_stops_the_page(tmp_path: Path) -> None:
    path = folders.write(tmp_path / "run", clients=3, rounds=3, categories=("a", "b"), answers=4)
    folders.comparison(path, categories=("a", "b"), locals_=1)
    names = ("compare/comparison.json", "data/index.json")
    whole = {name: json.loads((path / name).read_text()) for name in names}
    rows = read_rows(path)
    for seed in range(40):
        rng = random.Random(seed)
        rate = rng.choice([0.003, 0.02, 0.1])
        for name, value in whole.items():
            spoiled = {key: _spoiled(rng, item, rate) for key, item in value.items() if rng.random() > rate}
            (path / name).write_text(json.dumps(spoiled))
        log = [{key: _spoiled(rng, item, rate) for key, item in row.items()} for row in rows]
        lines = [json.dumps({**row, "round": k}) for k, row in enumerate(log)]
        (path / LOG).write_text("\n".join(lines) + "\n")
        found = collect(path)
        json.dumps(found, allow_nan=False).encode()
        page.html(found)
        for row, found_row, before in zip(log, found["rounds"], rows, strict=True):  # what is intact is shown
            for key, name in (("loss", "train_loss"), ("bytes_up", "bytes_up"), ("gap", "gap")):
                if key in before and row[key] == before[key]:
                    assert found_row[name] == before[key]


@pytest.mark.parametrize(
    ("seeds", "questions", "lacks"),
    [
        ([0], 12, "at least 3 seeds and 30 questions"),
        ([0, 1], 200, "at least 3 seeds"),
        ([0, 1, 2], 29, "at least 30 questions"),
        ([0, 1, 2], 30, ""),
    ],
)
def test_settled_takes_three_seeds_and_enough_questions(tmp_path: Path, seeds, questions, lacks) -> None:
    path = folders.comparison(folders.write(tmp_path / "run"), seeds=len(seeds))
    file = path / "compare" / "comparison.json"
    given = json.loads(file.read_text()) | {"seeds": seeds, "questions": questions, "loss_examples": 500}
    file.write_text(json.dumps(given))
    found = [each for each in collect(path)["differences"] if each["measure"] == "right"]
    for each in found:
        assert each["lacks"] == (lacks if each["p_holm"] < 0.05 else None)
    assert (">settled<" in page.html(collect(path))) == (len(seeds) >= 3)  # by the loss it is
