"""Audits of whole runs: a model that memorises is found, an untouched one not, and nothing is given away."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from html import unescape
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests import runs
from tests.model import bases

from shepherd.audit import auditing, canaries
from shepherd.audit.auditing import Planted, audit_folder, audit_run_file
from shepherd.audit.canaries import Proven, Remembered
from shepherd.audit.estimate import Bounds
from shepherd.audit.membership import SCORES
from shepherd.audit.sections import (
    CLIENT,
    EXAMPLE,
    RELEASED,
    WORDS,
    Attacked,
    Claim,
    Column,
    Section,
    says,
    sections,
)
from shepherd.core import Mechanism, Spending, Transform
from shepherd.data import data_folder
from shepherd.errors import DataError, FolderError, SettingsError
from shepherd.overrides import dump
from shepherd.run import folder
from shepherd.run.loading import load_base
from shepherd.run.opening import open_run
from shepherd.ui.cli.main import main
from shepherd.ui.report import number_formats, page
from shepherd.ui.report.writing import write_audit
from shepherd.ui.terminal.audit_table import print_audit

COPIES = 20
PLANTED = Planted(count=40, copies=(COPIES,))


def train(opening) -> None:
    with closing(opening()) as run:
        for _ in run.rounds():
            pass
        run.finish(answer=False)


@pytest.fixture(scope="module", autouse=True)
def _known_coins():
    """The same coins in every run of these tests; others could leave too few canaries on one side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auditing.secrets, "randbits", lambda bits: 5)
        yield


def tiny(llama_folder, place: Path, **tables):
    source = place / "rows.jsonl"
    if not source.exists():
        runs.written(source, runs.rows(100))
    usual = {
        "adapter": {"rank": 8, "dropout": 0.0},
        "data": {"holdout": 0.4},
        "federation": {"rounds": 3},
        "selection": {"share": 1.0},
        "tuning": {"learning_rate": 0.01, "epochs": 2.0, "batch_size": 8},
    }
    return runs.settings(llama_folder, source, place / "run", **{**usual, **tables})


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("audits")


@pytest.fixture(scope="module")
def settings(llama_folder, place):
    return tiny(llama_folder, place)


@pytest.fixture(scope="module")
def audited(settings, place):
    return audit_run_file(settings, place / "audit", train=train, planted=PLANTED)


@pytest.fixture(scope="module")
def run(audited, place) -> Path:
    return place / "audit" / "run"


def test_what_a_model_memorises_is_found(audited):
    memory = audited.found.remembered[RELEASED]
    assert [each.copies for each in memory.groups] == [COPIES, COPIES]
    assert all(each.attack.auc.low > 0.6 for each in memory.groups)
    assert memory.proven[0].bounds.one_run > 0.8 * memory.proven[0].ceiling.one_run
    members = audited.found.membership[RELEASED]
    assert tuple(members.scores) == SCORES
    assert members.scores["reference"].auc.low > 0.5
    assert members.clients.keys() == data_folder.load(audited.folder / "run" / "data").clients.keys()
    assert set(members.categories) == set(runs.CATEGORIES)
    assert audited.found.remembered.keys() == {"round 2", RELEASED}
    assert auditing.WITH_CANARIES in audited.found.remarks
    update = next(each for each in sections(audited.found) if each.name == "one-update")
    assert {row[0] for row in update.rows} == {"first round", RELEASED}


def test_an_untouched_model_remembers_nothing(audited, settings, place):
    base = load_base(settings)
    planting = canaries.load(place / "audit")
    tokens = canaries.tokens_of(planting, settings, base)
    for adapter in (base.zero, bases.random_adapter(base, 5)):
        found = canaries.memory(
            base, {RELEASED: adapter}, planting, tokens, first=base.zero, delta=1e-5, micro_batch=999
        )
        memory = found[RELEASED]
        assert memory.proven[0].bounds.one_run < 0.5
        assert all(each.attack.auc.low < 0.5 for each in memory.groups)


def test_only_the_folder_of_the_audit_knows_the_coins_and_the_texts(audited, run, place):
    planting = canaries.load(place / "audit")
    write_audit(audited)
    texts = [text for each in planting.canaries for text in (each.instruction, each.response)]
    for path in place.rglob("*"):
        if not path.is_file() or path.name == canaries.FILE:
            continue
        content = path.read_bytes()
        assert b'"included": true' not in content
        assert not any(text.encode() in content for text in texts if text.count(" ") > 2), path
    assert not any("canar" in path.name for path in run.rglob("*"))
    assert "canar" not in (run / "run.toml").read_text()


