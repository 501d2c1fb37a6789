"""Make untrusted text safe for a terminal: characters that act there are shown as escapes.

Text of data, models and other machines may hold anything. An escape sequence could clear the screen, rename
the window or write a command, and a direction mark makes a terminal display a different text.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

_ACTING = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u206a-\u206f"  # no width
    "\u3164\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e007f"  # no glyph
    "\u2028\u2029"  # ends of lines to some programs
    "\ud800-\udfff"  # bytes of a file's name that are not UTF-8, or half of a character
)
_IN_TEXT = re.compile(f"[{_ACTING}]")
_IN_LINE = re.compile(f"[\t\n{_ACTING}]")


def shown(text: object) -> str:
    r"""Escape the characters of a text that act on a terminal; newlines and tabs stay.

    >>> shown("caf\xe9\x1b[2J\u202e"), shown("a\r\nb"), shown("a\udce9.jsonl")
    ('café\\x1b[2J\\u202e', 'a\\r\nb', 'a\\xe9.jsonl')
    """
    return _escaped(_IN_TEXT, str(text))


def shown_line(text: object) -> str:
    r"""Escape a text like `shown`, and newlines and tabs as well, so that it stays one line.

    >>> shown_line("done\nround 9/9")
    'done\\nround 9/9'
    """
    return _escaped(_IN_LINE, str(text))


def shown_json(text: str) -> str:
    r"""Write the acting characters in JSON text as JSON's own escapes, so that it parses to the same value.

    >>> shown_json('{"answer": "a\x9b\u202eb"}')
    '{"answer": "a\\u009b\\u202eb"}'
    """
    return _IN_TEXT.sub(lambda found: json.dumps(found[0])[1:-1], text)


def shown_toml(text: str) -> str:
    r"""Write the acting characters in TOML text as TOML's own escapes; they occur only inside strings.

    >>> shown_toml('name = "a\u202eb"')
    'name = "a\\u202eb"'
    """
    return _IN_TEXT.sub(_escape_toml, text)


def in_logs(*names: str) -> None:
    """Escape what these loggers and their children write, like `shown`; "" is every logger.

    Records are changed when they are made, so this holds for every handler, whenever it is added, and for
    message, arguments and exception alike. Records of this package stay on one line.
    """
    maker = logging.getLogRecordFactory()
    if not isinstance(maker, _RecordFactory):
        maker = _RecordFactory(maker)
        logging.setLogRecordFactory(maker)
    maker.names.update(names)


def in_warnings() -> None:
    """Escape the text of Python's warnings, like `shown`."""
    if not isinstance(warnings.formatwarning, _EscapedFormat):
        warnings.formatwarning = _EscapedFormat(warnings.formatwarning)


def in_this_process() -> None:
    """Escape all that this process logs, warns of or fails with; for processes that the package starts."""
    in_logs("")
    in_warnings()
    sys.excepthook = _print_failure
    threading.excepthook = lambda about: _print_failure(about.exc_type, about.exc_value, about.exc_traceback)


_PACKAGE = "shepherd"


class _EscapedRecord(logging.LogRecord):
    def getMessage(self) -> str:
        escape = shown_line if _is_below(self.name, _PACKAGE) else shown
        return escape(super().getMessage())


class _RecordFactory:
    """A factory of log records that makes those of some loggers safe, over the factory `before`."""

    def __init__(self, before: Callable[..., logging.LogRecord]) -> None:
        self.names: set[str] = set()
        self._before = before
        self._kinds: dict[type, type] = {logging.LogRecord: _EscapedRecord}

    def __call__(self, *about: Any, **more: Any) -> logging.LogRecord:
        record = self._before(*about, **more)
        if not isinstance(record, _EscapedRecord) and any(
            _is_below(record.name, name) for name in self.names
        ):
            record.__class__ = self._escaping(type(record))
            if record.exc_info:
                record.exc_text = shown(logging.Formatter().formatException(record.exc_info))
        return record

    def _escaping(self, kind: type) -> type:
        """A subclass of a record class, which may be another library's, with its message escaped."""
        if kind not in self._kinds:
            self._kinds[kind] = type(kind.__name__, (_EscapedRecord, kind), {})
        return self._kinds[kind]


def _is_below(name: str, above: str) -> bool:
    return not above or name == above or name.startswith(f"{above}.")


class _EscapedFormat:
    """A function whose returned text is escaped."""

    def __init__(self, function: Callable[..., str]) -> None:
        self._function = function

    def __call__(self, *words: Any, **more: Any) -> str:
        return shown(self._function(*words, **more))


def _print_failure(
    kind: type[BaseException], error: BaseException | None, where: TracebackType | None
) -> None:
    sys.stderr.write(shown("".join(traceback.format_exception(kind, error, where))))


def _escaped(acting: re.Pattern[str], text: str) -> str:
    return acting.sub(_escape, text)


def _escape_toml(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python stores a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape", "surrogatepass").decode()
