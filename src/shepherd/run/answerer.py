"""Ask a run: what its adapter, or its base alone, answers.

asked = load_run("runs/demo")  # the base is loaded once
asked.generate("Name two rivers.")
asked.generate(["Name a bird.", {"instruction": "Who is it?", "context": "Ann is here."}], base=True)
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter
from shepherd.data.prompts import Prompt, prompt_of, with_context
from shepherd.data.template import Template, prompt
from shepherd.errors import DataError, FolderError, TemplateError
from shepherd.model import answer, files
from shepherd.model import generate as generation
from shepherd.model.base import Base
from shepherd.run import checkpoint, folder
from shepherd.run.folder import planned
from shepherd.run.loading import load_base, load_checkpoint
from shepherd.settings import RunSettings

__all__ = ["Answer", "Answerer", "Options", "adapter_of", "generate", "load_run"]

Asked = str | Mapping[str, Any]
"""What is asked: a text, or a row in the run's own layout, such as `instruction` with `context`."""

AT_ONCE = (
    4 * generation.MAX_BATCH_SEQUENCES
)  # answers, sorted by the length of their prompts; they are given in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer. `n` counts a prompt's answers from 1; `seed` is None where it is greedy."""

    prompt: Prompt
    text: str
    n: int
    seed: int | None
    cut: bool
    """Whether it was ended by its greatest length, and not by the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a run is asked; by default for one greedy answer of its last adapter."""

    base: bool = False
    """Answer with the untuned base."""
    round: int | None = None
    """Of a kept checkpoint; the final adapter, else the last checkpoint's, where none is given."""
    n: int = 1
    """Answers to each prompt, at least 1."""
    max_new_tokens: int | None = None
    """Of one answer, at least 1; the run's `evaluation.max_new_tokens` by default."""
    temperature: float = 0.0
    """0 is greedy; above, sampling."""
    top_p: float = 1.0
    """In (0, 1]; sampling leaves out the least likely tokens beyond this share."""
    seed: int | None = None
    """Of the sampling; a new one is drawn where none is given, and each answer holds it."""


USUAL = Options()


class Answerer:
    """A run's base in memory, with the adapters that were asked for; from `load_run`. Not for two threads."""

    def __init__(self, path: Path, settings: RunSettings, base: Base) -> None:
        self.path = path
        self.settings = settings
        self.base = base
        self._adapters: dict[int | None, Adapter] = {}

    @overload
    def generate(self, prompts: str, context: str = "", **options: Any) -> str: ...

    @overload
    def generate(self, prompts: Sequence[Asked], context: str = "", **options: Any) -> list[str]: ...

    def generate(self, prompts: str | Sequence[Asked], context: str = "", **options: Any) -> str | list[str]:
        """Answer one instruction, or each of many; many are much faster together than one by one.

        Args:
            prompts: a text, or a sequence of texts and of rows as the run's data have them.
            context: what the one text is about.
            options: the fields of `Options`; of several answers (`n`) each prompt's come one after another.

        Returns:
            The answer to a text; a list for a sequence, in its order.

        Raises:
            DataError: an instruction is empty, or a context is given for several.
            ShepherdError: as `answers`.
        """
        table, how = self.settings.data, Options(**options)
        if not isinstance(prompts, str):
            if context:
                raise DataError("the context belongs to one instruction; give several as rows with their own")
            many = [prompt_of(each, table, f"prompt {n}") for n, each in enumerate(prompts, 1)]
            return [each.text for each in self.answers(many, how)]
        if how.n != 1:
            raise DataError("several answers to one text are a list; give the text in a list")
        asked = with_context(prompt_of(prompts, table), context)
        return next(self.answers([asked], how)).text

    def answers(self, prompts: Sequence[Prompt], how: Options = USUAL) -> Iterator[Answer]:
        """The answers in the order of the prompts, each prompt's `n` together, as they become ready.

        A sampled answer depends on its prompt, the seed and its number alone, and not on the other prompts.

        Raises:
            FolderError: the run keeps no such round, or has no adapter yet.
            DataError: several greedy answers are wanted, which would be the same.
            TemplateError: the template cannot render a prompt.
            BaseError: a prompt is too long for the base, or a number is out of its range.
        """
        require_options(self.path, how)
        longest = how.max_new_tokens or self.settings.evaluation.max_new_tokens
        adapter = None if how.base else self.adapter(how.round)
        drawn = (secrets.randbelow(2**31) if how.seed is None else how.seed) if how.temperature else None
        ids = [self._ids(each, longest) for each in prompts]
        asked = [(place, number) for place in range(len(prompts)) for number in range(how.n)]
        for start in range(0, len(asked), AT_ONCE):
            some = asked[start : start + AT_ONCE]
            (found,) = answer.answers(
                self.base,
                self.settings.data,
                [adapter],
                [ids[place] for place, _ in some],
                max_new_tokens=longest,
                temperature=how.temperature,
                top_p=how.top_p,
                seed=drawn or 0,
                draws=[number for _, number in some],
            )
            for (place, number), new in zip(some, found, strict=True):
                yield Answer(prompt=prompts[place], text=new.text, n=number + 1, seed=drawn, cut=new.cut)

    def adapter(self, round: int | None = None) -> Adapter:
        """The run's adapter, read once; see `adapter_of`."""
        if round not in self._adapters:
            self._adapters[round] = adapter_of(self.path, self.base, round)
        return self._adapters[round]

    def _ids(self, asked: Prompt, longest: int) -> list[int]:
        try:
            ids = prompt(asked.turns, Template.of(self.settings.data), self.base.tokenizer)
        except TemplateError as error:
            said = str(error)
            rest = said.removeprefix("the prompt") if said.startswith("the prompt") else f": {said}"
            raise TemplateError(f"{asked.where}{rest}") from error
        generation.max_answer_tokens(self.base, len(ids), longest, asked.where)
        return ids


