"""Prompts and responses of a chat, as a tokenizer's chat template writes them.

An answer is never searched for by its text. A chat is rendered with the answer and again with a placeholder:
what follows the placeholder follows the answer. The answer begins where its prompt ends, so that prompt must
be how the answered chat begins, or training and generation would disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Any

from shepherd.data.examples import Turn
from shepherd.data.template_pieces import Piece, Template, Tokenizer, added_tokens, special_tokens
from shepherd.errors import TemplateError
from shepherd.settings import NOT_OPTIONS

SYSTEM, USER, ANSWER, LATER = "qzxsystemxzq", "qzxuserxzq", "qzxanswerxzq", "qzxlaterxzq"
"""Placeholders for texts: words that no template changes and nobody writes."""
TRIAL = (Turn(role="user", text=USER), Turn(role="assistant", text=ANSWER), Turn(role="user", text=LATER))
TRIAL_SYSTEM = Turn(role="system", text=SYSTEM)
PARTS = [
    frozenset(roles) for size in range(4) for roles in combinations(("user", "assistant", "system"), size)
]
"""Sets of roles whose texts a template may need as lists of parts, the smallest first."""
CODES = re.compile(r"%[-_0^#:EO]*[A-Za-z%]")
PERCENT = "\ue000"
"""Placeholder for a per cent sign while date codes are being replaced."""
SYSTEM_TEXT = "the system text"
SWITCHES = ("enable_thinking", "thinking")
"""Names that chat templates use for the variable that turns thinking on and off."""
_NAME = r"[\w:.-]*(?:think|thought|reason)[\w:.-]*"
_OWN = (
    rf"\s*(?:<({_NAME})>\s*</\1>|\[({_NAME})\]\s*\[/\2\]|</{_NAME}>|\[/{_NAME}\]|<\|(\w+)>\w*\s*<\3\|>)?\s*"
)
CLOSED = re.compile(_OWN, re.IGNORECASE)
"""What may come between a header and an answer: white space, and a closed thought."""
OPENED = re.compile(rf"<{_NAME}>|\[{_NAME}\]", re.IGNORECASE)
CHANNEL = re.compile(r"\s*(<\|\w+\|>)\w+<\|\w+\|>\s*")
"""What GPT-OSS writes before an answer: tokens around a channel's name."""
THOUGHT = re.compile(rf"(<({_NAME})>|\[({_NAME})\])(.*?)(</\2>|\[/\3\])(.*)", re.IGNORECASE | re.DOTALL)


