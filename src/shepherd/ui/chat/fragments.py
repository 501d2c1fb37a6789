"""Pieces of the chat page as HTML and JavaScript; every text of others is escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from shepherd.errors import ShepherdError
from shepherd.io.paths import short
from shepherd.ui.chat import votes
from shepherd.ui.chat.answering import Chat
from shepherd.ui.chat.markdown import as_html
from shepherd.visible import shown

GOING, WRONG = "going", "wrong"
"""CSS classes of the status line while answers grow, and after a fault."""
Asked = tuple[str, str, Mapping[str, str], int]
"""A question of a session: instruction, context, each arm's answer, and the seed that the arms were trained
with."""


def blind_head(name: str, arm: str = "") -> str:
    return f"<h3>Answer {name}{f': {plain(arm)}' if arm else ''}</h3>"


def notice(folder: Path) -> str:
    """What a vote saves and where, to be read before the first one."""
    return (
        f"<p>A vote is saved in {plain(f'{folder.parent.name}/{folder.name}')} on the machine that serves"
        " this page: the question, both answers and which was better, as data to train on. Ask nothing that"
        " must not be kept.</p>"
    )


def standings(path: Path) -> str:
    """The votes of a run by pair of arms, as HTML."""
    try:
        found = [str(each) for each in votes.standings(path)]
    except ShepherdError as error:
        found = [str(error)]
    lines = "".join(f"<li>{plain(each)}</li>" for each in found)
    return f"<p>Votes so far:</p><ul>{lines}</ul>" if found else "<p>No votes yet.</p>"


def head(chat: Chat) -> str:
    name, base = plain(short(chat.settings.output)), plain(short(chat.settings.model.base))
    return (
        f'<p class="eyebrow">Shepherd chat</p><h1 dir="auto">{name}</h1>'
        f"<p>Ask once, and its arms answer side by side, on base {base}.</p>"
    )


def status_line(text: str, kind: str = "") -> str:
    return f'<p role="{"alert" if kind == WRONG else "status"}" class="{kind}">{plain(text)}</p>'


def waiting_script() -> str:
    """JavaScript for the click: show that the question waits, and enable Stop only."""
    waiting = json.dumps(status_line("Waiting for an answer …", GOING))
    return f"() => [{waiting}, {button_updates(False, True, False)}]"


def ended_script(status: str) -> str:
    """JavaScript for the end of a question: show `status` if the answers did not end by themselves."""
    mark, ended = json.dumps(f'class="{GOING}"'), json.dumps(status_line(status))
    return f"now => [now.includes({mark}) ? {ended} : now, {button_updates(True, False, True)}]"


def button_updates(*buttons: bool) -> str:
    return ", ".join(json.dumps({"__type__": "update", "interactive": each}) for each in buttons)


def answer_text(text: str, show: Callable[[str], str] | None = None, ended: bool = False) -> str:
    if ended and not text:
        return '<p class="nothing"></p>'
    if show is as_html and text:
        return f'<div class="md">{as_html(text)}</div>'
    return f"<p>{plain(text)}</p>"


def history(kept: Sequence[Asked]) -> str:
    """The earlier questions of a session as HTML, the last one first, each with its answers."""
    if not kept:
        return "<p>None yet.</p>"
    return "".join(
        f"<h3>{plain(instruction)}</h3>{f'<p>{plain(context)}</p>' if context else ''}<dl>"
        + "".join(f"<dt>{plain(arm)}</dt><dd>{plain(text)}</dd>" for arm, text in texts.items())
        + "</dl>"
        for instruction, context, texts, _ in reversed(kept)
    )


def copy_script(ident: str) -> str:
    """JavaScript that copies the text of an element."""
    return (
        f"() => {{ navigator.clipboard.writeText(document.getElementById({json.dumps(ident)}).innerText); }}"
    )


def plain(text: str) -> str:
    """A text of others as HTML without markup."""
    return escape(shown(text))
