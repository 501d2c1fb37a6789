"""Give each example to the client that a field of its row names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from shepherd.config import Table
from shepherd.data.dealing import by_client
from shepherd.data.examples import Example
from shepherd.data.split import Parts, Split


class Config(Table):
    field: Annotated[str, Field(min_length=1)]
    """Field of a row that names the client: one client a value."""


def build(config: Config) -> Split:
    """The data's own clients as a value."""

    def deal(examples: Sequence[Example], seed: int) -> Parts:
        return by_client(examples, "natural", "split.field")

    return Split(deal=deal, client_field=config.field)
