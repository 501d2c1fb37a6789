"""Generate answers with a run's adapter, or with its base alone.

asked = load_run("runs/demo")  # the base is loaded once
asked.generate("Name two rivers.")
asked.generate(["Name a bird.", {"instruction": "Who is it?", "context": "Ann is here."}], base=True)
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, overload

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter, Broadcast, ClientInfo, Payload
from shepherd.data import data_folder
from shepherd.data.prompts import Prompt, prompt_of, with_context
from shepherd.data.template import Template, prompt
from shepherd.errors import DataError, FolderError, SettingsError, TemplateError
from shepherd.federation.client_store import OnDisk, StoredMemory
from shepherd.model import answer
from shepherd.model import generate as generation
from shepherd.model.base import Base
from shepherd.run import folder
from shepherd.run.folder import planned
from shepherd.run.loading import (
    adapter_at,
    adapter_of,
    checkpoint_of,
    kept_checkpoint,
    load_base,
    load_checkpoint,
)
from shepherd.run.run import Run
from shepherd.settings import RunSettings

__all__ = ["Answer", "Answerer", "Options", "adapter_of", "generate", "load_run", "own_adapter_of"]

Asked = str | Mapping[str, Any]
"""A prompt: a text, or a row with the field names of the run's data, such as `instruction` and `context`."""

CHUNK_ANSWERS = 4 * generation.MAX_BATCH_SEQUENCES  # sorted by prompt length in a chunk, returned in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer. `n` counts a prompt's answers from 1; `seed` is None for a greedy one."""

    prompt: Prompt
    text: str
    n: int
    seed: int | None
    cut: bool
    """Whether the length limit ended it, and not the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of generation; by default one greedy answer per prompt with the last adapter."""

    base: bool = False
    """Answer with the untuned base."""
    adapter: str | Path | None = None
    """Folder of another adapter of the same base, in PEFT's layout or a run, to answer with instead."""
    round: int | None = None
    """Round of a kept checkpoint; by default the final adapter, else that of the last checkpoint."""
    n: int = 1
    """Number of answers to each prompt, at least 1."""
    max_new_tokens: int | None = None
    """Longest answer in tokens, at least 1; by default the run's `evaluation.max_new_tokens`."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    top_p: float = 1.0
    """Sample only from the most likely tokens whose probabilities add up to this share, in (0, 1]."""
    seed: int | None = None
    """Seed of the sampling; by default a new one is drawn, which each answer holds."""


USUAL = Options()


class Answerer:
    """A run's base in memory, with the adapters used so far; see `load_run`. Not thread-safe."""

    def __init__(self, path: Path, settings: RunSettings, base: Base) -> None:
        self.path = path
        self.settings = settings
        self.base = base
        self._adapters: dict[int | None, Adapter] = {}

    @classmethod
    def of(cls, run: Run) -> Answerer:
        """Answer with the base of a run in this process, open or finished, and its adapter as it is now."""
        found = cls(run.folder, run.planned, run.base)
        found._adapters[None] = run.state.adapter
        return found

    def __repr__(self) -> str:
        return f"<Answerer {self.path}: base {self.base.name}>"

    @overload
    def generate(self, prompts: str, context: str = "", **options: Any) -> str: ...

    @overload
    def generate(self, prompts: Sequence[Asked], context: str = "", **options: Any) -> list[str]: ...

    def generate(self, prompts: str | Sequence[Asked], context: str = "", **options: Any) -> str | list[str]:
        """Answer one instruction, or several; several are much faster in one call than one by one.

        Args:
            prompts: a text, or a sequence of texts and of rows with the field names of the run's data.
            context: context of a single text.
            options: the fields of `Options`; with `n` above 1, the answers of a prompt follow each other.

        Returns:
            The answer to a text; for a sequence a list, in the same order.

        Raises:
            DataError: an instruction is empty, or a context is given for several texts.
            ShepherdError: as `answers`.
        """
        table, how = self.settings.data, Options(**options)
        if not isinstance(prompts, str):
            if context:
                raise DataError(
                    "a context goes with one instruction; give several as rows with a context each"
                )
            many = [prompt_of(each, table, f"prompt {n}") for n, each in enumerate(prompts, 1)]
            return [each.text for each in self.answers(many, how)]
        if how.n != 1:
            raise DataError("several answers to one text need a list; give the text in a list")
        asked = with_context(prompt_of(prompts, table), context)
        return next(self.answers([asked], how)).text

    def answers(self, prompts: Sequence[Prompt], how: Options = USUAL) -> Iterator[Answer]:
        """Yield the answers as they get ready, in the order of the prompts, the `n` of one prompt together.

        A sampled answer depends only on its prompt, the seed and its number, not on the other prompts.

        Raises:
            FolderError: the run keeps no such round, or has no adapter yet.
            DataError: several greedy answers are asked for, which would be the same.
            TemplateError: the template cannot render a prompt.
            BaseError: a prompt is too long for the base, or a number is out of its range.
        """
        if how.round is None and None in self._adapters:  # an open run may not have a round yet
            require_ranges(how)
        else:
            require_options(self.path, how)
        longest = how.max_new_tokens or self.settings.evaluation.max_new_tokens
        adapter = self._adapter(how)
        drawn = (secrets.randbelow(2**31) if how.seed is None else how.seed) if how.temperature else None
        ids = [self._prompt_ids(each, longest) for each in prompts]
        asked = [(place, number) for place in range(len(prompts)) for number in range(how.n)]
        for start in range(0, len(asked), CHUNK_ANSWERS):
            some = asked[start : start + CHUNK_ANSWERS]
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
        """Read an adapter of the run, once; see `adapter_of`."""
        if round not in self._adapters:
            self._adapters[round] = adapter_of(self.path, self.base, round)
        return self._adapters[round]

    def _adapter(self, how: Options) -> Adapter | None:
        if how.base:
            return None
        return self.adapter(how.round) if how.adapter is None else adapter_at(Path(how.adapter), self.base)

    def _prompt_ids(self, asked: Prompt, longest: int) -> list[int]:
        try:
            ids = prompt(asked.turns, Template.of(self.settings.data), self.base.tokenizer)
        except TemplateError as error:
            said = str(error)
            rest = said.removeprefix("the prompt") if said.startswith("the prompt") else f": {said}"
            raise TemplateError(f"{asked.where}{rest}") from error
        generation.max_answer_tokens(self.base, len(ids), longest, asked.where)
        return ids


