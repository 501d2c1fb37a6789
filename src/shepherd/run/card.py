"""Write the model card of the final adapter: its data and training, but no text of any example.

Its metadata hold the scores as the hub's `model-index`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from shepherd.config import PartTable
from shepherd.data.examples import Turn
from shepherd.data.template_pieces import Template, styled
from shepherd.evaluate.how import How, asked_by, words
from shepherd.io import paths
from shepherd.io.atomic import write_atomic
from shepherd.io.phrases import listed
from shepherd.io.progress import many
from shepherd.overrides import dump
from shepherd.privacy.guarantee import Guarantee
from shepherd.run import lineage
from shepherd.run.hidden import Hidden, of_run
from shepherd.run.lineage import SFT, Training, hub_id, training
from shepherd.run.release import NO_GATE, Release, inert, marked
from shepherd.run.score_file import Own
from shepherd.run.versions import versions
from shepherd.settings import MEMORY, TINY, WORLD, DataTable, ModelTable, RunSettings, published
from shepherd.visible import shown, shown_line

Row = Mapping[str, Any]
Pair = tuple[float | None, float | None]
Table = Sequence[Sequence[object]]


def write(
    folder: Path,
    settings: RunSettings,
    *,
    rows: Sequence[Row],
    answers: Mapping[str, Pair],
    data: Mapping[str, Any],
    clients: Mapping[str, int],
    privacy: Mapping[str, Any] = {},
    of_examples: Mapping[str, Any] = {},
    revision: str | None = None,
    start: Mapping[str, str] = {},
    before: Sequence[Training] = (),
) -> Path:
    """Write the model card as `README.md` into an adapter's folder; see `text` for the arguments.

    Raises:
        FolderError: the disk is full, or the folder cannot be written.
    """
    card = text(
        settings,
        rows=rows,
        answers=answers,
        data=data,
        clients=clients,
        privacy=privacy,
        of_examples=of_examples,
        revision=revision,
        start=start,
        before=before,
    )
    return write_atomic(folder / "README.md", card)


def text(
    settings: RunSettings,
    *,
    rows: Sequence[Row],
    answers: Mapping[str, Pair],
    data: Mapping[str, Any],
    clients: Mapping[str, int],
    privacy: Mapping[str, Any] = {},
    of_examples: Mapping[str, Any] = {},
    own: bool = False,
    hides: Hidden | None = None,
    revision: str | None = None,
    start: Mapping[str, str] = {},
    before: Sequence[Training] = (),
    libraries: Mapping[str, str] = {},
) -> str:
    """Compose the model card as Markdown, with the metadata that the hub reads.

    Args:
        settings: the run file, filled in from the run's plan.
        rows: all rows of the run's log.
        answers: category -> (share right before, share right after); may be empty.
        data: numbers of examples by outcome, such as `kept`, `heldout`, `cut`, `dropped`.
        clients: number of training examples of each client.
        privacy: the run's ledger, if noise hides its clients.
        of_examples: the run's ledger of single examples, if noise hides these.
        own: whether the adapter is one client's own model, which noise on the sum over clients does not hide.
        hides: what noise hides, so that the card does not tell it; by default by `settings`, `rows` and
            `privacy`. Of single examples it says how many each client trains on.
        revision: commit of the base that was loaded; None takes the one in the run file.
        start: the `file` and `sha256` of the adapter that the run began with; empty if it was a new one.
        before: the trainings that led to that adapter, as far as they are known.
        libraries: versions that it was trained with; by default those of this process.
    """
    settings, revision = _for_others(settings, revision)
    whole, settings = settings, published(settings)
    on_hub = hub_id(whole.data.source, WORLD, MEMORY)
    part = ", ".join(["", *filter(None, (whole.data.config, whole.data.part))]) if on_hub else ""
    hides = hides or of_run(whole, rows, privacy)
    claimed = {} if own else privacy
    sections = (
        _intro(settings, rows, clients, bool(start)),
        _use(settings, hub_id(whole.model.base, TINY), revision),
        "## Data\n\n"
        + _table(("", ""), _data(settings, {} if hides else data, clients, rows, hides.clients, part)),
        "## Training\n\n" + _table(("", ""), _training(settings, rows, revision, start, hides)),
        _trainings((*before, training(whole, rows, claimed, of_examples))) if before else "",
        _privacy(claimed, of_examples, settings, start, before, own=own and hides.clients),
        _scores(rows, answers),
        "## Licence\n\n" + _LICENCE,
        "## The run file\n\n```toml\n" + dump(settings).strip() + "\n```",
        "## Versions\n\n" + _table(("library", "version"), sorted((libraries or versions()).items())),
    )
    metadata = _metadata(whole, _results(whole, rows, answers), before)
    return shown(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n")


def _for_others(settings: RunSettings, revision: str | None) -> tuple[RunSettings, str | None]:
    """The settings with the base as readers on other machines find it, and its commit; a folder has none."""
    model = settings.model
    name, commit = paths.for_others(model.base, revision or model.revision)
    commit = None if name == TINY else commit
    model = model.model_copy(update={"base": name, "revision": commit})
    return settings.model_copy(update={"model": model}), commit


def _trainings(found: Sequence[Training]) -> str:
    """What each training that led to the adapter was, one row each."""
    said = lineage.spent_before(found[:-1])
    parts = (
        "## Trainings",
        "One after another, each from the adapter of the one before.",
        _table(_OF_TRAININGS, [_as_row(each) for each in found]),
        f"{inert(said[0].upper() + said[1:])}." if said else "",
    )
    return "\n\n".join(filter(None, parts))


_OF_TRAININGS = ("run", "data", "objective", "rounds", "privacy")


def _as_row(found: Training) -> tuple[str, ...]:
    data, objective = inert(found.data), inert(found.objective)
    return f"`{inert(found.run)}`", f"`{data}`", objective, str(found.rounds), found.spent or "no claim"


def _privacy(
    of_clients: Mapping[str, Any],
    of_examples: Mapping[str, Any],
    settings: RunSettings,
    start: Mapping[str, str],
    before: Sequence[Training],
    *,
    own: bool,
) -> str:
    """What the run spent of the privacy of each client and each example; nothing if noise hides neither.

    Args:
        own: whether the adapter is one client's own model, though noise hides clients.
    """
    said = [("Differential privacy of each client.", _OWN)] if own else []
    if kept := of_clients:
        noise = f"over {many(kept['finished'], 'round')} with noise multiplier {kept['noise']:g}"
        said.append(("Differential privacy of each client.", _spent(kept, "client", noise), *kept["says"]))
    if (kept := of_examples) and (asked := settings.privacy.examples):
        noise = (
            "by the client that has spent most, with noise multiplier"
            f" {asked.noise:g} on each step and norm {asked.norm:g} for each example"
        )
        said.append(
            ("Differential privacy of each example.", _spent(kept, "example", noise), *kept.get("says", ()))
        )
    if not said:
        return ""
    parts = [f"{title}\n\n" + "\n".join(f"- {each}" for each in lines) for title, *lines in said]
    return "\n\n".join(["## Privacy", *parts]) + "".join(
        f"\n- {each}" for each in lineage.caveats(start, before)
    )


def _spent(kept: Mapping[str, Any], unit: str, how: str) -> str:
    return f"Spent: {Guarantee.of(kept).text(unit)}, {how}."


_OWN = (
    "This is one client's own model: the noise of the run hides each client in what all of them share, and"
    " not in the part that a client keeps, which was trained on its examples alone. It protects this client"
    " from nobody who gets the model, which also tells that the client took part."
)
_LICENCE = (
    "The adapter holds no part of the base and no example, but it was made from both: "
    "the licences of the base and of the training data decide what may be done with it. "
    "An adapter can still remember what it was trained on."
)


def exported(
    card: str,
    *,
    library: str,
    holds_base: bool,
    serve: str,
    repo: str = "",
    results: Sequence[Row] = (),
    scores: Sequence[Own] = (),
    release: Release = NO_GATE,
) -> str:
    """The card of a run's adapter, for what was exported of it.

    Args:
        library: the library that reads what was exported, as the hub names it.
        holds_base: whether it holds the base's weights.
        serve: the command that answers with it; "" if there is none to name.
        repo: repository of the hub that it is for; "" where it is for a folder.
        results: results of `shepherd evaluate --json`, which are added to the metadata.
        scores: this adapter's own in the run's evaluation.json, which are added to the metadata and as a
            table; one of a part of the documents is not where there is one of all.
        release: verdict of the run's gate.
    """
    read, scores = ModelCard(card, ignore_metadata_errors=True), _whole(scores)
    data: Any = read.data
    name = data.model_name or _title(read.text)
    found = [
        *(data.eval_results or []),
        *(each for row in results for each in _measured(row)),
        *(each for own in scores for each in _scored(own)),
    ]
    data.library_name = library
    data.tags = sorted({*(data.tags or []), *(["gguf"] if library == "gguf" else [])})
    if data.base_model:
        data.base_model_relation = "finetune" if holds_base else "adapter"
    if found:
        data.eval_results, data.model_name = found, name
    text = read.text.lstrip("\n")
    if holds_base:
        text = text.replace(_LICENCE, _LICENCE_OF_BOTH)
        text = text.replace(f"\n{_ADAPTER}", f"\n{_WHOLE}", 1)
    how = f"```sh\n{serve}\n```\n\n" if serve else ""
    if how and not repo:
        how = f"In this folder:\n\n{how}"
    if library == "peft":
        text = text.replace(_FOLDER, repo or _FOLDER, 1)
        text = re.sub(rf"^(?={_PROMPTS})", lambda _: how, text, count=1, flags=re.MULTILINE)
    else:
        kept = re.search(rf"^{_PROMPTS}.*$", text, re.MULTILINE)
        new = f"## Use\n\n{how}{kept[0] if kept else ''}".rstrip() + "\n\n"
        text = re.sub(r"^## Use\n.*?(?=^## )", lambda _: new, text, count=1, flags=re.MULTILINE | re.DOTALL)
    text = marked(text, release, "" if release.released else _ALL_THE_SAME)
    text = re.sub(r"^(?=## Licence\n)", lambda _: _further(scores), text, count=1, flags=re.MULTILINE)
    return shown(f"---\n{data.to_yaml()}\n---\n\n{text}")


_ADAPTER = "A LoRA adapter of rank"
_WHOLE = "A whole model: its base, and merged into it a LoRA adapter of rank"
_FOLDER, _PROMPTS = "path/to/this/folder", "Prompts follow the template "
_ALL_THE_SAME = "It was exported all the same, because the person who did so asked for it."


def _whole(scores: Sequence[Own]) -> list[Own]:
    """Scores without those of a part of the documents that there are of all of them, too."""
    limited = [how is not None and how.limited for how in (How.of(own.row) for own in scores)]
    known = {own.row["name"] for own, part in zip(scores, limited, strict=True) if not part}
    return [own for own, part in zip(scores, limited, strict=True) if not (part and own.row["name"] in known)]


def _further(scores: Sequence[Own]) -> str:
    """Scores on benchmark tasks and harmful prompts, of the base and of the adapter."""
    lines = [
        (
            inert(_label(own.row)),
            str(own.row["documents"]),
            *(_bounded(own.row, each) for each in (own.base, own.adapter)),
        )
        for own in scores
    ]
    if not lines:
        return ""
    head = ("score", "documents", "base", "adapter")
    told = " ".join(filter(None, ("In brackets, 95% intervals.", asked_by([own.row for own in scores]))))
    return f"## Benchmarks and refusals\n\n{inert(told)}\n\n{_table(head, lines)}\n\n"


def _label(row: Row) -> str:
    """A score with how it was measured, where that cannot be taken for granted."""
    return ", ".join(filter(None, (row["label"], words(row))))


def _bounded(row: Row, found: Row) -> str:
    if found.get("value") is None:
        return ""
    form = ".1%" if row["share"] else ".4f"
    known = found["low"] is not None and found["high"] is not None
    return format(found["value"], form) + (
        f" [{found['low']:{form}}, {found['high']:{form}}]" if known else ""
    )


def _scored(own: Own) -> Iterator[EvalResult]:
    """One score of the run's evaluation.json for the hub, with how it was measured."""
    row, found, how = own.row, own.adapter, How.of(own.row)
    if found.get("value") is not None:
        told = how.model_dump(exclude_none=True, exclude_defaults=True) if how is not None else {}
        yield EvalResult(
            task_type="text-generation",
            dataset_type=shown_line(row["task"]),
            dataset_name=shown_line(row["task"]),
            metric_type=shown_line(row["metric"]),
            metric_name=shown_line(_label(row)),
            metric_value=found["value"],
            metric_args={
                "interval_95": [found["low"], found["high"]],
                "base": own.base.get("value"),
                **({"documents": row["documents"], **told} if told else {}),
            },
        )


