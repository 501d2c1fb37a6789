"""Recognise which columns are the instruction, the context, the response, the client and the category.

Columns are recognised by name first, in English and other languages, then by what they hold. Where several
fit, nothing is guessed: the error names the candidates.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shepherd.data.fields import (
    CHATS,
    CHOSEN,
    CONTEXTS,
    HISTORIES,
    REJECTED,
    RESPONSES,
    SYSTEMS,
    alike,
    filled,
    is_filled,
)
from shepherd.errors import DataError

MAX_NAME_CHARS = 60  # a longer name of a column is a cell of a file without a header
MAX_LABELS = 200  # a column with more distinct values is neither client nor category

# Each kind's names, the sure ones first. One word each, as `_words` writes them.
NAMES: Mapping[str, tuple[str, str]] = {
    "instruction": (
        "instruction instructions question query prompt request frage aufgabe anweisung anfrage pregunta"
        " instruccion consigna consigne demande domanda istruzione pergunta instrucao vraag opdracht pytanie"
        " polecenie otazka soru fraga sporsmal kysymys вопрос инструкция запрос 質問 指示 問題 问题 指令 提问"
        " 질문 지시 سؤال प्रश्न",
        "input user human task problem text source sentence document article eingabe entrada entree текст",
    ),
    "response": (
        "response answer output completion reply antwort ausgabe respuesta salida reponse sortie risposta"
        " resposta saida antwoord odpowiedz odpoved cevap svar vastaus ответ 回答 応答 答え 答案 输出 响应"
        " 대답 답변 جواب उत्तर",
        "assistant bot gpt target label solution summary translation answers responses completions outputs"
        " losung zusammenfassung ubersetzung resumen resume riassunto перевод 要約 翻訳 摘要 翻译",
    ),
    "context": (
        "context input passage background kontext hintergrund contexto contexte contesto contextual kontekst"
        " baglam контекст 文脈 コンテキスト 背景 上下文 문맥",
        "document documents paragraph article evidence quelle dokument documento",
    ),
    "client": (
        "client hospital clinic organisation organization institution institute company customer author user"
        " tenant owner school bank annotator worker krankenhaus klinik kunde autor mandant standort"
        " einrichtung hopital clinique auteur entreprise cliente autora empresa ospedale azienda ziekenhuis"
        " klant больница автор клиент организация 病院 顧客 医院 客户 作者 병원",
        "site centre center department station ward branch region username speaker writer abteilung",
    ),
    "category": (
        "category kategorie categoria categorie kategoria категория カテゴリ カテゴリー 类别 分类 카테고리",
        "type kind task topic class label subject domain genre skill tag art typ thema fach aufgabentyp tipo"
        " tema sujet тип тема 種類 种类 类型",
    ),
}
# words that do not say what a column holds
_TAILS = ("id", "ids", "name", "names", "nr", "no", "number", "text", "code", "key", "str", "value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The column of each part, "" for none; `why` says how each was recognised."""

    instruction: str = ""
    context: str = ""
    response: str = ""
    messages: str = ""
    client: str = ""
    category: str = ""
    why: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    """Unused columns with few values, which may be the client or the category."""
    pair: tuple[str, ...] = ()
    """Columns of a better and a worse answer, which are the response then; () if there are none."""


def listed(names: Iterable[object], many: int = 8) -> str:
    """Column names for a message; if they look like cells, their number only, so that no text is shown.

    >>> listed(["frage", "antwort"]), listed([f"c{n}" for n in range(10)], 2)
    ('there are frage, antwort', 'there are c0, c1 and 8 more')
    """
    texts = [str(name) for name in names]
    if any(map(is_cell, texts)):
        return f"the file seems to have no header: {len(texts)} names in its first line look like a row"
    shown = ", ".join(text[:40] for text in texts[:many]) or "none"
    return f"there are {shown}" + (f" and {len(texts) - many} more" if len(texts) > many else "")


def is_cell(name: str) -> bool:
    """Whether a column's name looks like a cell: a text or a number.

    >>> [is_cell(name) for name in ("frage", "best answer", "What is it?", "He has had a cough", "17", "")]
    [False, False, True, True, True, False]
    """
    bare = name.strip()
    return (
        len(bare) > 40
        or len(bare.split()) > 3
        or bare.endswith((".", "?", "!", "。", "？", "؟"))
        or bool(re.fullmatch(r"[\d.,:/-]+", bare))
    )


