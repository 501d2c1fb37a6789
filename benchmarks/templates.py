"""Chat templates of known conventions against one rendering of the whole chat, over chats hard to mask.

    python -m benchmarks.templates
    python -m benchmarks.templates --json templates.json

What must be trained is marked in each template itself (benchmarks/chat_families.py), so the whole chat is
rendered once, tokenised once, and a token is trained if it lies between the marks; nothing of that is the
project's. Chats that a template cannot say must be refused, for the right reason.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks.chat_families import FAMILIES, Family
from benchmarks.common import Figures, Table, parser, run
from shepherd.data.examples import Example, Turn
from shepherd.data.template import Dropped, Rendered, Template, prompt, render, stop_ids
from shepherd.errors import TemplateError

DAY = "2026-11-28"
OPEN, CLOSE = "\ue000", "\ue001"
KINDS = ("bytes", "merges", "metaspace", "spaces")
"""A token a byte; byte-level merges; SentencePiece with a space in front of a text, and of each piece of it
between special tokens, as Llama 2's has it."""
TEXT = "Name a bird. A heron. And one more? The answer is\n\n in the text: </think> you are an assistant. "
THOUGHT = "<think>\nShort.\n</think>\n\n{}"
CONTEXT = "Herons wade.\n\nThey eat fish."
CHATS: dict[str, tuple[str, ...]] = {
    "one exchange": ("Name a bird.", "A heron."),
    "system": ("Name a bird.", "A heron."),
    "three exchanges": ("Name a bird.", "A heron.", "And one more?", "A gull.", "A third?", "An owl."),
    "thought": ("Name a bird.", THOUGHT.format("A heron.")),
    "Unicode and CRLF": ("Vögel?\r\nЖ 鳥 👩‍🔬", "é\r\n雨\u2028 naïve 👩‍🔬"),
    "spaces": ("  Name a bird.  ", "  A heron.  "),
    "context": ("Which bird?", "A heron."),
    "code": ("Write code.", "```python\ndef f(x):\n    return {'x': x}  # {{ x }} {% if %}\n```\n<b>\tend"),
    "same answer": ("A?", "Yes.", "B?", "Yes.", "Yes.", "Yes."),
    "I": ("Who?", "I"),
    "k": ("A letter?", "k"),
    "line breaks": ("Name a bird.", "\n\nA heron."),
    "three thoughts": ("A?", THOUGHT.format("B."), "C?", THOUGHT.format("D."), "E?", THOUGHT.format("F.")),
    "a user's </think>": ("What is </think> for?", "It ends a thought."),
}
RIGHT = ("identical", "kept apart", "later ids")
COLUMNS = (*RIGHT, "refused", "wrong")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one chat; `why` is the reason of a refusal, or what is wrong."""

    verdict: str
    why: str = ""


def turns_of(name: str) -> tuple[Turn, ...]:
    """The turns of a chat."""
    roles = ("user", "assistant")
    spoken = [Turn(role=roles[n % 2], text=text) for n, text in enumerate(CHATS[name])]  # type: ignore[arg-type]
    if name == "context":
        spoken[0] = Turn(role="user", text=spoken[0].text, context=CONTEXT)
    return (*([Turn(role="system", text="Be brief.")] if name == "system" else []), *spoken)


def tokenizer(family: Family, kind: str) -> Any:
    """A tokenizer with the family's tokens."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_core(kind)), eos_token=family.eos)
    made.add_tokens([AddedToken(text, special=True, normalized=False) for text in family.special])
    made.add_tokens([AddedToken(text, normalized=False) for text in family.plain])
    made.chat_template = family.source if family.marked else _unmarked(family.source)
    return made


@cache
def _core(kind: str) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if kind in ("metaspace", "spaces"):
        core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme="first" if kind == "metaspace" else "always", split=False
        )
        parts = [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
        core.decoder = decoders.Sequence(parts)
        special, alphabet = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))], []
    else:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        special, alphabet = [], pre_tokenizers.ByteLevel.alphabet()
    merges = 0 if kind == "bytes" else 150
    size = len(special) + (256 if alphabet else 60) + merges
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([TEXT] * 3, trainer)
    return str(core.to_str())