def require_options(path: str | Path, how: Options) -> None:
    """Check the options of `Answerer.answers` before the base is loaded, which may take minutes.

    Raises:
        FolderError: the run in `path` keeps no such round, or has no adapter yet.
        DataError: several greedy answers are asked for, or a round together with the base alone.
        BaseError: a number is out of its range.
    """
    require_ranges(how)
    if not how.base and how.adapter is None:
        checkpoint_of(Path(path), how.round)


def require_ranges(how: Options) -> None:
    """Check the options that do not depend on a run; errors as for `require_options`."""
    longest = 1 if how.max_new_tokens is None else how.max_new_tokens
    generation.require_ranges(longest, how.temperature, how.top_p)
    if how.n < 1 or (how.n > 1 and not how.temperature):
        raise DataError(
            f"{how.n} answers to each prompt need a temperature above 0; greedy ones are the same"
        )
    if how.base and how.round is not None:
        raise DataError(f"the untuned base has no round {how.round}; give either the round or the base")
    if how.adapter is not None and (how.base or how.round is not None):
        raise DataError(
            f"the adapter in {how.adapter} is neither the untuned base nor of a round; give one of them"
        )


def load_run(path: str | Path, consent: Consent = NOTHING) -> Answerer:
    """Load the base of the run in `path`, to generate answers many times.

    Args:
        consent: whether code that comes with the base may run, if the run file in the folder asks for it.

    Raises:
        FolderError: there is no run.
        BaseError: the base cannot be loaded, or needs to run code without consent.
    """
    settings = planned(path)
    return Answerer(Path(path), settings, load_base(settings, consent))


