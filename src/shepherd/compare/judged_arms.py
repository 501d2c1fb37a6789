"""Have the judge compare the arms of a comparison, or any two runs, adapters or answers files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from shepherd.compare.adapters import arm_adapter
from shepherd.compare.arms import FEDERATED, Arm
from shepherd.compare.folders import (
    COMPARISON,
    VERDICTS,
    arm_of,
    compare_folder,
    read_json,
    scores_file,
    write_json,
)
from shepherd.config import validated
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter
from shepherd.data import data_folder
from shepherd.data.examples import Turn
from shepherd.errors import AdapterError, DataError, FolderError, SettingsError
from shepherd.io import paths, private
from shepherd.io.atomic import require_place
from shepherd.judge import answers as answers_files
from shepherd.judge import cache as verdicts_cache
from shepherd.judge import judging, questions
from shepherd.judge.agreed import require_agreed
from shepherd.judge.answers import Answers
from shepherd.judge.gather import require_ready
from shepherd.judge.questions import HELD_OUT, Question
from shepherd.model import files
from shepherd.model.answer import answers, prompt_ids
from shepherd.model.base import Base
from shepherd.overrides import assigned, parse
from shepherd.run import folder
from shepherd.run.folder import planned
from shepherd.run.loading import adapter_at, load_base
from shepherd.settings import JudgeTable, ModelTable, RunSettings

Row = dict[str, Any]
Echo = Callable[[str], None]
NOTHING_ANSWERED = (
    "reads answers to held-out questions, and none is answered; set evaluation.answers, for example to 64, or"
    " judge.questions to a file"
)


def require_judge(settings: RunSettings, consent: Consent, max_calls: int | None = None) -> None:
    """Check before any training that the arms of a comparison can be judged after it.

    Raises:
        JudgeError: the judge could not be asked now; see `judge.gather.require_ready`.
        SettingsError: no model is named, or no held-out question would be answered.
        DataError: the questions cannot be read.
    """
    table = settings.judge
    require_ready(table, consent, max_calls)
    if table.questions != HELD_OUT:
        questions.find(table.questions)
    elif not settings.evaluation.answers:
        raise SettingsError(f"the judge {table.model} {NOTHING_ANSWERED}")


def judged(
    run: Path, table: JudgeTable, echo: Echo, max_calls: int | None = None, consent: Consent = NOTHING
) -> Row:
    """Judge every other arm of a comparison against the federated one; returns the new comparison.json.

    Args:
        consent: the judge's address and key variable, if they are not the defaults.

    Raises:
        FolderError: there is no comparison yet, or another process is working in the folder.
        JudgeError: the table names an address or a variable without consent; nothing was sent.
        ShepherdError: see `judge.judging.judge_pairs`; verdicts that were paid for are kept.
    """
    require_agreed(table, consent)
    if read_json(compare_folder(run) / COMPARISON) is None:
        raise FolderError(f"{run} holds no comparison yet; make it with `shepherd compare`")
    with closing(folder.reopen(run)):
        return _judge_arms(run, table, echo, max_calls, consent)


def _judge_arms(run: Path, table: JudgeTable, echo: Echo, max_calls: int | None, consent: Consent) -> Row:
    path = compare_folder(run) / COMPARISON
    found = read_json(path) or {}
    twins = paths.alike(data_folder.load(run / "data").clients)
    arms = [arm_of(row, twins) for row in found["arms"]]
    asked, answers = _questions_and_answers(run, arms, table, echo, consent, max_calls)
    pairs = [(answers[arm.name], answers[FEDERATED]) for arm in arms if arm.name != FEDERATED]
    result = judging.judge_pairs(
        pairs, asked, table, compare_folder(run) / VERDICTS, echo, max_calls, against=FEDERATED
    )
    found["judge"] = result.row()
    write_json(path, found)
    return found


def _questions_and_answers(
    run: Path,
    arms: Sequence[Arm],
    table: JudgeTable,
    echo: Echo,
    consent: Consent,
    max_calls: int | None,
) -> tuple[tuple[Question, ...], dict[str, Answers]]:
    """The questions, and the answers of each arm of the first seed."""
    if table.questions == HELD_OUT:
        return _heldout_answers(run, arms, table)
    seed = folder.read_settings(run).data_seed
    asked = questions.drawn(questions.find(table.questions), table.limit, seed)
    todo = [arm for arm in arms if not _answers_file(run, arm, asked).is_file()]
    if todo:
        require_ready(table, consent, max_calls)
        _generate_answers(run, todo, asked, echo, consent)
    return asked, {arm.name: answers_files.read(_answers_file(run, arm, asked), arm.name) for arm in arms}


def _heldout_answers(
    run: Path, arms: Sequence[Arm], table: JudgeTable
) -> tuple[tuple[Question, ...], dict[str, Answers]]:
    """Held-out questions that the comparison has answered already, with the answers."""
    scores = {arm.name: read_json(scores_file(run, 0, arm)) or {} for arm in arms}
    places = scores[FEDERATED].get("questions", {}).get("answers", [])
    if not places:
        raise DataError(f"the comparison's judge {NOTHING_ANSWERED}")
    examples = data_folder.load(run / "data").heldout_examples
    every = [questions.held_out([examples[place]])[0] for place in places]
    texts = {
        name: {q.id: answer["text"] for q, answer in zip(every, found["answers"], strict=True)}
        for name, found in scores.items()
    }
    unique = tuple({question.id: question for question in every}.values())
    asked = questions.limited(unique, table.limit)
    return asked, {name: Answers(name=name, texts=each) for name, each in texts.items()}


def _answers_file(run: Path, arm: Arm, asked: Sequence[Question]) -> Path:
    """Where an arm's answers to questions from elsewhere are kept."""
    ids = hashlib.sha256("\0".join(f"{q.id}\0{q.text}\0{q.context}" for q in asked).encode()).hexdigest()
    name = scores_file(run, 0, arm).with_suffix(".jsonl").name
    return compare_folder(run) / "answers" / ids[:12] / name