def test_the_page_shows_the_numbers_of_the_json(audited):
    html = unescape(write_audit(audited).read_text())
    found = json.loads((audited.folder / auditing.JSON).read_text())
    assert found == json.loads(json.dumps(audited.row()))
    assert len(found["sections"]) == 7
    numbers = 0
    for s, section in enumerate(found["sections"]):
        assert section["title"] in html
        for i, row in enumerate(section["rows"]):
            for k, (cell, column) in enumerate(zip(row, section["columns"], strict=True)):
                if isinstance(cell, int | float):
                    numbers += 1
                    path = f'data-path="/sections/{s}/rows/{i}/{k}" data-value="{json.dumps(cell)}"'
                    assert path in html
                    assert f">{number_formats.FORMS[column['form']](cell)}<" in html
                elif isinstance(cell, dict):
                    assert f'data-path="/sections/{s}/rows/{i}/{k}/low"' in html
    assert numbers > 10
    for sentence in found["says"]:
        assert sentence[:40] in html.replace("&#39;", "'")


def test_a_section_of_another_attack_joins_table_and_page(audited):
    own = Section(
        name="inversion",
        title="Gradient inversion",
        words="What one update says.",
        columns=(Column("batch", WORDS), Column("recovered", "share")),
        rows=(("1 example", 0.75),),
    )
    found = replace(audited, found=replace(audited.found, extra=(own,)))
    assert sections(found.found)[-1] == own
    html = page.audit(found.row())
    assert 'id="inversion"' in html
    assert "75.0%" in html


def test_a_strangers_name_does_nothing_on_the_page_or_the_terminal(audited):
    members = audited.found.membership[RELEASED]
    name = "<script>alert(1)</script>\x1b[31m\u202e"
    hostile = replace(members, clients={name: next(iter(members.clients.values()))})
    found = replace(audited, found=replace(audited.found, membership={RELEASED: hostile}))
    html, stream = page.audit(found.row()), StringIO()
    print_audit(found, stream)
    assert "<script" not in html
    for text in (html, stream.getvalue()):
        assert not {"\x1b", "\u202e"} & set(text)


