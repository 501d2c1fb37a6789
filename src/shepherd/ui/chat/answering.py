"""Ask several arms of a run one question, over one base in memory; their answers grow as they are generated.

chat = open_chat("runs/demo")
for texts in chat.answer("Name two rivers.", arms=["base", "federated"]):
    print(texts["federated"])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
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
from shepherd.model import files
from shepherd.model.answer import decoded
from shepherd.model.base import Base
from shepherd.model.stream import stream
from shepherd.run import folder
from shepherd.run.answerer import adapter_of
from shepherd.run.folder import planned
from shepherd.run.loading import load_base
from shepherd.settings import RunSettings
from shepherd.ui.chat.arms import FEDERATED, Arm, find, of_folder

REPLACEMENT = "\ufffd"  # what a tokenizer writes for an incomplete character


class Chat:
    """The arms of one run over one base; made by `open_chat`. Questions are answered one at a time."""

    def __init__(self, settings: RunSettings, base: Base, arms: Sequence[Arm]) -> None:
        self.settings = settings
        self.base = base
        self.arms = {arm.name: arm for arm in arms}
        self.templates = _templates(settings, base)
        self._adapters: dict[str, Adapter | None] = {}
        self._lock = Lock()

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
            template: one of `templates`; the run's if None.
            temperature: 0 is greedy; above 0, an arm's answer depends on the seed and not on other arms.
            top_p: sample among the likeliest tokens that have this probability together.
            max_new_tokens: at least 1; the run's `evaluation.max_new_tokens` if None.
            seed: of the sampling.

        Raises:
            DataError: there is no instruction, or no such arm.
            TemplateError: the template cannot render it.
            BaseError: the prompt is too long for the base, or a number is out of range.
            AdapterError: an adapter is unreadable, or was made for another base.
        """
        if not instruction.strip():
            raise DataError(NO_PROMPT)
        self.require_arms(arms)
        style = _template(self.settings, template or self.settings.data.template)
        turns = (Turn(role="user", text=instruction, context=context),)
        ids = prompt(turns, style, self.base.tokenizer)
        stop = stop_ids(style, self.base.tokenizer)
        limit = self.settings.evaluation.max_new_tokens if max_new_tokens is None else max_new_tokens
        with self._lock:
            adapters = [self.adapter(name) for name in arms]
            steps = stream(
                self.base,
                adapters,
                ids,
                max_new_tokens=limit,
                stop=stop,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
            )
            with closing(steps):
                yield from _texts(arms, steps, self.base)

    def require_arms(self, arms: Sequence[str]) -> None:
        """Raise DataError unless `arms` names at least one arm, and only arms of this run."""
        if not arms:
            raise DataError("no arm is chosen; choose at least one")
        for name in arms:
            if name not in self.arms:
                raise DataError(f"this run has no arm {name!r}; it has {', '.join(self.arms)}")

    def adapter(self, name: str) -> Adapter | None:
        """The adapter of an arm, read on first use, since there may be a hundred local arms."""
        if name not in self._adapters:
            self._adapters[name] = _read_adapter(self.arms[name], self.base)
        return self._adapters[name]


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
    found = [*find(path, settings), *map(of_folder, map(Path, adapters))]
    if twice := [name for name, count in Counter(arm.name for arm in found).items() if count > 1]:
        raise DataError(f"two arms are called {twice[0]!r}; rename the folder of one")
    chat = Chat(settings, load_base(settings, consent), found)
    if arms is not None:
        chat.require_arms(arms)
        chat.arms = {name: arm for name, arm in chat.arms.items() if name in arms}
    early = chat.arms if arms is not None else [n for n in chat.arms if n not in chat.local[1:]]
    for name in early:
        chat.adapter(name)
    return chat


def _read_adapter(arm: Arm, base: Base) -> Adapter | None:
    if arm.path is None:
        return None
    try:
        if arm.name == FEDERATED or folder.is_run(arm.path):
            return adapter_of(arm.path, base)
        return files.read(arm.path, base)
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