Loaded = str | Path | Answerer | Run
"""A run to ask: its folder, or what `load_run`, `open_run` or `resume` returned."""


@overload
def generate(run: Loaded, prompts: str, context: str = "", **options: Any) -> str: ...


@overload
def generate(run: Loaded, prompts: Sequence[Asked], context: str = "", **options: Any) -> list[str]: ...


def generate(
    run: Loaded,
    prompts: str | Sequence[Asked],
    context: str = "",
    consent: Consent = NOTHING,
    **options: Any,
) -> str | list[str]:
    """Answer one instruction, or several, with the adapter of a run.

    Args:
        run: a run folder, whose base is loaded in each call; or what `load_run`, `open_run` or `resume`
            returned, whose base is in memory already.
        prompts: a text, or a sequence of texts and of rows with the field names of the run's data.
        context: context of a single text.
        consent: as for `load_run`.
        options: the fields of `Options`.

    Returns:
        The answer to a text; for a sequence a list, in the same order.

    Raises:
        FolderError: there is no run, or it has no adapter yet.
        DataError: an instruction is empty.
        ShepherdError: as `Answerer.answers`.
    """
    if not isinstance(prompts, str | Iterable):
        raise DataError(
            f"the prompts are a {type(prompts).__name__}; give a text, or a list of texts or of rows"
        )
    if isinstance(run, Run):
        run = Answerer.of(run)
    if isinstance(run, Answerer):
        return run.generate(prompts, context, **options)
    path = run
    table = folder.read_settings(path).data  # before the base is loaded
    for number, each in enumerate([prompts] if isinstance(prompts, str) else prompts, 1):
        prompt_of(each, table, "the prompt" if isinstance(prompts, str) else f"prompt {number}")
    require_options(path, Options(**options))
    return load_run(path, consent).generate(prompts, context, **options)


def own_adapter_of(path: Path, base: Base, client: str, round: int | None, consent: Consent) -> Adapter:
    """The adapter of one client's own model; see `own_adapters`.

    Raises:
        FolderError: there is no such client.
        ShepherdError: as for `own_adapters`.
    """
    for name, adapter in own_adapters(path, base, round, consent, [client]):
        if name == client:
            return adapter
    known = data_folder.load(path / "data").clients
    close = get_close_matches(client, known, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    raise FolderError(f"the run in {path} has no client {client!r}{meant}")


def own_adapters(
    path: Path, base: Base, round: int | None, consent: Consent, clients: Collection[str] | None = None
) -> Iterator[tuple[str, Adapter]]:
    """Each client with the adapter of its own model, where a part of it stays with each client.

    Args:
        round: round of a kept checkpoint; None for the last.
        clients: the only ones; all if None.

    Raises:
        SettingsError: the algorithm leaves nothing with the clients.
        FolderError: there is no such round.
        CheckpointError, PluginError: as for `resume`.
    """
    settings = folder.read_settings(path)
    algorithm = plugins.algorithm(settings.algorithm, consent.plugins)
    if not algorithm.personal:
        raise SettingsError(
            f"algorithm.name = {settings.algorithm.name!r} gives all clients of {path} one model; leave out"
            " the client"
        )
    prepared = data_folder.load(path / "data")
    saved = load_checkpoint(kept_checkpoint(path, round), base)
    store = OnDisk(path / "clients", settings.checkpoints.keep)
    broadcast = Broadcast(round=saved.state.round, adapter=saved.state.adapter, seed=0)
    for name, own in prepared.clients.items():
        if clients is None or name in clients:
            kept = saved.notes["memories"].get(name)
            memory = store.get(name, StoredMemory(*kept)) if kept else Payload()
            yield name, algorithm.start(broadcast, memory, ClientInfo(name=name, examples=len(own)))