AUTO = "auto"
KNOWN: Mapping[str, tuple[str, ...]] = {"messages": CHATS, "context": CONTEXTS, "response": RESPONSES}
PARTS = ("messages", "instruction", "context", "response", "client", "category")


def recognise(rows: Sequence[Mapping[str, Any]], given: Mapping[str, str] | None = None) -> Columns:
    """Recognise the columns of `rows`; `given` names columns by part, "" for none.

    Raises:
        DataError: a given column does not exist, no column is the instruction or the response, or several
            columns fit one part; names the candidates.
    """
    columns = _statistics(rows)
    if any(len(name) > MAX_NAME_CHARS for name in columns) or (not given and _no_header(rows)):
        raise DataError(
            "the file seems to have no header: its first line looks like a row; put a line with the columns'"
            " names before it, or say which column is which with --instruction and --response"
        )
    found: dict[str, str] = dict(given or {})
    why = dict.fromkeys(found, "as given")
    for part, name in found.items():
        if name and name not in columns:
            raise DataError(f"--{part} {name}: there is no such column; {listed(columns)}")
    pair = _pair(columns) if not {"messages", "response"} & found.keys() else ()
    if pair:
        found |= {"messages": "", "response": ""}
        if "instruction" not in found:
            names = _named("instruction", {n: c for n, c in columns.items() if n not in pair}, found)
            found["instruction"] = _only(names, "instruction")
            why["instruction"] = "by its name" if names else "the answers hold the prompt"
    if "messages" not in found and not {"instruction", "response"} & {p for p, name in found.items() if name}:
        chats = [name for name, column in columns.items() if column.chat]
        found["messages"], why["messages"] = _only(chats, "messages"), "it holds chats"
        if found["messages"] == AUTO:
            why["messages"] = _first_of(chats)
    held = _known(found.get("messages", ""), "messages")
    if held and all(filled(row, held) for row in rows):
        found |= {"instruction": "", "response": "", "context": ""}
    for part in ("instruction", "response", "context", "client", "category"):
        if part in found:
            continue
        names = _named(part, columns, found)
        if name := _only(names, part):
            found[part], why[part] = name, "by its name" if name != AUTO else _first_of(names)
    if not found.get("messages") and not pair:
        _by_content(columns, found, why)
    auto = (name for part, name in found.items() for name in _known(name, part))
    own = alike(columns, (*SYSTEMS, *HISTORIES, *auto))  # read under these names
    left = [name for name in columns if name not in (*found.values(), *own, *pair)]
    labels = [name for name in left if columns[name].few]
    if "category" not in found and len(labels) == 1:
        found["category"] = labels[0]
        why["category"] = f"the only other column of few values, {columns[labels[0]].distinct}"
        labels, left = [], [name for name in left if name != found["category"]]
    return Columns(**found, why=why, unused=tuple(left), labels=tuple(labels), pair=pair)


def _pair(columns: Mapping[str, _Column]) -> tuple[str, ...]:
    """The columns of a better and a worse answer, as texts or chats; () if there are none."""
    found = [next(iter(alike(columns, names)), "") for names in (CHOSEN, REJECTED)]
    texts = all(name and (columns[name].chat or columns[name].filled) for name in found)
    return tuple(found) if texts else ()


def _no_header(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no name is known, and some name looks like a cell or is one of its column's values."""
    known = {word for names in NAMES.values() for word in " ".join(names).split()} | {"messages"}
    names = [str(name) for name in rows[0]]
    if any(known & {"".join(_words(name)), *_words(name)} for name in names):
        return False
    return any(is_cell(name) or any(row.get(name) == name for row in rows) for name in names)


def _first_of(names: Sequence[str]) -> str:
    return f"the first of {_listed(names)} that a row fills"


def _known(name: str, part: str) -> tuple[str, ...]:
    """Columns that a name may refer to."""
    return KNOWN[part] if name == AUTO else (name,) if name else ()


def _only(names: Sequence[str], part: str) -> str:
    if len(names) > 1 and {*names} <= {*KNOWN.get(part, ())}:  # two layouts in one table
        return AUTO
    if len(names) > 1:
        none = "" if part in ("instruction", "response") else f", or --{part} '' for none"
        raise DataError(
            f"columns {_listed(names)} may each be the {part}; say which with --{part} COLUMN{none}"
        )
    return names[0] if names else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """Statistics of a column over the given rows."""

    filled: int
    distinct: int
    letters: float
    """Mean number of characters of a value."""
    prose: bool
    """Whether its values are texts of several words, as instructions and responses are."""
    questions: float
    """Share of the values that end in a question mark, in [0, 1]."""
    few: bool
    """Whether it has few, short and repeated values, as clients and categories do."""
    chat: bool


def _statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, _Column]:
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(str(name), []).append(value)
    return {name: _column([v for v in own if is_filled(v)]) for name, own in values.items()}


