"""The plain fields of a message: which there are, and what each may be.

Each check gives the value, or raises ValueError whose text goes on the words "key x of the message".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from shepherd.errors import WireError
from shepherd.settings import LONGEST_WAIT_S

MOST_NAME, MOST_SENTENCE = 200, 2000  # characters
MOST_NAMES = 1000  # metrics or categories of a reply; they stand in every row of a run's log
MOST_COHORT = 10**6  # sites that are asked in a round, or that one may ask for
LAST_CLOCK_S = 4_102_444_800.0  # in Unix seconds: the year 2100
# what could end a line of a log, or turn a terminal's text around
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Check = Callable[[Any], Any]


def sentence(text: str, most: int = MOST_SENTENCE) -> str:
    """The text as one line of at most so many characters, fit for a log and a terminal.

    >>> sentence("two\\nlines")
    'two lines'
    """
    return _UNFIT.sub(" ", text)[:most]


def read(plain: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    """The fields of a message that these checks name, each as its check gives it.

    Raises:
        WireError: a key is missing, unknown or not what it may be.
    """
    require_keys(mapping(plain), checks, "the message")
    fields = {}
    for name, check in checks.items():
        try:
            fields[name] = check(plain[name])
        except (ValueError, TypeError) as error:
            raise WireError(f"key {name} of the message {error}; send it as this version does") from error
    return fields


def require_keys(table: Mapping[str, Any], names: Collection[str], where: str) -> None:
    """Raise WireError unless the table has these keys and no others."""
    for name in names:
        if name not in table:
            raise WireError(f"key {name} is missing in {where}; use one version of shepherd-fit at both ends")
    for name in table:
        if name not in names:
            raise WireError(
                f"key {name!r:.80} is not expected in {where}; use one version of shepherd-fit at both ends"
            )


def mapping(value: Any) -> dict[str, Any]:
    """Any table."""
    if not isinstance(value, dict):
        raise ValueError("is no table")
    return value


def _text(value: Any, most: int) -> str:
    if not isinstance(value, str) or len(value) > most or _UNFIT.search(value):
        raise ValueError(f"is no line of at most {most} characters")
    return value


def label(value: Any) -> str:
    """A name of at most 200 characters that errors, and so logs, may repeat."""
    return _text(value, MOST_NAME)


def _labels(value: Any) -> tuple[str, ...]:
    """The clients that an update is of: one, but where a federation merges."""
    if not isinstance(value, list) or not 0 < len(value) <= MOST_NAMES:
        raise ValueError(f"is no list of 1 to {MOST_NAMES} names")
    return tuple(map(label, value))


def _reason(value: Any) -> str:
    return _text(value, MOST_SENTENCE)


def _hex(digits: int) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
            raise ValueError(f"is not {digits} hex digits")
        return value

    return check


def whole(value: Any) -> int:
    """A whole number in [0, 2**63)."""
    if type(value) is not int or not 0 <= value < 2**63:  # True is an int, too
        raise ValueError("is no whole number in [0, 2**63)")
    return value


def _at_most(most: int, least: int = 0) -> Check:
    def check(value: Any) -> int:
        if not least <= whole(value) <= most:
            raise ValueError(f"is no whole number from {least} to {most}")
        return int(value)

    return check


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is no number")
    return float(value)  # of a whole number with too many digits: OverflowError


def _clock(value: Any) -> float:
    if not 0 < _number(value) <= LAST_CLOCK_S:
        raise ValueError("is no time from 1970 to 2100 in Unix seconds")
    return _number(value)


def _deadline(value: Any) -> float:
    if not 0 < _number(value) < math.inf:
        raise ValueError("is no positive number of seconds")
    if _number(value) > LONGEST_WAIT_S:
        raise ValueError("is longer than a week in seconds")
    return _number(value)


def _kind(value: Any) -> str:
    if value not in ("join", "train", "score"):
        raise ValueError("is not join, train or score")
    return str(value)


def _metrics(value: Any) -> dict[str, float]:
    return {label(name): _number(number) for name, number in _few(value).items()}


def _categories(value: Any) -> dict[str, tuple[float, int]]:
    return {label(name): _sum_and_count(pair) for name, pair in _few(value).items()}


def _few(value: Any) -> dict[str, Any]:
    named = mapping(value)
    if len(named) > MOST_NAMES:
        raise ValueError(f"has {len(named)} names, at most {MOST_NAMES} are taken")
    return named


def _sum_and_count(value: Any) -> tuple[float, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("holds no pair of a sum and a count")
    return _number(value[0]), whole(value[1])


REQUEST: Mapping[str, Check] = {
    "kind": _kind,
    "run": _hex(16),
    "id": _hex(32),
    "round": whole,
    "deadline": _deadline,
    "sent": _clock,
    "cohort": _at_most(MOST_COHORT),
    "base": _hex(64),
    "settings": mapping,
}
UPDATE: Mapping[str, Check] = {
    "clients": _labels,
    "round": whole,
    "weight": _number,
    "metrics": _metrics,
}
FAILURE: Mapping[str, Check] = {"client": label, "reason": _reason}
JOINED: Mapping[str, Check] = {
    "client": label,
    "examples": whole,
    "min_cohort": _at_most(MOST_COHORT, 1),
}
SCORES: Mapping[str, Check] = {"client": label, "round": whole, "categories": _categories}
