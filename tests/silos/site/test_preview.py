"""What a site's owner is told before joining, against the files themselves; and how it is shown."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shepherd import world
from shepherd.core.spending import Poisson, Spending
from shepherd.errors import SettingsError
from shepherd.io.phrases import delta_text, epsilon_text
from shepherd.model.digest import digest
from shepherd.privacy import accountant
from shepherd.silos.site import privacy_ledger
from shepherd.silos.site.preview import Found, check, in_words
from shepherd.silos.site.site_settings import PolicyTable, example, parse_request, read
from shepherd.ui.terminal.site_preview import print_preview
from tests import runs
from tests.silos.site.asking import request

TINY = digest(world.base_path())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site with 36 examples and the embedded base."""
    runs.written(tmp_path / "data.jsonl")
    (tmp_path / "site.toml").write_text(example())
    (tmp_path / "site.toml").chmod(0o600)
    return tmp_path


def changed(folder: Path, *pairs: tuple[str, str]) -> Path:
    path = folder / "site.toml"
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def printed(found: Found) -> str:
    stream = io.StringIO()
    assert print_preview(found, stream) == (not found.faults)
    return stream.getvalue()


def test_a_site_that_is_ready(folder: Path) -> None:
    found = check(folder / "site.toml")
    assert found.faults == ()
    assert found.data is not None
    assert found.data.report is not None
    assert found.data.examples + sum(found.data.heldout.values()) == found.data.report.counts.kept == 36
    assert sorted(found.data.heldout) == sorted(runs.CATEGORIES)
    assert sorted(found.data.heldout.values()) == [1, 1, 2]  # a tenth of 36, evenly
    assert found.data.scored == {}
    assert len(found.data.report.samples) == 3
    assert [(base.name, base.digest, base.fault) for base in found.bases] == [("tiny", TINY, "")]
    assert found.leaving is not None
    assert found.leaving.rank == PolicyTable().max_rank  # the most that a run can ask for
    text = printed(found)
    assert "[[" in text  # a sample with its mask, for the owner's own terminal
    assert "32 examples are trained on; 4 are held out" in text
    assert f"tiny in {world.base_path()}: {TINY}, as in site.toml" in text
    assert "this site is ready to join" in text
    assert "To fix" not in text


def test_what_leaves_is_what_an_adapter_of_that_rank_holds(folder: Path) -> None:
    from safetensors.torch import load_file

    run = parse_request(request(adapter={"rank": 2, "targets": ["q_proj", "down_proj"]}).settings)
    leaving = check(folder / "site.toml", run).leaving
    assert leaving is not None
    weights = load_file(world.base_path() / "model.safetensors")
    expected = 0
    for name, weight in weights.items():
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            module = name.removesuffix(".weight")
            out, width = tuple(weight.shape)
            assert leaving.tensors[f"base_model.model.{module}.lora_A.weight"] == (2, width)
            assert leaving.tensors[f"base_model.model.{module}.lora_B.weight"] == (out, 2)
            expected += 4 * 2 * (out + width)
    assert leaving.bytes == expected > 0
    assert f"{len(leaving.tensors)} tensors of float32 at rank 2 over tiny: {expected:,} bytes" in printed(
        check(folder / "site.toml", run)
    )


def test_the_runs_template_is_shown_and_the_owners_hold_out(folder: Path) -> None:
    path = changed(folder, ("share = 0.1", "share = 0.5"))
    run = parse_request(request(data={"template": "plain", "holdout": 0.2, "max_tokens": 9}).settings)
    found = check(path, run)
    assert found.data is not None
    assert found.data.report is not None
    assert found.data.heldout == dict.fromkeys(runs.CATEGORIES, 6)
    assert found.data.report.counts.cut > 0
    assert "chooses the template (here plain) and the longest example (here 9 tokens)" in printed(found)
    assert "This run renders examples differently from [scoring]" in found.notes[0]


def test_a_run_that_the_policy_refuses_is_told_rule_by_rule(folder: Path) -> None:
    path = changed(folder, ("max_rank = 16", "max_rank = 4"), ("max_steps = 1000", "max_steps = 3"))
    run = parse_request(request(algorithm={"name": "their.module"}).settings)
    faults = check(path, run).faults
    assert [fault.split(" = ")[0] for fault in faults] == [
        "policy max_rank",
        "policy algorithms",
        "policy max_steps",
    ]
    assert all("of site refuses" in fault for fault in faults)
    assert all(fault in printed(check(path, run)) for fault in faults)