def mixed(
    name: str,
    *,
    base: ModelTable,
    parts: Sequence[tuple[str, float, str, Sequence[Training]]],
    how: Mapping[str, object],
    release: Release,
) -> str:
    """Compose the card of an adapter that others were combined into.

    Args:
        name: the title.
        base: what the base was loaded by.
        parts: of each, name, weight, SHA-256 of the weights' file, and the trainings that led to it, empty
            where nothing is known of them.
        how: the way, and its keys.
        release: what speaks against its parts.
    """
    base_name, _ = paths.for_others(base.base, base.revision)
    metadata = ModelCardData(
        base_model=hub_id(base_name, TINY),
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "merge"],
        datasets=sorted({each.dataset for *_, found in parts for each in found} - {""}) or None,
    )
    told = ", ".join(f"{key} {value}" for key, value in how.items())
    shown_parts = [(f"`{inert(each)}`", f"{weight:g}", f"`{digest}`") for each, weight, digest, _ in parts]
    made = [each for *_, found in parts for each in found]
    unknown = [inert(name) for name, _, _, found in parts if not found]
    told_of_them = (
        _table(_OF_TRAININGS, [_as_row(each) for each in made]) if made else "",
        "What they have spent of privacy adds up where the same clients took part."
        if any(each.spent for each in made)
        else "",
        f"Of how {listed(unknown)} was trained, nothing is known here." if unknown else "",
    )
    text = (
        f"# {inert(name)}\n\n"
        f"A LoRA adapter for `{paths.short(base_name)}`, combined of others ({told}). Nothing was tuned.\n\n"
        + _table(("adapter", "weight", "SHA-256 of its weights"), shown_parts)
        + "\n\n".join(["", "## Trainings", *filter(None, told_of_them), "## Licence", _LICENCE])
    )
    text = marked(text, release, _ALL_THE_SAME)
    return shown(f"---\n{metadata.to_yaml()}\n---\n\n{text}\n")


