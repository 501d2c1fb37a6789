"""Text of others on a terminal: nothing in it acts, and it can still be read."""

from __future__ import annotations

import json
import logging
import tomllib
import unicodedata

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from shepherd.errors import DataError
from shepherd.visible import logger, shown, shown_json, shown_line, shown_toml

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\x08\x7f\x9b31m\u202etxt\u202c\u2066\u200b\u2028\ufeff\udce9"


@given(st.text(st.characters()))
def test_no_text_holds_what_acts_on_a_terminal(text: str) -> None:
    for made, kept in ((shown(text), "\n\t"), (shown_line(text), "")):
        assert not [c for c in made if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in kept]
        assert not [c for c in made if unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF")]
        made.encode()  # it can be printed


@given(st.text(st.characters(exclude_categories=("Cc", "Cf", "Cn", "Cs", "Zl", "Zp", "Mn", "Lo"))))
def test_a_text_without_them_stays_as_it_is(text: str) -> None:
    assert shown(text) == shown_line(text) == text


def test_letters_of_many_languages_stay() -> None:
    text = "café, 小さい鳥, Ω ≠ ω, שלום, مرحبا, हिन्दी, 🐑\tand a tab\nand a line"
    assert shown(text) == text


@pytest.mark.parametrize("character", [c for c in HOSTILE if not c.isascii() or not c.isprintable()])
def test_each_is_seen(character: str) -> None:
    assert shown(f"a{character}b").startswith("a\\")
    assert shown(f"a{character}b").endswith("b")


@given(st.text())
def test_json_says_the_same(text: str) -> None:
    line = json.dumps({"answer": text}, ensure_ascii=False)
    assert json.loads(shown_json(line)) == {"answer": text}
    assert shown(shown_json(line)) == shown_json(line)


def test_an_error_and_a_record_quote_others_so(caplog: pytest.LogCaptureFixture) -> None:
    assert str(DataError(f"row {HOSTILE}; fix it")) == f"row {shown(HOSTILE)}; fix it"
    with caplog.at_level("INFO"):
        logger("shepherd.test").info("reading %s (%d)", HOSTILE, 3)
    assert caplog.messages == [f"reading {shown(HOSTILE)} (3)"]
    assert logging.getLogger("shepherd.test").filters


@given(st.text())
def test_toml_says_the_same(text: str) -> None:
    written = shown_toml(tomli_w.dumps({"name": text, "key": {text or "x": 1}}))
    assert tomllib.loads(written) == {"name": text, "key": {text or "x": 1}}
    assert shown(written) == written
