"""Text files as people save them: UTF-8 or UTF-16, with a byte order mark or without."""

from __future__ import annotations

import codecs
from collections import Counter

UTF8 = "utf-8-sig"
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(head: bytes) -> str:
    """The encoding of a text by its first bytes: that of its mark, UTF-16 by its NUL bytes, else UTF-8.

    In UTF-16 without a mark, the NUL bytes of ASCII characters are on one side; U+4E00 and a few others have
    theirs on the other.

    >>> [encoding_of(text) for text in (b"a = 1", "a = 1".encode("utf-16"), "a = 1".encode("utf-16-be"))]
    ['utf-8-sig', 'utf-16', 'utf-16-be']
    """
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    pairs = zip(head[::2], head[1::2], strict=False) if b"\0" in head else ()
    least = max(1, len(head) // 100)  # fewer are characters of a text in UTF-8
    sides = Counter((first == 0, second == 0) for first, second in pairs)
    little, big = sides[False, True], sides[True, False]  # ASCII, as the syntax of every format is
    if not sides[True, True] and max(little, big) > max(least, 3 * min(little, big)):
        return "utf-16-le" if little > big else "utf-16-be"
    return UTF8


def decoded(raw: bytes) -> str:
    """The text without its mark.

    Raises:
        UnicodeDecodeError: it is neither UTF-8 nor UTF-16.

    >>> decoded("Größe".encode("utf-8-sig")), decoded("Größe".encode("utf-16"))
    ('Größe', 'Größe')
    """
    return raw.decode(encoding_of(raw)).lstrip("\ufeff")