def test_a_run_folder_is_audited_as_it_is(run, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = CliRunner().invoke(main, ["audit", str(run), "--json", str(tmp_path / "found.json")])
    assert result.exit_code == 0, result.output
    assert "Members of the training data" in result.output
    assert "No canaries were planted" in result.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["canaries"] == {}
    assert found["membership"].keys() == {"round 2", RELEASED}
    kept = {
        path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "audit" not in path.parts[-2]
    }
    assert kept == before
    assert {path.name for path in (run / "audit").iterdir()} == {auditing.JSON, auditing.HTML}
    assert json.loads((run / "audit" / auditing.JSON).read_text()) == found


def test_the_same_command_continues_and_another_run_file_is_refused(audited, settings, place):
    again = audit_run_file(settings, place / "audit", train=pytest.fail, planted=PLANTED)
    assert again.row() == audited.row()
    other = settings.model_copy(update={"tuning": settings.tuning.model_copy(update={"batch_size": 4})})
    with pytest.raises(FolderError, match=r"another tuning\.batch_size"):
        audit_run_file(other, place / "audit", train=pytest.fail, planted=PLANTED)
    with pytest.raises(FolderError, match="40 canaries, not 60"):
        audit_run_file(settings, place / "audit", train=pytest.fail, planted=replace(PLANTED, count=60))
    with pytest.raises(FolderError, match="holds no audit"):
        audit_run_file(settings, place, train=pytest.fail, planted=PLANTED)


def test_a_stopped_audit_goes_on_with_the_same_coins(llama_folder, tmp_path):
    settings = tiny(llama_folder, tmp_path, federation={"rounds": 2})

    def stopped(opening):
        with closing(opening()) as run:
            next(run.rounds())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit_run_file(settings, tmp_path / "audit", train=stopped, planted=PLANTED)
    coins = canaries.load(tmp_path / "audit")
    found = audit_run_file(settings, tmp_path / "audit", train=train, planted=PLANTED)
    assert canaries.load(tmp_path / "audit") == coins
    assert found.rounds == 2


def test_a_claim_about_clients_is_audited_with_canaries_that_are_clients(llama_folder, tmp_path):
    protected = Transform(
        mechanism=Mechanism(spent=lambda how, count: Spending(noise=1.0, sampling=how, steps=count))
    )
    settings = tiny(llama_folder, tmp_path, federation={"rounds": 1, "weights": "equal"})
    found = audit_run_file(
        settings, tmp_path / "audit", train=train, planted=replace(PLANTED, count=20), transform=protected
    )
    memory = found.found.remembered[RELEASED]
    assert memory.as_clients
    pushed, texts = memory.proven
    assert (pushed.directions, texts.directions) == (True, False)
    assert pushed.bounds == pushed.ceiling  # nothing hides them
    planting = canaries.load(tmp_path / "audit")
    names = data_folder.load(tmp_path / "audit" / "run" / "data").clients
    assert len(names) == 4 + planting.coins.sum()
    assert "for one client" in " ".join(says(found.found))


def test_a_stopped_audit_of_clients_pushes_on(llama_folder, tmp_path):
    settings = tiny(llama_folder, tmp_path, federation={"rounds": 2, "weights": "equal"})
    planted = Planted(count=40, copies=(1,))
    protected = Transform(
        mechanism=Mechanism(spent=lambda how, count: Spending(noise=1.0, sampling=how, steps=count))
    )

    def stopped(opening):
        with closing(opening()) as run:
            next(run.rounds())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit_run_file(settings, tmp_path / "audit", train=stopped, planted=planted, transform=protected)
    found = audit_run_file(settings, tmp_path / "audit", train=train, planted=planted, transform=protected)
    pushed, _ = found.found.remembered[RELEASED].proven
    assert pushed.bounds == pushed.ceiling
    assert pushed.bounds.canaries == 20


def test_a_run_without_held_out_examples_is_one_sentence(llama_folder, tmp_path):
    settings = tiny(llama_folder, tmp_path, data={"holdout": 0.0}, federation={"rounds": 1})
    train(lambda: open_run(settings))
    result = CliRunner().invoke(main, ["audit", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "0 held-out examples; raise data.holdout" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    with pytest.raises(DataError):
        audit_folder(tmp_path / "run")


def test_what_is_no_run_is_one_sentence(tmp_path, run):
    for arguments, said in (
        ([str(tmp_path)], "holds no run"),
        ([str(tmp_path / "missing.toml")], "missing.toml"),
        ([str(run), "--canaries", "30"], "--canaries is for a run file"),
        ([str(run), "tuning.max_steps=1"], "key=value is for a run file"),
    ):
        result = CliRunner().invoke(main, ["audit", *arguments])
        assert result.exit_code == 2
        assert said in result.stderr
        assert "Traceback" not in result.output


def test_a_run_over_silos_is_one_sentence(run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / folder.SILOS).write_text("{}")
    with pytest.raises(FolderError, match="over silos, whose examples stay at its sites"):
        audit_folder(tmp_path / "run")


def test_a_run_file_is_audited_from_the_command_line(settings, place, audited, monkeypatch):
    """The audit that is there is continued, which is at its end."""
    (place / "run.toml").write_text(dump(settings))
    arguments = [
        "audit",
        str(place / "run.toml"),
        "-o",
        str(place / "audit"),
        "--canaries",
        "40",
        "--copies",
        str(COPIES),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "What the canaries prove of epsilon" in result.output
    assert "No canary was planted just once" in result.output
    planting = canaries.load(place / "audit")
    assert not any(each.response in result.output for each in planting.canaries)
    monkeypatch.setattr(auditing, "claim_of", lambda rows: Claim(epsilon=0.1, delta=1e-5))
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0  # a claim is about a single example, and each of these is there 20 times


def claiming(audited, epsilon: float) -> Attacked:
    memory = audited.found.remembered[RELEASED]
    return replace(
        audited.found,
        claim=Claim(epsilon=epsilon, delta=1e-5),
        remembered={RELEASED: replace(memory, as_clients=True)},
    )


def test_the_paragraph_says_what_the_numbers_allow(audited):
    proven = audited.found.remembered[RELEASED].proven[0]
    low, high = proven.bounds.one_run, proven.ceiling.one_run
    wrong = claiming(audited, low / 2)
    assert wrong.contradicted
    assert "therefore WRONG" in " ".join(says(wrong))
    likely = claiming(audited, (low + proven.bounds.gaussian) / 2)
    assert not likely.contradicted
    assert "very likely not what was accounted for" in " ".join(says(likely))
    beyond = claiming(audited, max(high, proven.bounds.gaussian) + 1)
    assert "more than even a perfect attack" in " ".join(says(beyond))
    assert "lower bounds of what leaks" in says(beyond)[-1]
    assert page.audit({**audited.row(), "contradicted": True}).count("contradicted") == 1


def bound(epsilon: float) -> Bounds:
    return Bounds(
        canaries=50, included=25, delta=1e-5, one_run=epsilon, gaussian=epsilon, clopper_pearson=0.0
    )


DIRECTIONS = Proven(copies=None, bounds=bound(0.5), ceiling=bound(1.7), directions=True)
TEXTS = Proven(copies=None, bounds=bound(1.3), ceiling=bound(1.7))
ONCE = Proven(copies=1, bounds=bound(0.5), ceiling=bound(1.7))


def attacked(claim: Claim, *proven: Proven, as_clients: bool) -> Attacked:
    memory = Remembered(as_clients=as_clients, groups=(), proven=proven)
    return Attacked(membership={}, remembered={RELEASED: memory}, claim=claim)


def claims(found: Attacked) -> list[float | None]:
    """The claim beside each bound of the table."""
    (table,) = [each for each in sections(found) if each.name == "epsilon"]
    labels = [each.label for each in table.columns]
    return [row[labels.index("claimed")] for row in table.rows] if "claimed" in labels else []


@pytest.mark.parametrize(
    ("claim", "proven", "as_clients"),
    [
        (Claim(epsilon=1.0, delta=1e-5, unit=CLIENT), (DIRECTIONS, TEXTS), True),
        (Claim(epsilon=1.0, delta=1e-5, unit=EXAMPLE), (ONCE, TEXTS), False),
    ],
    ids=["clients", "examples"],
)
def test_a_claim_is_tested_once_and_with_what_the_paragraph_quotes(claim, proven, as_clients):
    """The others exceed the claim, as one of two sets does by chance up to twice as often as one alone."""
    found = attacked(claim, *proven, as_clients=as_clients)
    assert not found.contradicted
    said = " ".join(says(found))
    assert "is at least 0.50" in said
    assert "nothing here contradicts it" in said
    assert claims(found) == [1.0] * 3 + [None] * 3
    first, *others = proven
    wrong = attacked(claim, replace(first, bounds=bound(1.1)), *others, as_clients=as_clients)
    assert wrong.contradicted
    said = " ".join(says(wrong))
    assert "is at least 1.10" in said
    assert "therefore WRONG" in said
    assert ("canaries that are directions" in said) == as_clients


@pytest.mark.parametrize(
    ("claim", "proven", "as_clients"),
    [
        (Claim(epsilon=0.1, delta=1e-5, unit=EXAMPLE), (DIRECTIONS, TEXTS), True),
        (Claim(epsilon=0.1, delta=1e-5, unit=CLIENT), (ONCE,), False),
    ],
    ids=["clients, of a claim about examples", "examples, of a claim about clients"],
)
def test_a_claim_about_another_unit_is_not_compared(claim, proven, as_clients):
    found = attacked(claim, *proven, as_clients=as_clients)
    assert not found.contradicted
    assert f"claims epsilon 0.1 for each {claim.unit}, with which no canary is compared" in " ".join(
        says(found)
    )
    assert not claims(found)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], None),
        ([{"round": 1}], None),
        (
            [{"round": 1, "epsilon": 2.0, "delta": 1e-3}, {"round": 2, "epsilon": 3}],
            Claim(epsilon=3.0, delta=None),
        ),
        ([{"round": 1, "epsilon": None}], None),
        (
            [{"round": 0}, {"round": 1, "privacy": {"epsilon": 0.5, "delta": 1e-4}}],
            Claim(epsilon=0.5, delta=1e-4, unit=CLIENT),
        ),
        ([{"round": 1, "privacy": {"epsilon": None, "delta": 1e-4}}], None),
        (  # what was finite once is infinite now
            [
                {"round": 1, "privacy": {"epsilon": 0.5, "delta": 1e-4}},
                {"round": 2, "privacy": {"epsilon": None, "delta": 1e-4}},
            ],
            None,
        ),
        (
            [{"round": 1, "example_privacy": {"epsilon": 0.7, "delta": 1e-4}}],
            Claim(epsilon=0.7, delta=1e-4, unit=EXAMPLE),
        ),
        (  # clients are what the canaries of such a run are
            [
                {
                    "round": 1,
                    "privacy": {"epsilon": 0.5, "delta": 1e-4},
                    "example_privacy": {"epsilon": 0.7, "delta": 1e-5},
                }
            ],
            Claim(epsilon=0.5, delta=1e-4, unit=CLIENT),
        ),
    ],
)
def test_the_claim_is_that_of_the_last_round(rows, expected):
    assert auditing.claim_of(rows) == expected


def test_without_scipy_one_sentence_says_what_to_install(monkeypatch, run):
    from shepherd.audit import estimate

    monkeypatch.setattr(estimate, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"\[privacy\]"):
        audit_folder(run)


@pytest.mark.parametrize(
    "other",
    [replace(PLANTED, copies=(1,)), replace(PLANTED, clients=("client-0",))],
    ids=["copies", "clients"],
)
def test_an_audit_is_not_continued_with_other_canaries(audited, settings, place, other):
    with pytest.raises(FolderError, match="holds an audit with other canaries; give the same --"):
        audit_run_file(settings, place / "audit", train=train, planted=other)