def _title(text: str) -> str:
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1] if found else "adapter"


_LICENCE_OF_BOTH = (
    "The model holds the weights of its base, changed by an adapter, and no example: the licences of the base"
    " and of the training data decide what may be done with it. It can still remember what it was trained on."
)


def _results(settings: RunSettings, rows: Sequence[Row], answers: Mapping[str, Pair]) -> list[EvalResult]:
    """Scores on the run's held-out examples, as the hub's leaderboards read them."""
    last = rows[-1] if rows and rows[-1]["round"] else {}
    loss = _losses(last.get("heldout", {})).get("all")
    values = [("loss", "Held-out loss, nats a token", loss)]
    values += [
        ("accuracy", f"Right answers, {shown_line(name)}", right)
        for name, (_, right) in sorted(answers.items())
    ]
    own = hub_id(settings.data.source, WORLD, MEMORY)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=own or "private",
            dataset_name=own or paths.short(settings.data.source),
            dataset_split="held-out",
            metric_type=kind,
            metric_name=label,
            metric_value=round(value, 6),
        )
        for kind, label, value in values
        if value is not None and math.isfinite(value)
    ]


def _measured(row: Row) -> Iterator[EvalResult]:
    """Results of an evaluation with their 95% intervals."""
    for measure in row["measures"]:
        run = measure["run"]
        if run["value"] is None:
            continue
        yield EvalResult(
            task_type="text-generation",
            dataset_type="private",
            dataset_name=shown_line(Path(row["data"]).name),
            metric_type="accuracy" if measure["share"] else measure["name"],
            metric_name=measure["label"],
            metric_value=run["value"],
            metric_args={
                "interval_95": [run["low"], run["high"]],
                "base": measure["base"]["value"],
                **({"examples": measure["examples"]} if type(measure.get("examples")) is int else {}),
            },
        )