def test_too_few_examples_are_told_without_a_run(folder: Path) -> None:
    path = changed(folder, ("min_examples = 16", "min_examples = 34"))
    assert check(path).faults == (
        "policy min_examples = 34 refuses every run, since 32 examples are left to train on; add examples,"
        " or lower it",
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ("min_batch = 8", "min_batch = 33"),
            "policy min_batch = 33 refuses every run, since 32 examples are left to train on; add examples,"
            " or lower it",
        ),
        (
            ("max_epochs = 3.0", "max_epochs = 0.4"),
            "policy max_epochs = 0.4 and min_examples = 16 together refuse every run, since 32 examples"
            " are left to train on; raise max_epochs, or lower min_examples",
        ),
    ],
)
def test_a_policy_that_refuses_every_visit_is_told_without_a_run(
    folder: Path, change: tuple[str, str], sentence: str
) -> None:
    assert check(changed(folder, change)).faults == (sentence,)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (
            ("max_epochs = 3.0", "max_epochs = 0.5"),
            "policy max_epochs = 0.5 of site refuses 1 epochs a visit",
        ),
        (("min_batch = 8", "min_batch = 32"), ""),
        (("max_steps = 1000", "max_steps = 1"), ""),
        (("max_learning_rate = 0.1", "max_learning_rate = 1e-5"), "policy max_learning_rate = 1e-05 of site"),
    ],
)
def test_a_usual_run_that_would_be_refused_is_told_without_a_run(
    folder: Path, change: tuple[str, str], rule: str
) -> None:
    found = check(changed(folder, change))
    assert found.faults == ()
    if rule:
        (note,) = found.notes
        assert note.startswith(f"A default run (one epoch a visit, 32 examples a step) is refused: {rule}")
    else:
        assert found.notes == ()


def test_what_visits_pass_over_is_told(folder: Path) -> None:
    """Of 32, one step of 20 takes 20; the 12 that are left are too few for a visit."""
    run = parse_request(request(tuning={"max_steps": 1, "batch_size": 20}).settings)
    (note,) = [each for each in check(folder / "site.toml", run).notes if "skip" in each]
    assert note.startswith("Visits of 20 examples skip 37 % of the 32 in each epoch: a visit that")
    for tuning in ({"max_steps": 2, "batch_size": 16}, {"max_steps": 1, "batch_size": 32}, {"epochs": 1}):
        run = parse_request(request(tuning=tuning).settings)
        assert "skip" not in " ".join(check(folder / "site.toml", run).notes)


# --- bases


def test_a_base_without_a_digest_is_told_the_line_to_write(folder: Path) -> None:
    found = check(changed(folder, (f'sha256 = "{TINY}"', "")))
    assert found.faults == (f'base tiny is not allowed yet; to allow it, write sha256 = "{TINY}" under it',)
    assert found.data is not None  # it can still be looked at
    assert found.data.report is not None


def test_a_base_that_changed_is_named(folder: Path) -> None:
    shutil.copytree(world.base_path(), folder / "copy")
    config = folder / "copy" / "config.json"
    config.write_text(config.read_text() + "\n")
    found = check(changed(folder, ('folder = "tiny"', 'folder = "copy"')))
    (fault,) = found.faults
    assert f"base tiny has the digest {digest(folder / 'copy')}, not {TINY}" in fault
    assert "not the digest in site.toml" in printed(found)


def test_without_a_base_the_data_are_still_read(folder: Path) -> None:
    found = check(changed(folder, ('folder = "tiny"', 'folder = "./nowhere"')))
    assert len(found.faults) == 2
    assert found.faults[0].startswith(f"there is no folder {folder}/nowhere")
    assert "lists no base that can be read" in found.faults[1]
    assert found.data is not None
    assert (found.data.report, found.data.examples) == (None, 32)
    assert found.leaving is None
    assert "tiny: not found" in printed(found)


# --- data


def test_a_row_that_cannot_be_read_is_named_or_counted(folder: Path) -> None:
    with open(folder / "data.jsonl", "a") as file:
        file.write('{"instruction": "w4"}\n')
    found = check(folder / "site.toml")
    assert found.data is None
    assert "line 37" in found.faults[0]
    skipping = check(changed(folder, ('on_bad_row = "error"', 'on_bad_row = "skip"')))
    assert skipping.faults == ()
    assert skipping.data is not None
    assert len(skipping.data.skipped) == 1
    assert "1 unreadable rows are left out" in printed(skipping)


def test_what_lies_beside_the_data_is_named(folder: Path) -> None:
    (folder / "rows").mkdir()
    (folder / "data.jsonl").rename(folder / "rows" / "data.jsonl")
    (folder / "rows" / "._data.jsonl").write_bytes(b"\0")
    text = printed(check(changed(folder, ('source = "data.jsonl"', 'source = "rows"'))))
    assert "._data.jsonl is left out, as files of the system or of an editor." in text


