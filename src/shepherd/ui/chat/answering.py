"""Ask several arms of a run one question, over one base in memory; their answers grow as they are generated.

chat = open_chat("runs/demo")
for texts in chat.answer("Name two rivers.", arms=["base", "federated"]):
    print(texts["federated"])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, get_args

from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter
from shepherd.data.examples import Turn
from shepherd.data.prompts import NO_PROMPT
from shepherd.data.template import Template, TemplateName, prompt, stop_ids
from shepherd.errors import AdapterError, DataError, TemplateError
from shepherd.model.answer import decoded
from shepherd.model.base import Base
from shepherd.model.stream import stream
from shepherd.run.folder import planned
from shepherd.run.loading import adapter_at, load_base
from shepherd.settings import RunSettings
from shepherd.ui.chat.arms import Arm, of_folder, trainings

REPLACEMENT = "\ufffd"  # what a tokenizer writes for an incomplete character


class Chat:
    """The arms of one run over one base; made by `open_chat`. Questions are answered one at a time."""

    def __init__(
        self, path: Path, settings: RunSettings, base: Base, arms: Mapping[int, Sequence[Arm]]
    ) -> None:
        """Offer the arms of the run in `path` by the seed of their training; the first is the run's own."""
        self.path = path
        self.settings = settings
        self.base = base
        self.trainings = {seed: {arm.name: arm for arm in some} for seed, some in arms.items()}
        self.templates = _templates(settings, base)
        self._adapters: dict[Path, Adapter] = {}
        self._lock = Lock()

    @property
    def arms(self) -> Mapping[str, Arm]:
        """The arms of the run's own seed, by name."""
        return next(iter(self.trainings.values()))

    @property
    def local(self) -> list[str]:
        """Names of the local arms: clients that trained alone."""
        return [name for name, arm in self.arms.items() if arm.client is not None]

    @property
    def max_answer_tokens(self) -> int:
        """Upper bound of `max_new_tokens`."""
        return self.base.max_length or 4096

    def answer(
        self,
        instruction: str,
        context: str = "",
        *,
        arms: Sequence[str],
        training: int | None = None,
        system: str | None = None,
        earlier: Mapping[str, Sequence[Turn]] | None = None,
        template: TemplateName | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int | None = None,
        seed: int = 0,
    ) -> Generator[dict[str, str], None, None]:
        """Yield the text of each arm's answer so far after every step; the last ones are complete.

        Args:
            instruction: what is asked.
            context: text that the instruction refers to.
            arms: names of the arms to ask.
            training: seed of the training whose arms are asked, one of `trainings`; the run's if None.
            system: a system prompt, as `data.system` of a run file; the run's own if None.
            earlier: the turns of each arm's conversation before this question, user and assistant in turn.
            template: one of `templates`; the run's if None.
            temperature: 0 is greedy; above 0, an arm's answer depends on the seed and not on other arms.
            top_p: sample among the likeliest tokens that have this probability together.
            max_new_tokens: at least 1; the run's `evaluation.max_new_tokens` if None.
            seed: of the sampling.

        Raises:
            DataError: there is no instruction, or no such arm or training.
            TemplateError: the template cannot render it.
            BaseError: the prompt is too long for the base, or a number is out of range.
            AdapterError: an adapter is unreadable, or was made for another base.
        """
        if not instruction.strip():
            raise DataError(NO_PROMPT)
        chosen = self.require_arms(arms, training)
        style = _template(self.settings, template or self.settings.data.template)
        if system is not None:
            style = replace(style, system=system)
        now = Turn(role="user", text=instruction, context=context)
        alike: dict[tuple[int, ...], list[str]] = {}  # arms by their prompt, since conversations differ
        for name in arms:
            turns = (*(earlier or {}).get(name, ()), now)
            alike.setdefault(tuple(prompt(turns, style, self.base.tokenizer)), []).append(name)
        stop = stop_ids(style, self.base.tokenizer)
        limit = self.settings.evaluation.max_new_tokens if max_new_tokens is None else max_new_tokens
        with self._lock:
            texts = dict.fromkeys(arms, "")
            for ids, names in alike.items():
                steps = stream(
                    self.base,
                    [self.adapter(chosen[name]) for name in names],
                    ids,
                    max_new_tokens=limit,
                    stop=stop,
                    temperature=temperature,
                    top_p=top_p,
                    seed=seed,
                )
                with closing(steps):
                    for some in _texts(names, steps, self.base):
                        texts = {**texts, **some}
                        yield texts

    def require_arms(self, arms: Sequence[str], training: int | None = None) -> Mapping[str, Arm]:
        """The arms of a training, by name.

        Raises:
            DataError: there is no such training, or `arms` names none or another arm than it has.
        """
        if training is not None and training not in self.trainings:
            seeds = ", ".join(map(str, self.trainings))
            raise DataError(f"this run has no training with seed {training}; it has {seeds}")
        there = self.arms if training is None else self.trainings[training]
        if not arms:
            raise DataError("no arm is chosen; choose at least one")
        for name in arms:
            if name not in there:
                raise DataError(f"this run has no arm {name!r}; it has {', '.join(there)}")
        return there

    def adapter(self, arm: Arm) -> Adapter | None:
        """The adapter of an arm, read on first use, since there may be a hundred local arms."""
        if arm.path is None:
            return None
        if arm.path not in self._adapters:
            self._adapters[arm.path] = _read_adapter(arm, arm.path, self.base)
        return self._adapters[arm.path]