def _metadata(settings: RunSettings, results: list[EvalResult], before: Sequence[Training]) -> ModelCardData:
    named = [*(each.dataset for each in before), hub_id(settings.data.source, WORLD, MEMORY)]
    objectives = {settings.tuning.objective.name, *(each.objective for each in before)}
    return ModelCardData(
        eval_results=results or None,
        model_name=Path(settings.output).name if results else None,
        base_model=hub_id(settings.model.base, TINY),
        datasets=list(dict.fromkeys(filter(None, named))) or None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=[
            "lora",
            "federated-learning",
            *["instruction-tuning"] * (SFT in objectives),
            *sorted(objectives - {SFT}),
            settings.algorithm.name,
        ],
    )


def _intro(settings: RunSettings, rows: Sequence[Row], clients: Mapping[str, int], goes_on: bool) -> str:
    objective = settings.tuning.objective.name
    tuned = "instruction-tuned" if objective == SFT else f"tuned with the objective {objective}"
    side = settings.aggregation.own.get("side_rank", 0)
    more = f", and at most {side} side ranks that no client trained," if side else ""
    return (
        f"# {Path(settings.output).name}\n\n"
        f"{_ADAPTER} {settings.adapter.rank}{more} for `{settings.model.base}`,"
        f" {tuned}{', from another adapter,' if goes_on else ''} by {settings.algorithm.name}"
        f" over {many(len(clients), 'client')} in {many(_rounds(rows), 'round')}."
        " Clients sent changes of the adapter, and no example."
    )