def _generate_answers(
    run: Path, arms: Sequence[Arm], asked: Sequence[Question], echo: Echo, consent: Consent
) -> None:
    settings = planned(run)
    base = load_base(settings, consent)
    for arm in arms:
        echo(f"{arm.name} answers {len(asked)} questions")
        (texts,) = _texts(base, settings, [arm_adapter(run, 0, arm, base)], asked)
        place = _answers_file(run, arm, asked)
        private.make(place.parent)
        answers_files.write(place, Answers(name=arm.name, texts=texts))


def _texts(
    base: Base, settings: RunSettings, adapters: Sequence[Adapter | None], asked: Sequence[Question]
) -> list[dict[str, str]]:
    prompts = [
        prompt_ids(base, settings.data, (Turn(role="user", text=q.text, context=q.context),)) for q in asked
    ]
    longest = settings.evaluation.max_new_tokens
    found = answers(base, settings.data, adapters, prompts, max_new_tokens=longest)
    return [{q.id: each.text for q, each in zip(asked, texts, strict=True)} for texts in found]


def judge_two(
    first: Path,
    second: Path,
    overrides: Iterable[str],
    given: Mapping[str, Any],
    echo: Echo,
    max_calls: int | None = None,
    consent: Consent = NOTHING,
    verdicts: Path | None = None,
) -> Row:
    """Have the judge compare two answers files, adapters or runs; returns a judge's row of comparison.json.

    Args:
        overrides: key=value for the judge's table, which is that of the first run if there is one.
        given: keys of the judge's table that take precedence over `overrides`.
        consent: the judge's address and key variable, if they are not the defaults; and whether code that
            comes with a base may run.
        verdicts: folder to keep the verdicts in; by default inside the first run, and for files outside any
            run this user's cache, so that nothing appears next to them.

    Raises:
        JudgeError: a file names an address or a variable without consent; nothing was sent.
        ShepherdError: one of the two is none of these, their bases differ, or see `judge_pairs`.
    """
    for path in (first, second):
        if not path.exists():
            raise FolderError(
                f"{path} does not exist; give an answers file, an adapter folder or a run folder"
            )
    runs = [found for path in (first, second) if (found := _run_of(path)) is not None]
    settings = planned(runs[0]) if runs else None
    table = _table(settings, overrides, given)
    require_agreed(table, consent)
    if table.questions != HELD_OUT:
        seed = settings.data_seed if settings else 0
        asked = questions.drawn(questions.find(table.questions), table.limit, seed)
    elif runs:
        every = questions.held_out(data_folder.load(runs[0] / "data").heldout_examples)
        asked = questions.limited(every, table.limit)
    else:
        raise SettingsError(
            "neither of the two belongs to a run, so no question is held out; give --questions FILE"
        )
    names = answers_files.names(first, second)
    kept = verdicts or (compare_folder(runs[0]) if runs else paths.cache()) / VERDICTS
    echo(f"verdicts are kept in {kept}; the same question to the same judge is not paid for twice")
    both = (first, second)
    read = {i: answers_files.read(path, names[i]) for i, path in enumerate(both) if path.is_file()}
    for each in read.values():
        each.require(asked)
    own = {i: _own_settings(path, settings, consent) for i, path in enumerate(both) if i not in read}
    if own:  # what follows takes long
        require_place(kept / verdicts_cache.FILE)
        if not verdicts_cache.has_pair(kept, *names):
            require_ready(table, consent, max_calls)
    pair = _both_answers(both, names, read, own, asked, echo, consent)
    return judging.judge(*pair, asked, table, kept, echo, max_calls).row()