class Refusal(Exception):
    """A chat that cannot be rendered for training: the reason, and how to fix it."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}; {fix}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A tokenizer's chat template with a run file's settings, and what trial chats showed of it.

    Of a rendered trial chat, `ends` is the tokens right after the last response, `before_user` the text
    before the first user's, `after_user` the text from there to the answer, and `written` the added tokens.
    Texts of the roles in `as_parts` are given as lists of parts.
    """

    template: Template
    tokenizer: Tokenizer
    source: str
    eos: str
    ids: Mapping[str, int]
    as_parts: frozenset[str] = frozenset()
    ends: tuple[str, ...] = ()
    before_user: str = ""
    after_user: str = ""
    written: frozenset[str] = frozenset()

    @property
    def barred(self) -> set[str]:
        """Tokens that no text of a chat may hold, since they would be read as the template's own."""
        return special_tokens(self.tokenizer) | {*self.ends, self.eos}

    @property
    def barred_of_prompts(self) -> set[str]:
        """Tokens that no prompt may hold: `barred`, and those of turns' headers, marked special or not.

        Thinking tags and tokens that are words are not among them.
        """
        return self.barred | self.written

    @property
    def stops(self) -> set[int]:
        """Ids that end an answer: EOS, and the first token that the template writes after an answer."""
        return {self.ids[token] for token in (self.eos, *self.ends[:1])}

    def write(self, turns: Sequence[Turn], *, to_answer: bool) -> str:
        """Render a chat to text; with `to_answer`, as the prompt for an answer to it.

        Raises:
            Refusal: the template refuses the chat, or has a fault.
        """
        messages = [{"role": turn.role, "content": self._content(turn)} for turn in turns]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=to_answer,
                    **self.template.options,
                )
            )
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".").replace('"', "'")
            if type(error).__name__ == "TemplateError":  # jinja's own, which templates raise themselves
                raise Refusal(
                    f'the chat template refuses this chat: "{reason}"',
                    "change its turns, or set another data.template",
                ) from error
            raise Refusal(
                f'the chat template has a fault: "{reason}"', "correct it, or set another data.template"
            ) from error

    def _content(self, turn: Turn) -> Any:
        text = f"{turn.text}\n\n{turn.context}" if turn.context else turn.text
        return [{"type": "text", "text": text}] if turn.role in self.as_parts else text

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """Pieces of a chat: prompt, response, and so on; the last is a prompt if the user's turn is last.

        Raises:
            Refusal: the template refuses this chat, or leaves out or rewrites a text of it.
        """
        answered = turns[-1].role == "assistant"
        answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
        # up to each answer, and the whole
        parts = [turns[:place] for place in (*answers, len(turns))]
        texts = [self.write(part, to_answer=not answered or part is not parts[-1]) for part in parts]
        found: list[Piece] = []
        at = start = 0
        for number, (before, after) in enumerate(pairwise(texts), 1):
            place, last = answers[number - 1], answered and number == len(answers)
            marked, words = _with_placeholders(parts[number], start, place)
            head, answer, rest = self.write(marked, to_answer=not last).partition(ANSWER)
            for word, (said, called) in reversed(words.items()):
                # the system text may be left out of a chat that is answered; `_require_prompt` says so
                if said not in before or (word not in head and called != SYSTEM_TEXT):
                    raise _rewritten(called)
                rest = rest.replace(word, said)
            if not answer:
                raise _rewritten(f"response {number}")
            response, ends = self._response(parts[number], place, before, after, rest, number, last)
            _require_texts(before, head, words)
            found.append(self._prompt(before[at:], turns[place - 1], first=at == 0))
            end = tuple(self.ids[token] for token in ends)
            found.append(Piece(text=response, end=end, trained=turns[place].trained))
            at, start = len(before) + len(response) + len("".join(ends)), place + 1
        if not answered:
            marked, words = _with_placeholders(turns, start, len(turns))
            _require_texts(texts[-1], self.write(marked, to_answer=True), words)
            found.append(self._prompt(texts[-1][at:], turns[-1], first=at == 0))
        return found

    def _prompt(self, text: str, user: Turn, *, first: bool) -> Piece:
        # what is cut to fit has to be the user's and no part of a header
        inside, context = text.removesuffix(self.after_user).rstrip(), user.context.strip()
        found = context and text.endswith(self.after_user) and inside.endswith(context)
        return Piece(
            text=text, first=first, context=(len(inside) - len(context), len(inside)) if found else (0, 0)
        )

    def _response(
        self,
        turns: Sequence[Turn],
        place: int,
        before: str,
        after: str,
        rest: str,
        number: int,
        last: bool,
    ) -> tuple[str, tuple[str, ...]]:
        """The text of a response as the template writes it, and the tokens that end it.

        Args:
            before: the prompt for the answer.
            after: the text that holds the answer: the prompt for the next one, or the whole chat.
            rest: what follows the answer in `after`.
        """
        answer = turns[place].text.strip()
        if ANSWER in rest:
            raise Refusal(
                f"the chat template writes response {number} more than once", "set another data.template"
            )
        if not after.endswith(rest):
            raise _rewritten(f"response {number}")
        written = after.removesuffix(rest)
        if written.startswith(before):
            response = written[len(before) :]
        else:
            common = _whole_tags(_common_prefix(before, written))
            if last and f"{common}{answer}".startswith(before):  # it begins with the thought that is opened
                return f"{common}{answer}"[len(before) :], self._end(rest)[1]
            self._require_prompt(turns, before, common, number, last)
            response = written[len(common) :]
        header = before[len(before) - len(self.after_user) :]
        begins = _start_of_answer(header + response, answer)  # a thought may begin in the prompt
        if begins < 0:
            raise _rewritten(f"response {number}")
        lead = (header + response)[len(header) : begins]
        if not self.may_lead(lead):
            none = before == self.write(turns[:place], to_answer=False)
            why = "it writes no generation prompt" if none else "its generation prompt does not write it"
            raise Refusal(
                f"the chat template writes {lead!r} before response {number}, which would be trained; {why}",
                "set another data.template",
            )
        space, ends = self._end(rest)
        return response + space, ends

    def may_lead(self, text: str) -> bool:
        """Whether a response may begin with `text`, which the template writes before the answer.

        It may be white space, a closed thought, or a channel, but no end of turn and no header of a turn.
        """
        if any(token in text for token in {*self.ends, self.eos}):
            return False
        channel = CHANNEL.fullmatch(text)
        named = channel is not None and channel[1] not in self.before_user + self.after_user
        return named or CLOSED.fullmatch(text) is not None

    def _end(self, rest: str) -> tuple[str, tuple[str, ...]]:
        """The white space and the end-of-turn tokens at the start of the text after a response."""
        close = rest.lstrip()
        for ends in (self.ends, (self.eos,)):
            if ends and close.startswith("".join(ends)):
                return rest[: len(rest) - len(close)], ends
        return "", ()

    def _require_prompt(
        self, turns: Sequence[Turn], before: str, common: str, number: int, last: bool
    ) -> None:
        """Raise Refusal unless the last answer may follow a prompt with which the chat does not begin.

        It may where only the prompt has an opened and closed thought, which the model gets as input, too.
        """
        opened = before[len(common) :]
        if turns[0].role == "system" and turns[0].text.strip() not in common:
            raise Refusal(
                "the chat template drops the system text once a turn is answered",
                "take the system turn out, or data.system",
            )
        if not last:
            raise Refusal(
                f"the chat template asks for response {number} by {opened!r}, and leaves that out once later"
                " turns follow",
                f"{self._switch(turns)}use one exchange an example",
            )
        if len(opened) > len(self.after_user) or any(end in opened for end in (*self.ends, self.eos)):
            raise Refusal(
                f"the chat template ends the prompt for response {number} by {opened!r}, and writes that user"
                " turn otherwise once it is answered",
                f"{self._switch(turns)}set another data.template",
            )
        if not CLOSED.fullmatch(opened):
            raise Refusal(
                f"the chat template asks for response {number} by {opened!r}, and leaves that out once it is"
                " answered",
                f"{self._switch(turns)}begin each response with that text, or set another data.template",
            )

    def _switch(self, turns: Sequence[Turn]) -> str:
        """The template option that makes this chat usable, as the start of a fix; "" where there is none."""
        for name in SWITCHES:
            if name in self.template.options or name not in read_names(self.source):
                continue
            for value in (False, True):
                options = {**self.template.options, name: value}
                with suppress(Refusal, TemplateError):
                    chat_template(replace(self.template, options=options), self.tokenizer).pieces(turns)
                    return f"set data.template_options.{name} = {str(value).lower()}, "
        return ""

    def preface(self) -> str:
        """Text that it writes before a chat without a system turn, without its tokens; "" for none."""
        head, found, _ = self.write(TRIAL[:1], to_answer=True).partition(USER)
        if not found:
            return ""
        first = self._without_tokens(head)
        try:
            later = self.write(TRIAL, to_answer=True).partition(ANSWER)[2].partition(LATER)[0]
        except Refusal:
            return first.strip()
        shared = _common_prefix(first[::-1], self._without_tokens(later)[::-1])  # a turn's header
        return first[: len(first) - len(shared)].strip()

    def _without_tokens(self, text: str) -> str:
        for token in sorted(self.ids, key=len, reverse=True):
            text = text.replace(token, " ") if token.strip() else text
        return text

    def prints_date(self) -> bool:
        """Whether it prints today's date, so that a chat's text changes from day to day."""
        return "strftime_now" in read_names(self.tokenizer.get_chat_template())

    def leads(self) -> str:
        """Text before the answer of a trial chat that is trained as its beginning; "" for white space."""
        asked, answered = (self.template.with_system(TRIAL[:count]) for count in (1, 2))
        before = self.write(asked, to_answer=True)
        head = self.write(answered, to_answer=False).partition(ANSWER)[0]
        return head.removeprefix(before).strip() if head.startswith(before) else ""

    def ends_earlier(self) -> bool:
        """Whether it writes EOS after an earlier answer."""
        return _write_or_empty(self, TRIAL).partition(ANSWER)[2].lstrip().startswith(self.eos)