def open_chat(
    path: str | Path,
    arms: Sequence[str] | None = None,
    consent: Consent = NOTHING,
    adapters: Sequence[str | Path] = (),
) -> Chat:
    """Load the base of the run in `path`, and the adapters of its arms.

    Args:
        path: the run folder.
        arms: the only arms to offer; all if None. The adapters of those named here are read at once, of
            other local arms on first use.
        consent: whether code that comes with the base may run.
        adapters: PEFT folders of the same base, rank and scale to offer as well, each by the folder's name.

    Raises:
        FolderError: there is no run, or it has finished no round yet.
        DataError: there is no such arm, or two have one name.
        BaseError: the base cannot be loaded, or needs code that `consent` does not allow.
        AdapterError: an adapter is unreadable, or was made for another base.
    """
    path = Path(path)
    settings = planned(path)
    more = [of_folder(Path(each)) for each in adapters]
    found = {seed: [*own, *more] for seed, own in trainings(path, settings).items()}
    for own in found.values():
        if twice := [name for name, count in Counter(arm.name for arm in own).items() if count > 1]:
            raise DataError(f"two arms are called {twice[0]!r}; rename the folder of one")
    chat = Chat(path, settings, load_base(settings, consent), found)
    if arms is not None:
        chat.require_arms(arms)
        chat.trainings = {
            seed: {name: arm for name, arm in some.items() if name in arms}
            for seed, some in chat.trainings.items()
        }
    early = chat.arms if arms is not None else [n for n in chat.arms if n not in chat.local[1:]]
    for name in early:
        chat.adapter(chat.arms[name])
    return chat


def _read_adapter(arm: Arm, path: Path, base: Base) -> Adapter:
    try:
        return adapter_at(path, base)
    except AdapterError as error:
        raise AdapterError(
            f"arm {arm.name}: {error}; or leave this arm out by naming the others with --arm"
        ) from error


def _template(settings: RunSettings, name: TemplateName) -> Template:
    """A template with the run's own options."""
    return replace(Template.of(settings.data), name=name)


def _templates(settings: RunSettings, base: Base) -> tuple[TemplateName, ...]:
    """Templates that this tokenizer can render; not every tokenizer has a chat template."""
    return tuple(
        name for name in get_args(TemplateName) if _can_render(_template(settings, name), base.tokenizer)
    )


def _can_render(template: Template, tokenizer: Any) -> bool:
    try:
        return bool(prompt((Turn(role="user", text="?"),), template, tokenizer))
    except TemplateError:
        return False


def _texts(arms: Sequence[str], steps: Iterator[list[list[int]]], base: Base) -> Iterator[dict[str, str]]:
    texts = dict.fromkeys(arms, "")
    whole = list(texts.values())
    for step in steps:
        whole = [decoded(base, ids) for ids in step]
        texts = {name: readable(texts[name], text) for name, text in zip(arms, whole, strict=True)}
        yield texts
    last = dict(zip(arms, whole, strict=True))
    if last != texts:  # the answer ends within a character
        yield last


def readable(before: str, text: str) -> str:
    """The text to show of an answer under way, after `before` was shown: no incomplete character.

    >>> readable("", "caf\\ufffd"), readable("café", "caf\\ufffd\\ufffd"), readable("caf", "café ")
    ('caf', 'café', 'café ')
    """
    text = text.rstrip(REPLACEMENT)
    return before if before.startswith(text) else text
