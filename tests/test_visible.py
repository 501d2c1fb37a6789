"""Text of others on a terminal: nothing in it acts, and it can still be read."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from shepherd import visible
from shepherd.errors import DataError
from shepherd.visible import shown, shown_json, shown_line, shown_toml

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


def test_an_error_quotes_others_so() -> None:
    assert str(DataError(f"row {HOSTILE}; fix it")) == f"row {shown(HOSTILE)}; fix it"


class _Own:
    def __str__(self) -> str:
        return HOSTILE


def _fault() -> None:
    try:
        raise OSError(HOSTILE)
    except OSError:
        logging.getLogger("shepherd.test").exception("it broke")


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What a handler of anybody's, with a plain formatter, writes of all that is logged."""
    stream = io.StringIO()
    handler, root = logging.StreamHandler(stream), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


SAID: list[Callable[[logging.Logger], object]] = [
    lambda log: log.info("reading %s (%d)", HOSTILE, 3),
    lambda log: log.info(f"reading {HOSTILE}"),
    lambda log: log.info("reading %(name)s", {"name": HOSTILE}),
    lambda log: log.info("reading %s", _Own()),
    lambda log: log.info(_Own()),
    lambda log: log.info("reading %s", Path(HOSTILE)),
    lambda log: log.info("reading", stack_info=True, extra={"more": HOSTILE}),
    lambda log: log.getChild("below").warning("reading %s", HOSTILE),
    lambda log: logging.LoggerAdapter(log).info("reading %s", HOSTILE),
]


@pytest.mark.parametrize("echo", SAID)
@pytest.mark.parametrize(
    "name", ["shepherd", "shepherd.silos.server.server_run", "transformers.x", "peft", "datasets"]
)
def test_what_is_logged_quotes_others_so(
    written: io.StringIO, name: str, echo: Callable[[logging.Logger], object]
) -> None:
    before = logging.getLogger(name).level
    logging.getLogger(name).setLevel(logging.INFO)
    passed_on = logging.getLogger("transformers").propagate
    logging.getLogger("transformers").propagate = True
    echo(logging.getLogger(name))
    logging.getLogger("transformers").propagate = passed_on
    logging.getLogger(name).setLevel(before)
    said = written.getvalue()
    assert "reading" in said or "x1b" in said
    assert shown(said) == said


def test_an_exception_that_is_logged_quotes_others_so(written: io.StringIO) -> None:
    _fault()
    said = written.getvalue()
    assert "Traceback" in said
    assert f"OSError: {shown(HOSTILE)}" in said
    assert shown(said) == said


def test_a_line_of_our_log_is_one_line(written: io.StringIO) -> None:
    logging.getLogger("shepherd.silos.site.trainer").info("answered %s", "site-1\nERROR all is lost")
    assert written.getvalue() == "answered site-1\\nERROR all is lost\n"


def test_the_records_of_whoever_imports_us_stay_their_own(written: io.StringIO) -> None:
    logging.getLogger("their.app").info("\x1b[32mgreen\x1b[0m %s", "\u202e")
    assert written.getvalue() == "\x1b[32mgreen\x1b[0m \u202e\n"


def test_their_own_kind_of_record_is_kept(written: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    class Traced(logging.LogRecord):
        def __init__(self, *about: Any, **more: Any) -> None:
            super().__init__(*about, **more)
            self.trace = "t1"

    monkeypatch.setattr(logging, "_logRecordFactory", Traced)
    visible.in_logs("shepherd")
    (handler,) = [h for h in logging.getLogger().handlers if getattr(h, "stream", None) is written]
    handler.setFormatter(logging.Formatter("%(trace)s %(message)s"))
    logging.getLogger("shepherd.test").info(HOSTILE)
    logging.getLogger("their.app").info("plain")
    assert written.getvalue() == f"t1 {shown(HOSTILE)}\nt1 plain\n"


OWN_PROCESS = """
import logging, sys, threading, warnings
from shepherd import visible
visible.in_this_process()
hostile = sys.argv[1].encode().decode("unicode_escape")
warnings.warn(hostile)
logging.getLogger("anybody.else").warning("reading %s", hostile)
thread = threading.Thread(target=lambda: open(hostile.replace(chr(0), "") + "/x"))
thread.start()
thread.join()
raise ValueError(hostile)
"""


def test_a_process_of_ours_writes_no_text_of_others_as_it_is() -> None:
    hostile = HOSTILE.replace("\udce9", "")
    words = [sys.executable, "-c", OWN_PROCESS, hostile.encode("unicode_escape").decode()]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf8")
    assert done.returncode == 1
    assert done.stderr.count("x1b[2J") >= 4
    for part in ("UserWarning: ", "reading ", "FileNotFoundError: ", "ValueError: "):
        assert part in done.stderr
    assert shown(done.stderr) == done.stderr


@given(st.text())
def test_toml_says_the_same(text: str) -> None:
    written = shown_toml(tomli_w.dumps({"name": text, "key": {text or "x": 1}}))
    assert tomllib.loads(written) == {"name": text, "key": {text or "x": 1}}
    assert shown(written) == written