def test_every_fault_is_told_at_once(folder: Path) -> None:
    found = check(
        changed(
            folder,
            ('source = "data.jsonl"', 'source = "none.jsonl"'),
            (f'sha256 = "{TINY}"', f'sha256 = "{"0" * 64}"'),
        )
    )
    assert len(found.faults) == 2
    assert "none.jsonl; check data.source" in printed(found)


def test_a_site_file_that_cannot_be_read_is_raised(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"site\.toml cannot be read"):
        check(tmp_path / "site.toml")


# --- notes


def test_what_an_owner_may_want_to_think_about(folder: Path) -> None:
    path = changed(
        folder,
        ('transforms = ["clip"]', 'transforms = ["their.module"]'),
        ("# order_seed = 0", "order_seed = 0"),
    )
    path.chmod(0o666)
    notes = "\n".join(check(path).notes)
    assert "their.module is code from outside" in notes
    assert f"`chmod go-w {path}`" in notes
    assert "trainer.order_seed is set" in notes


SCORES = ('"steps"]', '"steps", "heldout"]')


def test_scoring_as_no_run_may_write_is_told(folder: Path) -> None:
    (note,) = check(changed(folder, ("\nmax_tokens = 512", "\nmax_tokens = 500"))).notes
    assert "list alpaca in policy.templates and 500 in policy.max_tokens" in note


def test_too_few_held_out_for_a_score_are_told(folder: Path) -> None:
    (note,) = check(changed(folder, SCORES)).notes
    assert note.startswith("No score is released: of 4 held-out examples no category has 16")


def test_what_stands_behind_each_number_is_shown(folder: Path) -> None:
    path = changed(folder, SCORES, ("share = 0.1", "share = 0.5"), ("min_examples = 16", "min_examples = 6"))
    found = check(path)
    assert found.data is not None
    assert found.data.scored == dict.fromkeys(runs.CATEGORIES, 6)
    assert "over these many examples: " in printed(found)
    pooled = check(changed(folder, ("min_examples = 6", "min_examples = 7"))).data
    assert pooled is not None
    assert pooled.scored == {"other": 18}


def test_nothing_to_think_about_is_not_shown(folder: Path) -> None:
    found = check(folder / "site.toml")
    assert found.notes == ()
    text = printed(found)
    assert "Notes" not in text
    assert "For a score" not in text


def test_no_more_is_promised_than_is_true(folder: Path) -> None:
    text = printed(check(folder / "site.toml"))
    assert "No text of an example leaves" not in text
    assert "analysing it may reveal what some of them say" in text


def test_categories_that_look_like_text_are_told(tmp_path: Path, folder: Path) -> None:
    rows = [{**row, "category": f"kind {i // 2}"} for i, row in enumerate(runs.rows(100))]
    runs.written(folder / "data.jsonl", rows)
    changed(folder, SCORES, ("share = 0.1", "share = 0.5"), ("min_examples = 16", "min_examples = 1"))
    assert (
        "A score releases the names of 50 categories: if data.category is free text, remove"
        in (check(folder / "site.toml").notes[0])
    )


# --- the policy in words

WORDS: dict[str, tuple[Any, str]] = {
    "max_rank": (7, "rank 7 at most"),
    "max_dropout": (0.25, "dropout is 0.25 at most"),
    "max_learning_rate": (0.02, "learning rate 0.02."),
    "max_steps": (1234, "1,234 steps"),
    "max_epochs": (2.5, "2.5 epochs"),
    "max_rounds": (12, "A run has 12 rounds"),
    "rounds_per_month": (34, "A month has 34 rounds"),
    "algorithms": (("fedavg",), "Algorithms that may run: fedavg."),
    "transforms": ((), "Transforms that may run: none."),
    "optimisers": (("adamw", "sgd"), "optimisers that may run: adamw, sgd;"),
    "objectives": ((), "objectives: none."),
    "min_cohort": (9, "9 sites or more"),
    "runs_per_month": (56, "56 runs at most"),
    "failures_per_run": (78, "once 78 of its visits and scores"),
    "min_examples": (77, "77 distinct examples or more"),
    "min_batch": (9, "a step uses 9 or more"),
    "templates": (("plain", "chat"), "rendered with plain, chat,"),
    "system_prompts": (("Be brief.",), "a run may set: Be brief."),
    "max_tokens": ((77, 99), "cut to 77, 99 tokens"),
    "dates": (("2026-11-28",), "have a chat template print: 2026-11-28."),
    "loss_on": (("responses", "all"), "responses, instructions and contexts"),
    "require_noise": (True, "must add noise"),
    "require_privacy": (("example", "client"), "must protect each example and the site as a whole"),
    "max_epsilon": (3.5, "epsilon is 3.5 at most over all runs"),
    "delta": (2e-5, "at delta 2e-05"),
    "min_noise": (0.45, "A noise multiplier is 0.45 or more."),
    "require_secure_aggregation": (True, "must use secure aggregation"),
    "weighted_sums": (True, "A secure sum may weigh the sites"),
    "secure_with": (("lmu", "ukb"), "may be over this site and these only: lmu, ukb."),
    "colluding": (3, "even if 3 of a sum help the server"),
    "hours": ("18:00-06:00", "between 18:00 and 06:00"),
}


