"""Fold texts for comparison, so that encoding, typography and spacing make no difference.

Folded texts are in Unicode's compatibility form (NFKC) and in lower case, with plain quotes and dashes,
single spaces, and no invisible characters.
"""

from __future__ import annotations

import re
import unicodedata

_UNSEEN = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # controls (Cc) but those that are white space
    "\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a"  # formats (Cf)
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0"  # selectors and fillers
    "\U000e0000-\U000e0fff"  # tags, selectors and what is kept for more of them
)
_TYPED = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bb\u02bc\u2039\u203a\u00b4`", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u301d\u301e\u301f", '"'),
    **dict.fromkeys(
        "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2043\u058a\u05be\u1400\u1806\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u2e5d"
        "\u301c\u3030\u30a0\U00010d6e\U00010ead",
        "-",
    ),
}
_GONE = re.compile(f"[{_UNSEEN}]")
_NOTHING = re.compile(rf"[\s{_UNSEEN}]*")
_SET = re.compile(f"[{''.join(_TYPED)}]")
_DASH = re.compile(" ?-[ -]*")


def folded(text: str) -> str:
    """Fold a text for comparison.

    >>> folded("Cafe\\u0301  AU\\u00a0lait\\n") == folded("caf\\u00e9 au lait")
    True
    >>> folded("It\\u2019s late \\u2014 very late") == folded("It's late--very late")
    True
    """
    seen = _GONE.sub("", text)
    if seen.isascii():
        return spaced(_typed(seen.lower()))
    whole = seen.replace("\u00b4", "'").replace("\u2033", '"')  # NFKC takes these two to pieces
    once = unicodedata.normalize("NFKC", whole).casefold()
    return spaced(_typed(unicodedata.normalize("NFKC", once)))


def _typed(text: str) -> str:
    return _SET.sub(lambda found: _TYPED[found[0]], text)


def spaced(text: str) -> str:
    """Normalise white space to single spaces, and to none around a dash; for joined folded texts."""
    spaced = " ".join(text.split())
    return _DASH.sub("-", spaced) if "-" in spaced else spaced


def seen(text: str) -> str:
    """Remove invisible characters.

    >>> seen("\\ufeffin\\u200bput")
    'input'
    """
    return _GONE.sub("", text)


def shows_nothing(text: str) -> bool:
    """Whether a text is empty but for white space and invisible characters.

    >>> shows_nothing(" \\u200b\\n"), shows_nothing("0")
    (True, False)
    """
    return _NOTHING.fullmatch(text) is not None
