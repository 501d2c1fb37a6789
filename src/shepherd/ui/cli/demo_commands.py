"""`shepherd demo`: local, central and federated tuning on embedded data, over a small base."""

from __future__ import annotations

import json
import shlex
from importlib import resources
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shepherd.errors import ShepherdError
from shepherd.ui.cli.options import overrides
from shepherd.ui.cli.silos import echo
from shepherd.version import install

if TYPE_CHECKING:
    from shepherd.settings import RunSettings

LOCALS = ("client-3", "client-6", "client-8")
"""Clients that are also tuned alone."""
BASES = ("tiny", "smollm2")


@click.command(short_help="Compare local, central and federated on a small base.")
@overrides
@click.option(
    "--base",
    type=click.Choice(BASES),
    default="tiny",
    show_default=True,
    help="`tiny` is in the package; `smollm2` is a real base, downloaded once (93 MB, Apache-2.0).",
)
@click.option("--chat", "chats", is_flag=True, help="Open the chat at the end.")
def demo(overrides: tuple[str, ...], base: str, chats: bool) -> None:
    """Tune a small base over ten clients, and compare it with clients alone and with all data in one place.

    The data are in the package. With --base smollm2 a real base of 135 million parameters is downloaded from
    the package index and kept. To continue a demo that was stopped, give it output=FOLDER.
    """
    if chats and find_spec("gradio") is None:  # before half an hour of work
        raise ShepherdError(f"the chat page needs gradio; run {install('chat')}, or leave out --chat")
    from shepherd.compare.arms import CompareSpec
    from shepherd.compare.comparison import compare
    from shepherd.ui import report
    from shepherd.ui.terminal.comparison_table import print_comparison
    from shepherd.ui.terminal.running import plain_lines
    from shepherd.ui.terminal.train import train_arm

    settings = _settings(base, overrides)
    output = Path(settings.output)
    own = [each for each in overrides if not each.startswith("output=")]
    chat = ("--chat",) if chats else ()
    again = shlex.join(("shepherd", "demo", "--base", base, *chat, *own, f"output={output}"))
    try:
        with plain_lines():
            found = compare(settings, CompareSpec(locals=LOCALS), train=train_arm)
            print_comparison(found)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; what is finished is kept, continue with: {again}") from None
    name = shlex.quote(str(output))
    echo(f"\nwrote {report.write(output)}")
    later = ", also after you have closed it here" if chats else ""
    echo(f"ask all arms side by side{later}: shepherd chat {name} --open")
    if chats:
        from shepherd.ui.chat.page import launch

        launch(output, show=True, echo=echo)


def _settings(base: str, overrides: tuple[str, ...]) -> RunSettings:
    """The run file of a demo, with its base, and an output that is free unless an override names one."""
    from shepherd.demo.packaged_base import SMOLLM2, obtained
    from shepherd.overrides import read

    own = [] if base == "tiny" else [f"model.base={json.dumps(str(obtained(SMOLLM2, echo)))}"]
    with resources.as_file(resources.files("shepherd.demo") / f"{base}.toml") as file:
        settings = read(file, (*own, *overrides))
    if any(each.startswith("output=") for each in overrides):
        return settings
    first = Path(settings.output)
    free = next(place for n in count(1) if not (place := first if n == 1 else Path(f"{first}-{n}")).exists())
    return settings.model_copy(update={"output": str(free)})