PRIVATE = ("require_privacy", "max_epsilon", "delta", "min_noise")


@pytest.mark.parametrize("key", WORDS)
def test_a_key_is_in_words(key: str) -> None:
    value, words = WORDS[key]
    private = {"require_privacy": ("example",), "max_epsilon": 8.0} if key in PRIVATE else {}
    masked = {"require_secure_aggregation": True} if key == "weighted_sums" else {}
    assert words in " ".join(in_words(PolicyTable(**{**private, **masked, key: value})))
    assert words not in " ".join(in_words(PolicyTable()))


def test_every_key_is_in_words() -> None:
    assert set(WORDS) == set(PolicyTable.model_fields) - {"metrics"}  # what leaves has its own list


# --- chat templates


def test_what_a_chat_template_adds_and_refuses_is_told(folder: Path) -> None:
    base = shutil.copytree(world.base_path(), folder / "base")
    refusing = "{% if 'w9' in m.content %}{{ raise_exception('no w9') }}{% endif %}"
    (base / "chat_template.jinja").write_text(
        "Be nice. {{ strftime_now('%d') }} {% for m in messages %}"
        + refusing
        + "{{ m.content }} {% endfor %}"
    )
    row = '{"instruction": "Say w9.", "response": "No."}\n'
    (folder / "data.jsonl").write_text((folder / "data.jsonl").read_text().replace("w9", "w8") + row)
    path = changed(folder, ('folder = "tiny"', f'folder = "{base}"'), (TINY, digest(base)))
    run = parse_request(request(data={"template": "chat", "date": "2026-11-28"}).settings)
    assert any("line 37" in fault and "no w9" in fault for fault in check(path, run).faults)
    skipping = changed(folder, ('on_bad_row = "error"', 'on_bad_row = "skip"'))
    text = printed(check(skipping, run))
    assert 'this chat: "no w9" (the first: ' in text
    assert "writes 'Be nice. 28' before every chat without a system turn" in text
    assert "today's date, fixed to 2026-11-28 in this run" in text
    assert "writes no end of turn" in text


# the privacy budget -----------------------------------------------------------------------------------------

NOISY_RUN = {
    "privacy": {"examples": {"norm": 0.5, "noise": 2.0}},
    "federation": {"rounds": 5, "weights": "equal"},
    "tuning": {"max_steps": 3, "batch_size": 8},
}
VISIT = Spending(noise=2.0, sampling=Poisson(chance=8 / 32), steps=3)  # of the 32 that are trained on
DELTA = 1e-5


def epsilon(visits: int) -> float:
    return accountant.epsilon([replace(VISIT, steps=3 * visits)], DELTA)


@pytest.fixture
def private(folder: Path) -> Path:
    """A site that protects its examples, with a kit whose ledger has two visits."""
    limited = ("require_privacy = []", 'require_privacy = ["example"]'), ("# max_epsilon", "max_epsilon")
    path = changed(folder, *limited)
    (folder / "kit" / "startup").mkdir(parents=True)
    entered(folder, 2)
    return path


def entered(folder: Path, visits: int) -> None:
    kept = privacy_ledger.ledger_of(folder / "kit" / "shepherd", read(folder / "site.toml").data)
    for round in range(visits):
        entry = privacy_ledger.Entry(
            when="2026-11-29T20:00:00+00:00",
            run="a",
            round=round,
            id="b",
            unit="example",
            spent=VISIT,
            examples=32,
        )
        assert privacy_ledger.spend(kept, [], [entry]) is None