def chat_template(template: Template, tokenizer: Tokenizer) -> ChatTemplate:
    """The tokenizer's chat template under the options of `template`; examined by trial chats once.

    Raises:
        TemplateError: the tokenizer has none, it reads no such option, or it refuses a chat of one exchange.
    """
    if not tokenizer.chat_template:
        raise TemplateError('the tokenizer has no chat template; set data.template = "alpaca" or another')
    source = tokenizer.get_chat_template()
    read = read_names(source)
    for name in template.options:
        if name in NOT_OPTIONS:
            raise TemplateError(
                f"data.template_options cannot set {name}, which Shepherd sets for each chat; remove it"
            )
        if name not in read:
            raise TemplateError(
                f"the chat template has no option {name}; remove it from data.template_options"
            )
    try:
        return _examined(template, tokenizer, source, tokenizer.eos_token_id, len(tokenizer))
    except Refusal as refusal:
        system = "" if template.system is None else " with the system prompt of data.system"
        raise TemplateError(f"a trial chat{system}: {refusal}") from refusal


@lru_cache(maxsize=16)
def _examined(template: Template, tokenizer: Tokenizer, source: str, eos: int, size: int) -> ChatTemplate:
    """The chat template with what trial chats show; `eos` and `size` are keys of the cache only."""
    ids = added_tokens(tokenizer)
    end = next((text for text, number in ids.items() if number == eos), tokenizer.decode([eos]))
    bare = ChatTemplate(template, tokenizer, _dated(source, template.date), end, {**ids, end: eos})
    asked, answered = template.with_system(TRIAL[:1]), template.with_system(TRIAL[:2])
    chat = replace(
        bare, as_parts=max(PARTS, key=lambda roles: _count_written_texts(replace(bare, as_parts=roles)))
    )
    after = chat.write(answered, to_answer=False).partition(ANSWER)[2]
    before_user, _, after_user = chat.write(asked, to_answer=True).rpartition(USER)
    trials = (answered, TRIAL, (TRIAL_SYSTEM, *TRIAL))
    shown = "".join(_write_or_empty(chat, trial) for trial in trials)
    return replace(
        chat,
        ends=_tokens_at_start(after.lstrip(), ids, end),
        before_user=before_user,
        after_user=after_user if USER in chat.write(asked, to_answer=True) else "",
        written=frozenset(token for token in ids if _is_markup(token) and token in shown),
    )


