"""One question, several arms, one base in memory: their answers as they are written.

chat = open_chat("runs/demo")
for texts in chat.answer("Name two rivers.", arms=["base", "federated"]):
    print(texts["federated"])
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, get_args

from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter
from shepherd.data.examples import Turn
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
from shepherd.ui.chat.arms import FEDERATED, Arm, find

UNFINISHED = "\ufffd"  # what a tokenizer shows for bytes that are no whole character yet


class Chat:
    """The arms of one run over one base; from `open_chat`. Whoever asks second waits for the first."""

    def __init__(self, settings: RunSettings, base: Base, arms: Sequence[Arm]) -> None:
        self.settings = settings
        self.base = base
        self.arms = {arm.name: arm for arm in arms}
        self.templates = _templates(settings, base)
        self._adapters: dict[str, Adapter | None] = {}
        self._asked = Lock()

    @property
    def local(self) -> list[str]:
        """The clients that trained alone, as arms."""
        return [name for name, arm in self.arms.items() if arm.client is not None]

    @property
    def longest(self) -> int:
        """The most tokens that an answer may be asked to have."""
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
        """The text of each arm's answer so far, after every step; the last are the whole answers.

        Args:
            template: one of `templates`; the run's, where none is given.
            temperature: 0 is greedy; above, an arm's answer depends on the seed, not on the other arms.
            max_new_tokens: at least 1; the run's `evaluation.max_new_tokens`, where none is given.

        Raises:
            DataError: there is no instruction, or no such arm.
            TemplateError: the template cannot render it.
            BaseError: it is too long for the base, or a number is out of its range.
            AdapterError: an adapter is unreadable, or was made for another base.
        """
        if not instruction.strip():
            raise DataError("the instruction is empty; write what is asked")
        self._require(arms)
        style = _style(self.settings, template or self.settings.data.template)
        turns = (Turn(role="user", text=instruction, context=context),)
        ids = prompt(turns, style, self.base.tokenizer)
        stop = stop_ids(style, self.base.tokenizer)
        longest = self.settings.evaluation.max_new_tokens if max_new_tokens is None else max_new_tokens
        with self._asked:
            adapters = [self._adapter(name) for name in arms]
            steps = stream(
                self.base,
                adapters,
                ids,
                max_new_tokens=longest,
                stop=stop,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
            )
            with closing(steps):
                yield from _texts(arms, steps, self.base)

    def _require(self, arms: Sequence[str]) -> None:
        if not arms:
            raise DataError("no arm is chosen; choose at least one")
        for name in arms:
            if name not in self.arms:
                raise DataError(f"this run has no arm {name!r}; it has {', '.join(self.arms)}")

    def _adapter(self, name: str) -> Adapter | None:
        """Read when it is first asked for: there may be a hundred local arms."""
        if name not in self._adapters:
            self._adapters[name] = _read(self.arms[name], self.base)
        return self._adapters[name]


def open_chat(path: str | Path, arms: Sequence[str] | None = None, consent: Consent = NOTHING) -> Chat:
    """Load the base of the run in `path` once, and the adapters of its arms: of these, or of all.

    A local arm's adapter is read when it is first asked for, or when it is named here. Code that comes with
    the base runs only by `consent`.

    Raises:
        FolderError: there is no run, or it has finished no round yet.
        DataError: there is no such arm.
        BaseError: the base cannot be loaded, or asks to run code that nobody agreed to.
        AdapterError: an adapter is unreadable, or was made for another base.
    """
    path = Path(path)
    settings = planned(path)
    found = find(path, settings)
    chat = Chat(settings, load_base(settings, consent), found)
    if arms is not None:
        chat._require(arms)
        chat.arms = {name: arm for name, arm in chat.arms.items() if name in arms}
    early = chat.arms if arms is not None else [n for n in chat.arms if n not in chat.local[1:]]
    for name in early:
        chat._adapter(name)
    return chat


def _read(arm: Arm, base: Base) -> Adapter | None:
    if arm.path is None:
        return None
    try:
        if arm.name == FEDERATED or folder.is_run(arm.path):
            return adapter_of(arm.path, base)
        return files.read(arm.path, base)
    except AdapterError as error:
        raise AdapterError(
            f"arm {arm.name}: {error}; or leave this arm out (--arm names those to load)"
        ) from error


def _style(settings: RunSettings, name: TemplateName) -> Template:
    """A template with what the run lays over it."""
    return replace(Template.of(settings.data), name=name)


def _templates(settings: RunSettings, base: Base) -> tuple[TemplateName, ...]:
    """Those that this tokenizer can render; not every one has a chat template."""
    return tuple(name for name in get_args(TemplateName) if _renders(_style(settings, name), base.tokenizer))


def _renders(template: Template, tokenizer: Any) -> bool:
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
    if last != texts:  # it ends within a character
        yield last


def readable(before: str, text: str) -> str:
    """What to show after `before` of an answer that goes on: no character whose bytes are not all there.

    >>> readable("", "caf\\ufffd"), readable("café", "caf\\ufffd\\ufffd"), readable("caf", "café ")
    ('caf', 'café', 'café ')
    """
    text = text.rstrip(UNFINISHED)
    return before if before.startswith(text) else text
