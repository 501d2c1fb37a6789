"""Text that somebody else wrote, fit for a terminal: what would act there is made visible.

Data, models and other machines may say anything. An escape sequence in it could clear the screen, rename the
window or write a command, and a mark of direction shows another text than the one that is there.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

_ACTING = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u206a-\u206f"  # no width
    "\u3164\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e007f"  # nor any ink
    "\u2028\u2029"  # ends of lines to some programs
    "\ud800-\udfff"  # bytes of a file's name that are not UTF-8, or half of a character
)
_IN_TEXT = re.compile(f"[{_ACTING}]")
_IN_LINE = re.compile(f"[\t\n{_ACTING}]")


def shown(text: object) -> str:
    r"""A text with the characters that act on a terminal as escapes; newlines and tabs stay.

    >>> shown("caf\xe9\x1b[2J\u202e"), shown("a\r\nb"), shown("a\udce9.jsonl")
    ('café\\x1b[2J\\u202e', 'a\\r\nb', 'a\\xe9.jsonl')
    """
    return _escaped(_IN_TEXT, str(text))


def shown_line(text: object) -> str:
    r"""As `shown`, for what has to stay one line: newlines and tabs are escapes too.

    >>> shown_line("done\nround 9/9")
    'done\\nround 9/9'
    """
    return _escaped(_IN_LINE, str(text))


def shown_json(text: str) -> str:
    r"""JSON with the same characters as JSON's own escapes, so that it says the same to whoever reads it.

    >>> shown_json('{"answer": "a\x9b\u202eb"}')
    '{"answer": "a\\u009b\\u202eb"}'
    """
    return _IN_TEXT.sub(lambda found: json.dumps(found[0])[1:-1], text)


def shown_toml(text: str) -> str:
    r"""TOML with the same characters as TOML's own escapes; they can only stand in its strings.

    >>> shown_toml('name = "a\u202eb"')
    'name = "a\\u202eb"'
    """
    return _IN_TEXT.sub(_escape_toml, text)


def logger(name: str) -> logging.Logger:
    """The logger of a module, in whose records texts of others are as `shown` gives them."""
    found = logging.getLogger(name)
    found.addFilter(_made_visible)
    return found


def _made_visible(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(
            shown(part) if isinstance(part, str | Path | Exception) else part for part in record.args
        )
    return True


def _escaped(acting: re.Pattern[str], text: str) -> str:
    return acting.sub(_escape, text)


def _escape_toml(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a file's name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape", "surrogatepass").decode()