def _column(values: Sequence[Any]) -> _Column:
    texts = [str(v).strip() for v in values if isinstance(v, str | int) and not isinstance(v, bool)]
    texts = [text for text in texts if text]
    count, distinct = len(texts), len(set(texts))
    letters = sum(map(len, texts)) / max(1, count)
    words = sum(_count_words(text) for text in texts) / max(1, count)
    plain = count > 0 and count >= 0.9 * len(values)
    few = plain and 2 <= distinct <= min(MAX_LABELS, count // 2) and letters <= 60
    return _Column(
        filled=count,
        distinct=distinct,
        letters=letters,
        prose=plain and words >= 3 and not (few and distinct <= count // 10),
        questions=sum(text.endswith(("?", "？", "؟")) for text in texts) / max(1, count),
        few=few,
        chat=bool(values) and sum(map(_is_chat, values)) >= 0.9 * len(values),
    )


def _count_words(text: str) -> int:
    """Number of words: between spaces, or about two characters each in scripts without spaces.

    >>> _count_words("Name two rivers."), _count_words("東京の川は何ですか")
    (3, 5)
    """
    return max(len(text.split()), (sum(letter > "\u2e7f" for letter in text) + 1) // 2)


def _is_chat(value: Any) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return False
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(turn, Mapping) and {"role", "from"} & turn.keys() for turn in value)


def _named(part: str, columns: Mapping[str, _Column], found: Mapping[str, str]) -> list[str]:
    """Columns whose names fit a part: by a sure name, else a likely one, each also as a last word."""
    fit = [name for name, column in columns.items() if name not in found.values() and _fits(part, column)]
    for names in NAMES[part]:
        known = {"".join(_words(each)) for each in names.split()}
        if exact := [name for name in fit if "".join(_words(name)) in known]:
            return exact
        if alike := [name for name in fit if _last_word(name) in known]:
            return alike
    return []


def _fits(part: str, column: _Column) -> bool:
    if part in ("client", "category"):
        return column.few
    return column.filled > 0 and not column.chat


def _words(name: str) -> list[str]:
    """Words of a column's name, in lower case and without accents.

    >>> _words("Frage_Text"), _words("authorId"), _words("Réponse"), _words("質問")
    (['frage', 'text'], ['author', 'id'], ['reponse'], ['質問'])
    """
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    bare = "".join(c for c in unicodedata.normalize("NFD", split) if not unicodedata.combining(c))
    return [word for word in re.split(r"[\W_]+", unicodedata.normalize("NFC", bare).casefold()) if word]


def _last_word(name: str) -> str:
    """The word of a name that says what it is: `answer` of `best_answer`, `hospital` of `hospital_name`."""
    words = _words(name)
    while len(words) > 1 and words[-1] in _TAILS:
        words.pop()
    return words[-1] if words else ""


def _by_content(columns: Mapping[str, _Column], found: dict[str, str], why: dict[str, str]) -> None:
    """Recognise the instruction and the response by content, where only one choice is possible."""
    missing = [part for part in ("instruction", "response") if not found.get(part)]
    prose = [name for name, column in columns.items() if column.prose and name not in found.values()]
    if len(missing) == len(prose) == 1:
        found[missing[0]], why[missing[0]] = prose[0], "the only other column of texts"
    elif len(missing) == len(prose) == 2:
        prose.sort(key=lambda name: -columns[name].questions)
        asks, says = (columns[name].questions for name in prose)
        if asks >= 0.5 and says <= 0.2:
            found |= dict(zip(missing, prose, strict=True))
            why |= {missing[0]: f"{asks:.0%} of its texts are questions", missing[1]: "the other texts"}
    for part in missing:
        if not found.get(part):
            candidates = prose or [name for name in columns if name not in found.values()]
            raise DataError(
                f"no column is named as the {part}; say which it is with --{part} COLUMN, of"
                f" {_listed(candidates)}"
            )
