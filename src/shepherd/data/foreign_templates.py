"""A run's prompt template in the languages of other programs: Jinja, and the Go templates of Ollama."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from shepherd.data.chat_template import Refusal, chat_template
from shepherd.data.encode import leading_ids
from shepherd.data.examples import Turn
from shepherd.data.template_pieces import STYLES, Template, Tokenizer, styled
from shepherd.errors import TemplateError

SYSTEM, FIRST, ANSWER, LATER = "qSYSTEMq", "qFIRSTq", "qANSWERq", "qLATERq"
"""Texts of trial chats."""


def jinja(template: Template, tokenizer: Tokenizer) -> str:
    """The template as a Jinja chat template, as `apply_chat_template` and llama.cpp read it.

    Contexts are part of the user's text there. A BOS is left to the tokenizer, except in the base's own.

    Raises:
        TemplateError: the run uses the base's chat template, and it has none or refuses a usual chat.
    """
    if template.name == "chat":
        return chat_template(template, tokenizer).source
    style = STYLES[template.name]
    system = style.system if template.system is None else template.system
    lead, between, before, after, space = (
        json.dumps(text, ensure_ascii=False)
        for text in (
            system + style.gap if system else "",
            style.between,
            style.user,
            style.answer,
            style.space,
        )
    )
    gap = json.dumps(style.gap, ensure_ascii=False)
    return (
        "{%- if messages[0]['role'] == 'system' -%}{%- set rest = messages[1:] -%}"
        f"{{{{- messages[0]['content'] + {gap} if messages[0]['content'] else '' -}}}}"
        f"{{%- else -%}}{{%- set rest = messages -%}}{{{{- {lead} -}}}}{{%- endif -%}}"
        "{%- for message in rest -%}{%- if message['role'] == 'user' -%}"
        f"{{%- if not loop.first -%}}{{{{- {between} -}}}}{{%- endif -%}}"
        f"{{{{- {before} + message['content'] + {after} -}}}}"
        f"{{%- else -%}}{{{{- {space} + message['content'] + eos_token -}}}}{{%- endif -%}}{{%- endfor -%}}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTexts:
    """What a template writes around each turn, where it writes each turn by itself."""

    without_system: str
    """Before a chat that has no system turn."""
    before_system: str
    after_system: str
    before_user: str
    after_user: str
    """After a user's turn that is answered already."""
    after_last_user: str
    after_answer: str

    def text(self, turns: Sequence[Turn]) -> str:
        """The prompt for an answer to a chat."""
        parts = [] if turns[0].role == "system" else [self.without_system]
        for place, turn in enumerate(turns):
            match turn.role:
                case "system":
                    parts += [self.before_system, turn.text, self.after_system]
                case "user":
                    last = place == len(turns) - 1
                    parts += [self.before_user, turn.text, self.after_last_user if last else self.after_user]
                case _:
                    parts += [turn.text, self.after_answer]
        return "".join(parts)


def turn_texts(template: Template, tokenizer: Tokenizer) -> TurnTexts:
    """What the template writes around each turn, without the BOS that the tokenizer adds; by trial chats.

    Raises:
        TemplateError: the texts around a turn depend on other turns, or the template refuses a usual chat.
    """
    system, first, answer, later = _turns(SYSTEM, FIRST, ANSWER, LATER)
    before_system, _, rest = _prompt(template, tokenizer, [system, first, answer, later]).partition(SYSTEM)
    to_first, _, rest = rest.partition(FIRST)
    after_user, _, rest = rest.partition(ANSWER)
    to_later, _, after_last_user = rest.partition(LATER)
    without = _prompt(template, tokenizer, [first]).partition(FIRST)[0]
    before_user = _common_end(without, _common_end(to_first, to_later))
    found = TurnTexts(
        without_system=without.removesuffix(before_user),
        before_system=before_system,
        after_system=to_first.removesuffix(before_user),
        before_user=before_user,
        after_user=after_user,
        after_last_user=after_last_user,
        after_answer=to_later.removesuffix(before_user),
    )
    talk = _turns("How so?", "Name two rivers.", "Rhine, Elbe.", "Two more!")
    more = [*talk[1:], Turn(role="assistant", text="Oder, Po."), Turn(role="user", text="Thanks. Why?")]
    for chat in (talk[1:2], talk[:2], talk[1:], talk, more, [talk[0], *more]):
        if _prompt(template, tokenizer, chat) != found.text(chat):
            raise TemplateError(
                f'the template "{template.name}" writes a turn otherwise where other turns differ, which'
                " Ollama's templates do not say; export --to gguf, and serve it with llama-server, which"
                " reads the chat template itself"
            )
    return found


def ollama(texts: TurnTexts) -> str:
    """The Go template of an Ollama Modelfile that writes these texts.

    In it, `.System` is the system text and `.Messages` holds all turns, also a system's.
    """
    last = "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    return (
        f"{{{{ if not .System }}}}{_go(texts.without_system)}{{{{ end }}}}"
        f"{{{{ range $i, $_ := .Messages }}}}{last}"
        f'{{{{ if eq .Role "system" }}}}{_go(texts.before_system)}{{{{ .Content }}}}{_go(texts.after_system)}'
        f'{{{{ else if eq .Role "user" }}}}{_go(texts.before_user)}{{{{ .Content }}}}'
        f"{{{{ if $last }}}}{_go(texts.after_last_user)}{{{{ else }}}}{_go(texts.after_user)}{{{{ end }}}}"
        '{{ else if eq .Role "assistant" }}{{ .Content }}'
        f"{{{{ if not $last }}}}{_go(texts.after_answer)}{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}"
    )


def _go(text: str) -> str:
    """A text in a Go template, where two braces begin an action."""
    return text.replace("{{", '{{ "{{" }}')


def _prompt(template: Template, tokenizer: Tokenizer, turns: Sequence[Turn]) -> str:
    """The prompt for an answer to a chat, without the BOS that the tokenizer adds."""
    turns = template.with_system(turns)
    if template.name == "chat":
        try:
            text = chat_template(template, tokenizer).write(turns, to_answer=True)
        except Refusal as error:
            raise TemplateError(f"{error}; export --to gguf") from error
    else:
        eos = str(tokenizer.decode([tokenizer.eos_token_id]))
        text = "".join(piece.text + eos * len(piece.end) for piece in styled(turns, template.name, 0))
    return text.removeprefix(str(tokenizer.decode(leading_ids(tokenizer))))


def _turns(system: str, *texts: str) -> list[Turn]:
    roles = ("user", "assistant", "user")
    return [
        Turn(role="system", text=system),
        *(Turn(role=role, text=text) for role, text in zip(roles, texts, strict=True)),  # type: ignore[arg-type]
    ]


def _common_end(one: str, other: str) -> str:
    """The longest text with which both end."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]