def _is_markup(token: str) -> bool:
    return not (not token.strip() or token.isalnum() or CLOSED.fullmatch(token) or OPENED.fullmatch(token))


def _count_written_texts(chat: ChatTemplate) -> int:
    """Number of texts of a trial chat that the template writes."""
    text = _write_or_empty(chat, (TRIAL_SYSTEM, *TRIAL)) or _write_or_empty(
        chat, chat.template.with_system(TRIAL)
    )
    return sum(word in text for word in (SYSTEM, USER, ANSWER))


def _write_or_empty(chat: ChatTemplate, turns: Sequence[Turn]) -> str:
    """The text of a chat; "" where the template refuses it."""
    with suppress(Refusal):
        return chat.write(turns, to_answer=True)
    return ""


def _tokens_at_start(text: str, ids: Mapping[str, int], eos: str) -> tuple[str, ...]:
    """Added tokens with which a text begins, up to and including EOS."""
    found: list[str] = []
    while eos not in found:
        token = max((token for token in ids if token.strip() and text.startswith(token)), key=len, default="")
        if not token:
            break
        found.append(token)
        text = text[len(token) :]
    return tuple(found)


def _dated(source: str, day: str) -> str:
    """The template with `day` in place of the machine's date, which transformers gives it."""
    if not day or "strftime_now" not in source:
        return source
    when = datetime.combine(date.fromisoformat(day), time())
    said = "".join(
        f"|replace({code!r}, {when.strftime(code).replace('%', PERCENT)!r})"
        for code in ("%%", *sorted(set(CODES.findall(source)) - {"%%"}))
    )
    # no block may come right before the template: jinja would take a line break after it away
    return (
        f"{{%- macro strftime_now(format) %}}{{{{ format{said}|replace({PERCENT!r}, '%') }}}}"
        f"{{%- endmacro %}}{{{{ '' }}}}{source}"
    )