def test_an_owner_sees_what_is_spent(folder: Path, private: Path) -> None:
    found = check(private, kit=folder / "kit")
    assert found.faults == ()
    shown = f"epsilon {epsilon_text(epsilon(2))} of 8 at delta {delta_text(DELTA)}, after 2 visits."
    assert found.spent[0] == f"Spent so far of each example: {shown}"
    assert str(folder / "kit" / "shepherd" / "privacy") in found.spent[1]
    assert f"Your privacy budget\n · {found.spent[0]}" in printed(found)
    assert not [note for note in found.notes if "--kit" in note]


def test_ledgers_that_do_not_count_are_named(folder: Path, private: Path) -> None:
    """Such as that of a Hugging Face id that an earlier version took as it was written."""
    assert not [each for each in check(private, kit=folder / "kit").spent if "Not counted" in each]
    (ledger,) = (folder / "kit" / "shepherd" / "privacy").iterdir()
    (ledger.parent / "ab12.jsonl").write_bytes(ledger.read_bytes())
    found = check(private, kit=folder / "kit")
    assert found.spent[-1].startswith("Not counted: ab12.jsonl, of other data")
    assert "after 2 visits" in found.spent[0]
    ledger.unlink()  # and with it what was counted: nothing of these data is there
    (folder / "kit" / "shepherd" / "runs" / "privacy" / f"{ledger.stem}.json").unlink()
    changed(
        folder, ('require_privacy = ["example"]', "require_privacy = []"), ("max_epsilon", "# max_epsilon")
    )
    assert check(private, kit=folder / "kit").spent[0].startswith("No visit to these data")
    assert check(private, kit=folder / "kit").spent[-1].startswith("Not counted: ab12.jsonl")


def test_a_large_delta_is_said_to_be_large(folder: Path) -> None:
    limited = (
        ("require_privacy = []", 'require_privacy = ["example"]'),
        ("# max_epsilon", "delta = 0.01\nmax_epsilon"),
    )
    said = printed(check(changed(folder, *limited)))
    assert "Delta 0.01 is large: it is about the chance" in said
    assert "set policy.delta = 1e-05" in said


def test_an_owner_sees_what_a_run_would_add(folder: Path, private: Path) -> None:
    found = check(private, parse_request(request(**NOISY_RUN).settings), kit=folder / "kit")
    assert found.faults == ()
    assert found.spent[1] == (
        f"With one visit of this run that is epsilon {epsilon_text(epsilon(3))}, and with one in each round"
        f" (federation.rounds = 5) {epsilon_text(epsilon(7))}."
    )


def test_a_run_that_the_budget_does_not_allow_is_told(folder: Path, private: Path) -> None:
    changed(folder, ("max_epsilon = 8.0", f"max_epsilon = {epsilon(2) + 0.01:.3f}"))
    (fault,) = check(private, parse_request(request(**NOISY_RUN).settings), kit=folder / "kit").faults
    assert fault.startswith("policy max_epsilon = ")
    assert f"a visit after which epsilon is {epsilon_text(epsilon(3))}" in fault
    assert check(private, kit=folder / "kit").faults == ()


def test_without_its_kit_an_owner_is_told_where_the_budget_is(folder: Path, private: Path) -> None:
    found = check(private)
    assert found.spent == ()
    assert [note for note in found.notes if "--kit SITE_KIT" in note]
    assert "Your privacy budget" not in printed(found)


def test_a_ledger_that_is_lost_has_to_be_fixed(folder: Path, private: Path) -> None:
    (ledger,) = (folder / "kit" / "shepherd" / "privacy").iterdir()
    ledger.unlink()
    (fault,) = check(private, kit=folder / "kit").faults
    assert f"{ledger} is missing" in fault


def test_a_folder_that_is_no_kit_does_not_say_that_nothing_is_spent(folder: Path, private: Path) -> None:
    for wrong in (folder, folder / "kit" / "shepherd", folder / "none"):
        found = check(private, kit=wrong)
        assert found.spent == ()
        assert found.faults == (
            f"{wrong} is no kit of a site; give the folder that `shepherd silos site` gets",
        )


def test_of_a_site_without_noise_nothing_is_counted(folder: Path) -> None:
    (folder / "kit" / "startup").mkdir(parents=True)
    (said,) = check(folder / "site.toml", kit=folder / "kit").spent
    assert "nothing is counted" in said
    assert not (folder / "kit" / "shepherd").exists()


def test_noise_that_nobody_required_is_shown_too(folder: Path) -> None:
    (folder / "kit" / "startup").mkdir(parents=True)
    entered(folder, 1)
    said = check(folder / "site.toml", kit=folder / "kit").spent[0]
    assert said == (
        f"Spent so far of each example: epsilon {epsilon_text(epsilon(1))} at delta {delta_text(DELTA)},"
        " after 1 visit."
    )