def require_options(path: str | Path, how: Options) -> None:
    """Check the options of `Answerer.answers` without any base, which may take minutes to load.

    Raises:
        FolderError: the run in `path` keeps no such round, or has no adapter yet.
        DataError: several greedy answers are wanted, or a round and the base alone.
        BaseError: a number is out of its range.
    """
    longest = 1 if how.max_new_tokens is None else how.max_new_tokens
    generation.require_ranges(longest, how.temperature, how.top_p)
    if how.n < 1 or (how.n > 1 and not how.temperature):
        raise DataError(
            f"{how.n} answers to each prompt need a temperature above 0; greedy ones are the same"
        )
    if how.base and how.round is not None:
        raise DataError(f"the untuned base has no round {how.round}; leave out the round, or the base")
    if not how.base:
        _kept(Path(path), how.round)


def load_run(path: str | Path, consent: Consent = NOTHING) -> Answerer:
    """Load the base of the run in `path` once, to ask it again and again.

    Args:
        consent: whether code that comes with the base may run, where the run file in the folder asks for it.

    Raises:
        FolderError: there is no run.
        BaseError: the base cannot be loaded, or asks to run code that nobody agreed to.
    """
    settings = planned(path)
    return Answerer(Path(path), settings, load_base(settings, consent))


@overload
def generate(path: str | Path, prompts: str, context: str = "", **options: Any) -> str: ...


@overload
def generate(path: str | Path, prompts: Sequence[Asked], context: str = "", **options: Any) -> list[str]: ...


def generate(
    path: str | Path,
    prompts: str | Sequence[Asked],
    context: str = "",
    consent: Consent = NOTHING,
    **options: Any,
) -> str | list[str]:
    """Answer one instruction, or each of many, with the adapter of the run in `path`.

    The base is loaded once a call; `load_run` keeps it for the next ones.

    Args:
        prompts: a text, or a sequence of texts and of rows as the run's data have them.
        context: what the one text is about.
        consent: as for `load_run`.
        options: the fields of `Options`.

    Returns:
        The answer to a text; a list for a sequence, in its order.

    Raises:
        FolderError: there is no run, or it has no adapter yet.
        DataError: an instruction is empty.
        ShepherdError: as `Answerer.answers`.
    """
    table = folder.read_settings(path).data  # before the base is loaded
    for number, each in enumerate([prompts] if isinstance(prompts, str) else prompts, 1):
        prompt_of(each, table, "the prompt" if isinstance(prompts, str) else f"prompt {number}")
    require_options(path, Options(**options))
    return load_run(path, consent).generate(prompts, context, **options)


def adapter_of(path: Path, base: Base, round: int | None = None) -> Adapter:
    """The adapter of the run in `path`: of a round, or the final one, else the last checkpoint's.

    Raises:
        FolderError: no round is finished yet, or that round's checkpoint is not kept.
        CheckpointError: the checkpoint is damaged, or was made over another base.
        AdapterError: the adapter is unreadable, or was made for another base.
    """
    place = _kept(path, round)
    if place is None:
        return files.read(path / "adapter", base)
    return load_checkpoint(place, base).state.adapter


def _kept(path: Path, round: int | None) -> Path | None:
    """The checkpoint of a round, or the last; None is the final adapter.

    Raises:
        FolderError: no round is finished yet, or that round's checkpoint is not kept.
    """
    if round is None and (path / "adapter" / files.CONFIG).is_file():
        return None
    kept = checkpoint.kept(path / "checkpoints")
    if not kept:
        raise FolderError(f"the run in {path} has finished no round yet; go on with `shepherd resume {path}`")
    if round is not None and round not in kept:
        raise FolderError(
            f"the run in {path} keeps no checkpoint of round {round} but of {', '.join(map(str, kept))};"
            " ask for one of these (checkpoints.keep says how many are kept)"
        )
    return kept[max(kept) if round is None else round]