@lru_cache(maxsize=16)
def read_names(source: str) -> frozenset[str]:
    """Names of the variables that a chat template expects to be given.

    Raises:
        TemplateError: `source` is not a Jinja template.
    """
    import jinja2
    import jinja2.meta

    # transformers' own block, around what is the assistant's
    plain = re.sub(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}", _filter_block, source)
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
        return frozenset(jinja2.meta.find_undeclared_variables(tree))
    except jinja2.TemplateError as error:
        raise TemplateError(
            f"the chat template cannot be read: {error}; correct it, or set another data.template"
        ) from error


def _filter_block(found: re.Match[str]) -> str:
    start, end, stop = found.groups()
    return f"{{%{start} {'endif' if end else 'if true'} {stop}%}}"


def _rewritten(what: str) -> Refusal:
    return Refusal(
        f"the chat template leaves out or rewrites {what}",
        "use a template that keeps it, or remove what the template does not keep (a thought, a turn)",
    )


def _common_prefix(one: str, other: str) -> str:
    """Longest common prefix of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))]


def _whole_tags(text: str) -> str:
    """The text without an unfinished tag at its end.

    >>> _whole_tags("<think>\\n<"), _whole_tags("<think>")
    ('<think>\\n', '<think>')
    """
    return text[: text.rindex("<")] if text.rfind("<") > text.rfind(">") else text


def _with_placeholders(
    turns: Sequence[Turn], start: int, stop: int
) -> tuple[list[Turn], dict[str, tuple[str, str]]]:
    """The turns with placeholders for the texts from `start` to `stop`, and for an answer at `stop`.

    Returns:
        The turns; and by placeholder, the text that it replaces, and what messages call that text.
    """
    marked, words = list(turns), dict[str, tuple[str, str]]()
    users = sum(turn.role == "user" for turn in turns[:start])
    for place in range(start, stop):
        turn = turns[place]
        users += turn.role == "user"
        called = SYSTEM_TEXT if turn.role == "system" else f"the text of user turn {users}"
        given = {"text": turn.text, "context": turn.context}
        chosen = {name: f"qzx{name}{place}xzq" if text.strip() else text for name, text in given.items()}
        words |= {word: (given[name].strip(), called) for name, word in chosen.items() if word.strip()}
        marked[place] = replace(turn, text=chosen["text"], context=chosen["context"])
    if stop < len(turns):
        marked[stop] = replace(turns[stop], text=ANSWER)
    return marked, words


def _require_texts(before: str, marked: str, words: Mapping[str, tuple[str, str]]) -> None:
    """Raise Refusal unless `before` has each text where `marked` has its placeholder, but for white space."""
    if not words:
        return
    *pieces, _ = re.split(f"({'|'.join(words)})", marked)
    lost = [called for word, (_, called) in words.items() if word not in pieces]
    if lost:
        raise _rewritten(lost[0])
    at = 0
    for literal, word in zip(pieces[::2], pieces[1::2], strict=True):
        text, called = words[word]
        for piece in (literal.strip(), text):
            at = _after_space(before, at)
            if not before.startswith(piece, at):
                raise _rewritten(called)
            at += len(piece)


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _start_of_answer(said: str, answer: str) -> int:
    """Index at which `said` ends with the answer, up to white space around its thought; -1 for none.

    >>> _start_of_answer("ab", "b"), _start_of_answer("ab", "a b")
    (1, -1)
    >>> _start_of_answer("a <think>t</think>b", "<think>\\nt\\n</think>\\n\\nb")
    2
    """
    if said.rstrip().endswith(answer):
        return len(said.rstrip()) - len(answer)
    thought = THOUGHT.fullmatch(answer)
    at = len(said)
    for piece in (thought[6], thought[5], thought[4], thought[1]) if thought else (answer,):
        at = len(said[:at].rstrip())
        if not said.endswith(piece.strip(), 0, at):
            return -1
        at -= len(piece.strip())
    return at