def _use(settings: RunSettings, on_hub: str | None, revision: str | None) -> str:
    """Python code that uses base and adapter without this project; only the embedded base needs it."""
    model = settings.model
    tiny = "from shepherd.world import base_path\n" if model.base == TINY else ""
    base = "base_path()" if tiny else repr(model.base)
    base += f", revision={revision!r}" if revision else ""
    base += ", trust_remote_code=True" if model.trust_remote_code else ""
    return f"""## Use

```python
from peft import PeftModel
{tiny}from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

folder = "{_FOLDER}"
tokenizer = AutoTokenizer.from_pretrained(folder)
base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, folder)

{_prompt_code(settings.data)}
ends = GenerationConfig.from_pretrained(folder)
answer = model.generate(**prompt, generation_config=ends, max_new_tokens=200)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```

{_PROMPTS}`{settings.data.template}`; with another one the answers are worse.
{_publishing_advice(model.base, on_hub)}""".rstrip()


def _prompt_code(data: DataTable) -> str:
    """Lines of Python that build a prompt as in training."""
    template = Template.of(data)
    asked = template.with_system([Turn(role="user", text="Name two rivers.")])
    if data.template != "chat":
        (prompt,) = styled(asked, data.template, 0)
        return f'prompt = tokenizer({prompt.text!r}, return_tensors="pt")'
    turns = [{"role": turn.role, "content": turn.text} for turn in asked]
    given = 'add_generation_prompt=True, return_dict=True, return_tensors="pt"'
    if template.options:
        given += f", **{dict(template.options)!r}"
    lines = [f"turns = {json.dumps(turns, ensure_ascii=False)}"]
    if template.date:
        lines.append(_CLOCK.format(day=template.date))
        given = f"chat_template=clock + tokenizer.get_chat_template(), {given}"
    return "\n".join([*lines, f"prompt = tokenizer.apply_chat_template(turns, {given})"])


# transformers passes the machine's clock to a template, and accepts no other
_CLOCK = """\
from datetime import date
day = date.fromisoformat("{day}")  # what the chat template prints as today's
codes = "".join(f"|replace('%{{c}}', '{{day:%{{c}}}}')" for c in ("-d", *"aAbBdDeFjmuUwWyY"))
clock = "{{%- macro strftime_now(form) %}}{{{{ form" + codes + " }}}}{{%- endmacro %}}{{{{ '' }}}}\""""


def _publishing_advice(base: str, on_hub: str | None) -> str:
    """Advice for publishing an adapter whose base is not on the hub."""
    if on_hub:
        return ""
    if base == TINY:
        return (
            "\nThe base is embedded in the package `shepherd-fit` and is not on the hub: loading the adapter"
            " needs the package, since `adapter_config.json` names the base by its folder."
        )
    return (
        "\n`adapter_config.json` names the base by its folder on the machine that trained the adapter: before"
        " you publish it, write the base's public name at `base_model_name_or_path`."
    )


def _data(
    settings: RunSettings,
    data: Mapping[str, Any],
    clients: Mapping[str, int],
    rows: Sequence[Row],
    private: bool,
    of: str,
) -> Iterator[tuple[str, str]]:
    sizes = list(clients.values()) or [0]
    yield "source", f"`{settings.data.source}`{of}"
    yield "clients", f"{len(clients)}, split by {settings.split.by}"
    if not private and any(sizes):  # over sites they may not be told
        yield "training examples", f"{sum(sizes)}, from {min(sizes)} to {max(sizes)} a client"
    yield from ((name.replace("_", " "), str(number)) for name, number in data.items() if name != "kept")
    shares = list(rows[-1].get("coverage", {}).values()) if rows else []
    if shares:
        yield (
            "coverage",
            f"{fmean(shares):.1%} of a client's data seen on average, {min(shares):.1%} at least",
        )


