"""One example as a value, whatever row it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shepherd.data.chats import Turn


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Example:
    """One instruction with its response, or a chat: [system,] user, assistant, user, assistant, ...

    `label` is the value of `split.field`, if a split uses it; `group` that of `data.group`; `where` is file
    and line; `check` is the settings of a checker of answers, if the row has one (as in the embedded world).
    `rejected` is the whole chat of a pair of answers that ends with the worse one, as `turns` ends with the
    better one; both begin with the same prompt.
    """

    turns: tuple[Turn, ...]
    category: str = ""
    client: str = ""
    label: str = ""
    group: str = ""
    where: str = ""
    check: Mapping[str, Any] | None = None
    rejected: tuple[Turn, ...] = ()

    def __repr__(self) -> str:
        """The place and the number of turns: the text of an example stays out of logs."""
        return f"<Example: {self.where or 'in memory'}, {len(self.turns)} turns>"

    @property
    def instruction(self) -> str:
        """The first user turn's text."""
        return next(turn.text for turn in self.turns if turn.role == "user")

    @property
    def context(self) -> str:
        """The first user turn's context."""
        return next(turn.context for turn in self.turns if turn.role == "user")

    @property
    def response(self) -> str:
        """The last assistant turn's text."""
        return next(turn.text for turn in reversed(self.turns) if turn.role == "assistant")
