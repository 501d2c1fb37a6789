"""A run's template in other languages writes what the run trained on."""

from __future__ import annotations

import re
from typing import Any

import pytest
from benchmarks.chat_families import FAMILIES, Family
from benchmarks.templates import tokenizer

from shepherd.data import foreign_templates
from shepherd.data.examples import Turn
from shepherd.data.template import Template, prompt
from shepherd.errors import TemplateError
from tests.data.kinds import made

SYSTEM = Turn(role="system", text="Be brief. {{ braces }}")
CHAT = [
    Turn(role="user", text="Name two rivers."),
    Turn(role="assistant", text="Rhine, Elbe."),
    Turn(role="user", text="Why \u00fc?"),
]
CHATS = (CHAT[:1], CHAT, [SYSTEM, *CHAT[:1]], [SYSTEM, *CHAT])
NAMES = ("alpaca", "alpaca-short", "vicuna", "plain")


def go(template: str, turns: list[Turn]) -> str:
    """What Go's text/template makes of the few actions that a Modelfile's template has here."""
    tokens = re.split(r"(\{\{.*?\}\})", template)
    system = "\n\n".join(turn.text for turn in turns if turn.role == "system")

    def block(at: int, scope: dict[str, Any], live: bool) -> tuple[str, int]:
        out: list[str] = []
        while at < len(tokens):
            action = tokens[at][2:-2].strip() if at % 2 else None
            if action is None:
                out.append(tokens[at] * live)
            elif action in ("end",) or action.startswith("else"):
                return "".join(out), at
            elif action.startswith("$last :="):
                scope["last"] = scope["i"] == len(turns) - 1
            elif action == '"{{"':
                out.append("{{" * live)
            elif action == ".Content":
                out.append(scope["turn"].text * live)
            elif action.startswith("range"):
                start = at
                for i, turn in enumerate(turns):
                    text, at = block(start + 1, {"i": i, "turn": turn}, live)
                    out.append(text)
            else:
                text, at = choose(action.removeprefix("if "), at, scope, live)
                out.append(text)
            at += 1
        return "".join(out), at

    def choose(condition: str, at: int, scope: dict[str, Any], live: bool) -> tuple[str, int]:
        out, done = "", False
        while True:
            holds = {
                "not .System": not system,
                "$last": scope.get("last"),
                "not $last": not scope.get("last"),
                "": True,
            }.get(condition)
            if condition.startswith("eq .Role"):
                holds = scope["turn"].role == condition.split('"')[1]
            assert holds is not None, condition
            text, at = block(at + 1, scope, live and bool(holds) and not done)
            out, done = out + text, done or bool(holds)
            action = tokens[at][2:-2].strip()
            if action == "end":
                return out, at
            condition = action.removeprefix("else").removeprefix(" if ").strip()

    return block(0, {}, True)[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("system", [None, "Speak up.", ""])
def test_jinja_writes_the_prompts_of_the_run(name: Any, system: str | None) -> None:
    tokens, template = made(), Template(name, system=system)
    source = foreign_templates.jinja(template, tokens)
    for chat in CHATS:
        messages = [{"role": turn.role, "content": turn.text} for turn in chat]
        text = tokens.apply_chat_template(
            messages, chat_template=source, tokenize=False, add_generation_prompt=True
        )
        assert text == foreign_templates._prompt(template, tokens, chat)
        if len(chat) < 3:
            assert tokens(text).input_ids == prompt(chat, template, tokens)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("system", [None, "Speak up."])
def test_go_writes_the_prompts_of_the_run(name: Any, system: str | None) -> None:
    tokens, template = made(), Template(name, system=system)
    source = foreign_templates.ollama(foreign_templates.turn_texts(template, tokens))
    for chat in CHATS:
        assert go(source, chat) == foreign_templates._prompt(template, tokens, chat)


OTHERWISE = {"Gemma 2", "Mistral v1", "Mistral v3", "Mistral tekken"}
"""Families that write a turn otherwise where other turns differ, or know no system turn."""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_familys_template_is_the_same_in_go_or_refused(family: Family) -> None:
    template, tokens = Template("chat", options=dict(family.options)), tokenizer(family, "bytes")
    if family.name in OTHERWISE:
        with pytest.raises(TemplateError, match="--to gguf"):
            foreign_templates.turn_texts(template, tokens)
        return
    source = foreign_templates.ollama(foreign_templates.turn_texts(template, tokens))
    for chat in CHATS:
        assert go(source, chat) == foreign_templates._prompt(template, tokens, chat)
    assert foreign_templates.jinja(template, tokens) == tokens.chat_template