def _training(
    settings: RunSettings,
    rows: Sequence[Row],
    revision: str | None,
    start: Mapping[str, str],
    hides: Hidden,
) -> Iterator[tuple[str, str]]:
    tuning = settings.tuning
    yield "base", f"`{settings.model.base}`" + (f" at revision `{revision}`" if revision else "")
    if start:
        yield "started from", f"`{settings.adapter.start}`, whose weights have SHA-256 `{start['sha256']}`"
    visit = many(tuning.max_steps, "step") if tuning.max_steps else f"{tuning.epochs or 1:g} epochs"
    yield (
        "objective",
        " ".join([tuning.objective.name, *(f"{k}={v}" for k, v in tuning.objective.own.items())]),
    )
    yield "algorithm", settings.algorithm.name
    yield "aggregation", settings.aggregation.name
    yield "transforms", ", ".join(part.name for part in settings.transforms) or "none"
    yield "rounds", str(_rounds(rows))
    yield "cohort", _cohort(settings.selection)
    yield "a visit", f"{visit}, {tuning.batch_size} examples a step, learning rate {tuning.learning_rate:g}"
    yield "targets", _names(settings.adapter.targets)
    if settings.adapter.target_parameters:
        yield "target parameters", _names(settings.adapter.target_parameters)
    yield (
        "rank, alpha, dropout",
        f"{settings.adapter.rank}, {settings.adapter.alpha:g}, {settings.adapter.dropout:g}",
    )
    if not hides:
        yield "tokens trained", str(sum(row.get("tokens", {}).get("trained", 0) for row in rows))
    if not hides.clients:
        yield "bytes sent down, up", f"{_total(rows, 'bytes_down')}, {_total(rows, 'bytes_up')}"
        yield "updates missed", str(sum(len(row.get("failures", ())) for row in rows))
    if settings.stragglers is not None:
        late = (str(sum(len(row.get(key, ())) for row in rows)) for key in ("late", "dropped", "carried"))
        yield "updates late, dropped, taken in a later round", ", ".join(late)
    yield "seed", str(settings.seed)


def _cohort(table: PartTable) -> str:
    name, share = table.name.replace("_", "-"), table.own.get("share")
    return f"{share:.0%} of the clients, {name}" if isinstance(share, float | int) else name


def _scores(rows: Sequence[Row], answers: Mapping[str, Pair]) -> str:
    """Held-out loss and right answers, of the base alone and after the last round, if that one was scored."""
    first, last = (rows[0], rows[-1]) if rows else ({}, {})
    before = _losses(first.get("heldout", {})) if first.get("round") == 0 else {}
    after = _losses(last["heldout"]) if "heldout" in last else {}
    names = sorted({*after, *answers} - {"all"}) + ["all"] * ("all" in {*after, *answers})
    if not names:
        return ""
    lines = [
        (
            inert(name),
            *_cells(answers.get(name, (None, None)), ".1%"),
            *_cells((before.get(name), after.get(name)), ".4f"),
        )
        for name in names
    ]
    head = ("category", "right before", "right after", "loss before", "loss after")
    return "## Scores on held-out examples\n\n" + _table(head, lines) + _preference(last.get("heldout", {}))


def _preference(heldout: Mapping[str, Any]) -> str:
    """What the adapter prefers of held-out pairs of answers, if there are any."""
    found = heldout.get("preference")
    if not found:
        return ""
    return (
        f"\n\nOf held-out pairs of answers it prefers the better one in {found['accuracy']:.1%}, by a mean"
        f" reward margin of {found['margin']:.3f} nats over what its training began from."
    )


def _losses(heldout: Mapping[str, Any]) -> dict[str, float | None]:
    return {**heldout.get("category", {}), "all": heldout.get("loss")}


def _cells(pair: Pair, form: str) -> list[str]:
    return ["" if value is None else format(value, form) for value in pair]


def _rounds(rows: Sequence[Row]) -> int:
    return max((row["round"] for row in rows), default=0)


def _total(rows: Sequence[Row], key: str) -> int:
    return sum(row.get(key, 0) for row in rows)


def _names(targets: str | tuple[str, ...]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)


def _table(head: Sequence[str], lines: Table | Iterator[Sequence[object]]) -> str:
    rule = ["---"] * len(head)
    rows = [" | ".join(str(cell).replace("|", "\\|") for cell in line) for line in (head, rule, *lines)]
    return "\n".join(f"| {row} |" for row in rows)