def _unmarked(source: str, start: str = "", end: str = "") -> str:
    return re.sub(r"\{% generation %\}", start, re.sub(r"\{% endgeneration %\}", end, source))


@dataclass(frozen=True, slots=True)
class Expected:
    """A whole chat, rendered and tokenised once: what has to be trained of it, as tokens and as text."""

    ids: list[int]
    trained: list[bool]
    text: str
    answers: str


def expected(family: Family, tok: Any, turns: Sequence[Turn]) -> Expected:
    """What the marks in the family's template say."""
    marked = _unmarked(family.source, f"{{{{ '{OPEN}' }}}}", f"{{{{ '{CLOSE}' }}}}")
    text = _written(family, tok, turns, marked)
    if family.prompt_adds:  # what the model is fed, and then what it is to write
        asked = _written(family, tok, turns[:-1], tok.chat_template, ask=True)
        whole = text.replace(OPEN, "").replace(CLOSE, "")
        start = text.rindex(OPEN)
        opened = asked if not whole.startswith(asked) else text[:start]
        text = opened + text[start:]
    if family.own_thought:
        asked = _written(family, tok, turns[:-1], tok.chat_template, ask=True)
        text = f"{asked}{OPEN}{turns[-1].text.removeprefix('<think>' + chr(10))}{family.eos}{CLOSE}"
    # what stands after the end of the last answer is never read
    text = text[: text.rindex(CLOSE) + 1]
    spans, plain = [], ""
    for piece in re.split(f"({OPEN}[^{CLOSE}]*{CLOSE})", text):
        bare = piece.strip(OPEN + CLOSE) if piece.startswith(OPEN) else piece
        if piece.startswith(OPEN):
            spans.append((len(plain), len(plain) + len(bare)))
        plain += bare
    found = tok(plain, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(found["input_ids"]), found["offset_mapping"]
    trained = [any(a <= start < b or (start < a < end) for a, b in spans) for start, end in offsets]
    ends = [tok.eos_token_id] if family.adds_eos and ids[-1] != tok.eos_token_id else []
    end = family.eos if ends else ""
    answers = "".join(plain[a:b] for a, b in spans)
    return Expected([*ids, *ends], [*trained, *(True for _ in ends)], plain + end, answers + end)


def _written(family: Family, tok: Any, turns: Sequence[Turn], source: str, ask: bool = False) -> str:
    """transformers' own rendering, on the day of the run."""
    date = {
        "%d %b %Y": "28 Nov 2026",
        "%Y-%m-%d": DAY,
        "%B %d, %Y": "November 28, 2026",
        "%d %B %Y": "28 November 2026",
    }
    for code, day in date.items():
        source = source.replace(f"strftime_now('{code}')", f"'{day}'")
    parts = "m.content[0]['text']" in source or "part.text" in source
    texts = [turn.text + ("\n\n" + turn.context if turn.context else "") for turn in turns]
    messages = [
        {"role": turn.role, "content": [{"type": "text", "text": text}] if parts else text}
        for turn, text in zip(turns, texts, strict=True)
    ]
    options = {"tokenize": False, "add_generation_prompt": ask, "chat_template": source, **family.options}
    return str(tok.apply_chat_template(messages, **options))


def outcome(family: Family, tok: Any, name: str) -> Outcome:
    """How the project renders one chat of a family, against one rendering of the whole."""
    turns, template = turns_of(name), Template("chat", family.options, DAY)
    try:
        found = render(Example(turns=turns), template, tok, max_tokens=100_000)
    except TemplateError as error:
        word = family.refused.get(name, "")
        return Outcome("refused" if word and word in str(error) else "wrong", str(error))
    if isinstance(found, Dropped):
        return Outcome("wrong", found.reason)
    if name in family.refused:
        return Outcome("wrong", f"not refused, though it {family.refused[name]}")
    wanted = expected(family, tok, turns)
    faults = [*_law_9(found, tok, template), *_prompts(found, family, tok, template, turns)]
    verdict, why = _compared(found, wanted, tok, turns)
    return Outcome("wrong", faults[0]) if faults else Outcome(verdict, why)


def _compared(found: Rendered, wanted: Expected, tok: Any, turns: Sequence[Turn]) -> tuple[str, str]:
    ids, trained = found.ids.tolist(), found.loss_mask.tolist()
    answers = _bare(tok, [t for t, mark in zip(ids, trained, strict=True) if mark])
    if (_bare(tok, ids), answers) != (_spaceless(wanted.text), _spaceless(wanted.answers)):
        return "wrong", f"{answers!r} is trained, not {wanted.answers!r}, of {tok.decode(ids)!r}"
    if (ids, trained) == (wanted.ids, wanted.trained):
        return "identical", ""
    first = next(n for n, (ours, theirs) in enumerate(zip(ids, wanted.ids, strict=False)) if ours != theirs)
    return ("later ids" if not trained[first] and len(turns) > 3 else "kept apart"), ""


def _bare(tok: Any, ids: Sequence[int]) -> str:
    """Text without spaces, which a tokenizer may put at a border."""
    return _spaceless(str(tok.decode(ids, clean_up_tokenization_spaces=False)))


def _spaceless(text: str) -> str:
    return text.replace(" ", "").replace("▁", "")  # which is one to SentencePiece


def _law_9(found: Rendered, tok: Any, template: Template) -> Iterator[str]:
    if int(found.ids[-1]) not in {*stop_ids(template, tok), tok.eos_token_id} or not found.loss_mask[-1]:
        yield f"it ends in {tok.decode(found.ids[-3:])!r}"
    if found.loss_mask[0]:
        yield "its first token is trained"


def _prompts(
    found: Rendered, family: Family, tok: Any, template: Template, turns: Sequence[Turn]
) -> Iterator[str]:
    """What is fed to the model stands before each answer, and in one exchange is what any engine feeds."""
    for place, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        asked = prompt(turns[:place], template, tok)
        marks = found.loss_mask[len(asked) - 1 : len(asked) + 1].tolist()
        if found.ids[: len(asked)].tolist() != asked or marks != [False, True]:
            yield f"the prompt for turn {place + 1} is not where its answer begins"
        text = _written(family, tok, turns[:place], tok.chat_template, ask=True)
        if _bare(tok, asked) != _bare(tok, tok(text, add_special_tokens=False)["input_ids"]):
            yield f"the prompt for turn {place + 1} is not the template's"
        if place <= 2 and asked != tok(text, add_special_tokens=False)["input_ids"] and len(turns) <= 3:
            yield "the prompt is not what transformers makes of it"


def measured(options: Namespace) -> Figures:
    """Every family with every tokenizer and chat."""
    rows = {}
    for family in FAMILIES:
        found = {
            (kind, name): outcome(family, tok, name)
            for kind in (KINDS[:1] if options.quick else KINDS)
            for tok in [tokenizer(family, kind)]
            for name in CHATS
        }
        counts = Counter(each.verdict for each in found.values())
        rows[family.name] = {
            **{verdict: counts[verdict] for verdict in COLUMNS},
            "adds_eos": family.adds_eos,
            "reasons": sorted({each.why for each in found.values() if each.verdict == "refused"}),
            "faults": [
                f"{kind}, {name}: {each.why}"
                for (kind, name), each in found.items()
                if each.verdict == "wrong"
            ],
        }
    return {"families": rows, "passed": not any(row["wrong"] for row in rows.values())}


def tables(figures: Figures) -> list[Table]:
    rows = figures["families"]
    cells = [
        [name, *(str(row[column] or "·") for column in COLUMNS), "yes" if row["adds_eos"] else ""]
        for name, row in rows.items()
    ]
    total = ["all", *(str(sum(row[column] for row in rows.values())) for column in COLUMNS), ""]
    faults = [f"{name}: {fault}" for name, row in rows.items() for fault in row["faults"]]
    reasons = [f"refused, {name}: {why}" for name, row in rows.items() for why in row["reasons"]]
    notes = [
        "identical: the ids and the mask of one pass over the whole chat.",
        "kept apart: an answer's first token, which one pass would merge with the prompt; inference cannot.",
        "later ids: the same text, other ids from the second exchange on (docs/decisions/0019).",
    ]
    return [
        Table(
            "Chat templates", ["family", *COLUMNS, "EOS added"], [*cells, total], [*notes, *reasons, *faults]
        )
    ]


if __name__ == "__main__":
    sys.exit(run(parser(__doc__).parse_args(), measured, tables))
