"""The plain fields of a message, and a check for each.

A check returns the value, or raises a ValueError whose text continues "key x of the message ...".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from shepherd.errors import WireError
from shepherd.settings import LONGEST_WAIT_S

MAX_NAME_CHARS, MAX_SENTENCE_CHARS = 200, 2000  # characters
MAX_REPLY_NAMES = 1000  # metrics or categories of a reply; every row of a run's log repeats them
MAX_RANK = 10**6  # of an adapter
MAX_COHORT = 10**6  # sites of a round, or the fewest that a site may require
MAX_CODES = 2**30  # whole numbers in an update that is sent under masks
PHASES = ("keys", "shares", "masked", "agree", "reveal")
LAST_CLOCK_S = 4_102_444_800.0  # in Unix seconds: the year 2100
# characters that could end a line of a log, or reverse a terminal's text
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Check = Callable[[Any], Any]


def sentence(text: str, most: int = MAX_SENTENCE_CHARS) -> str:
    """The text as one line that is safe in a log and a terminal, cut to `most` characters.

    >>> sentence("two\\nlines")
    'two lines'
    """
    return _UNFIT.sub(" ", text)[:most]


def read(plain: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    """The fields of a message, each as its check returns it.

    Raises:
        WireError: a key is missing or unknown, or a check refuses its value.
    """
    require_keys(mapping(plain), checks, "the message")
    fields = {}
    for name, check in checks.items():
        try:
            fields[name] = check(plain[name])
        except (ValueError, TypeError) as error:
            raise WireError(
                f"key {name} of the message {error}; use one version of shepherd-fit at both ends"
            ) from error
    return fields


def require_keys(table: Mapping[str, Any], names: Collection[str], where: str) -> None:
    """Raise WireError unless the table has these keys and no others."""
    for name in names:
        if name not in table:
            raise WireError(
                f"key {name} is missing from {where}; use one version of shepherd-fit at both ends"
            )
    for name in table:
        if name not in names:
            raise WireError(
                f"key {name!r:.80} is not expected in {where}; use one version of shepherd-fit at both ends"
            )


def mapping(value: Any) -> dict[str, Any]:
    """Check for a table with any keys."""
    if not isinstance(value, dict):
        raise ValueError("is not a table")
    return value


def _text(value: Any, most: int) -> str:
    if not isinstance(value, str) or len(value) > most or _UNFIT.search(value):
        raise ValueError(f"is not one line of at most {most} characters")
    return value


def label(value: Any) -> str:
    """Check for a name of at most 200 characters that is safe to repeat in errors and logs."""
    return _text(value, MAX_NAME_CHARS)


def _labels(value: Any) -> tuple[str, ...]:
    """The clients of an update: one, unless a federation merges updates."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_REPLY_NAMES:
        raise ValueError(f"is not a list of 1 to {MAX_REPLY_NAMES} names")
    return tuple(map(label, value))


def _reason(value: Any) -> str:
    return _text(value, MAX_SENTENCE_CHARS)


def _hex(digits: int) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
            raise ValueError(f"is not {digits} hex digits")
        return value

    return check


def whole_number(value: Any) -> int:
    """Check for a whole number in [0, 2**63)."""
    if type(value) is not int or not 0 <= value < 2**63:  # `bool` is a subclass of `int`
        raise ValueError("is not a whole number in [0, 2**63)")
    return value


def _at_most(most: int, least: int = 0) -> Check:
    def check(value: Any) -> int:
        if not least <= whole_number(value) <= most:
            raise ValueError(f"is not a whole number from {least} to {most}")
        return int(value)

    return check


def _none_or(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is not a number")
    return float(value)  # OverflowError where a whole number has too many digits


def _clock(value: Any) -> float:
    if not 0 < _number(value) <= LAST_CLOCK_S:
        raise ValueError("is not a Unix time in seconds from 1970 to 2100")
    return _number(value)


def _deadline(value: Any) -> float:
    if not 0 < _number(value) < math.inf:
        raise ValueError("is not a positive number of seconds")
    if _number(value) > LONGEST_WAIT_S:
        raise ValueError("is more than a week in seconds")
    return _number(value)


def _kind(value: Any) -> str:
    if value not in ("join", "train", "score"):
        raise ValueError("is not join, train or score")
    return str(value)


def _phase(value: Any) -> str:
    if value not in PHASES:
        raise ValueError(f"is not one of {', '.join(PHASES)}")
    return str(value)


def _ring_bits(value: Any) -> int:
    if value not in (32, 64) or isinstance(value, float):
        raise ValueError("is not 32 or 64")
    return int(value)


def _metrics(value: Any) -> dict[str, float]:
    return {label(name): _number(number) for name, number in _bounded_mapping(value).items()}


def _categories(value: Any) -> dict[str, tuple[float, int]]:
    return {label(name): _sum_and_count(pair) for name, pair in _bounded_mapping(value).items()}


def _bounded_mapping(value: Any) -> dict[str, Any]:
    named = mapping(value)
    if len(named) > MAX_REPLY_NAMES:
        raise ValueError(f"has {len(named)} names, and the limit is {MAX_REPLY_NAMES}")
    return named


def _sum_and_count(value: Any) -> tuple[float, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("does not hold pairs of a sum and a count")
    return _number(value[0]), whole_number(value[1])


REQUEST: Mapping[str, Check] = {
    "kind": _kind,
    "run": _hex(16),
    "id": _hex(64),
    "round": whole_number,
    "deadline": _deadline,
    "sent": _clock,
    "cohort": _at_most(MAX_COHORT),
    "base": _hex(64),
    "settings": mapping,
}
UPDATE: Mapping[str, Check] = {
    "clients": _labels,
    "round": whole_number,
    "weight": _number,
    "metrics": _metrics,
}
FAILURE: Mapping[str, Check] = {"client": label, "reason": _reason}
READY: Mapping[str, Check] = {
    "client": label,
    "examples": whole_number,
    "min_cohort": _at_most(MAX_COHORT, 1),
    "rank": _none_or(_at_most(MAX_RANK, 1)),
}
SCORES: Mapping[str, Check] = {"client": label, "round": whole_number, "categories": _categories}
TRAINED: Mapping[str, Check] = {"client": label, "round": whole_number, "length": _at_most(MAX_CODES, 1)}
SUM_REQUEST: Mapping[str, Check] = {
    "kind": _phase,
    "run": _hex(16),
    "id": _hex(64),
    "round": whole_number,
    "attempt": _hex(32),
    "members": _labels,
    "length": _at_most(MAX_CODES, 1),
    "ring_bits": _ring_bits,
    "deadline": _deadline,
    "sent": _clock,
}
SUM_ANSWER: Mapping[str, Check] = {
    "client": label,
    "round": whole_number,
    "kind": _phase,
    "attempt": _hex(32),
}