def _table(settings: RunSettings | None, overrides: Iterable[str], given: Mapping[str, Any]) -> JudgeTable:
    before = settings.judge.model_dump() if settings else {}
    return validated(JudgeTable, {**before, **assigned(overrides), **given}, "the judge's settings")


def _run_of(path: Path) -> Path | None:
    """The run folder that a path is, or is inside of; None if there is none."""
    return next((each for each in (path, *path.resolve().parents) if folder.is_run(each)), None)


def _both_answers(
    paths: Sequence[Path],
    names: Sequence[str],
    read: Mapping[int, Answers],
    own: Mapping[int, RunSettings],
    asked: Sequence[Question],
    echo: Echo,
    consent: Consent,
) -> tuple[Answers, Answers]:
    """Answers of both: those that were read from a file, the others generated, of one base in one pass.

    Args:
        own: the settings that each of the others answers with.
    """
    found, rest = dict(read), list(own)
    shared = len(rest) == 2 and _same_base(own[0], own[1])
    for group in [rest] if shared else [[i] for i in rest]:
        base = load_base(own[group[0]], consent)
        adapters = [adapter_at(paths[i], base) for i in group]
        echo(f"{' and '.join(names[i] for i in group)} answer {len(asked)} questions")
        for i, texts in zip(group, _texts(base, own[group[0]], adapters, asked), strict=True):
            found[i] = Answers(name=names[i], texts=texts)
    return found[0], found[1]


def _own_settings(path: Path, settings: RunSettings | None, consent: Consent) -> RunSettings:
    """Settings that an adapter answers with: of its own run, else the first run's, else those of its files.

    How long an answer may be is the same for both.
    """
    run = _run_of(path)
    if run is None or settings is None:
        return settings or _settings_of(path, consent)
    return planned(run).model_copy(update={"evaluation": settings.evaluation})


def _same_base(one: RunSettings, other: RunSettings) -> bool:
    """Whether two adapters fit one loaded base, and are asked in the same way."""
    return (one.model, one.adapter, one.data) == (other.model, other.adapter, other.data)


def _settings_of(path: Path, consent: Consent) -> RunSettings:
    """Settings for an adapter outside any run: its own base, and the default template."""
    table = files.read_config(path)
    config = read_json(path / files.CONFIG) or {}
    base = config.get("base_model_name_or_path")
    if not base:
        raise AdapterError(
            f"adapter {path} does not name its base; add base_model_name_or_path to its config"
        )
    trusted = consent.remote_code  # an adapter cannot ask for it
    model = ModelTable(base=base, revision=config.get("revision"), trust_remote_code=trusted).model_dump()
    return parse({"model": model, "adapter": table.model_dump(), "data": {"source": str(path)}}, str(path))
