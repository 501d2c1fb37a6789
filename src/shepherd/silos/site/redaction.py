"""What a site says of its own faults: a fixed sentence to the server, and the whole of it in its own log.

The server may know what kind of thing went wrong, and what of its own request did not fit. It is told no
path, no value and no text of this site's, and of what may depend on the examples one sentence a kind: whoever
chooses the adapter could have an answer about them in a tensor's name, a number, or the class of an error.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from shepherd.errors import (
    AdapterError,
    BaseError,
    DataError,
    FolderError,
    PluginError,
    SettingsError,
    ShepherdError,
    WireError,
)
from shepherd.silos.protocol.schema import sentence

PLUGIN = "it cannot import a part that the run names; the site's log says why"
DATA = "its data cannot be used; the site's log says which file and line"
BASE = "it cannot load the base; the site's log says what to mend"
MEMORY = "its memory ran out; lower tuning.batch_size, or have its owner lower trainer.micro_batch_tokens"
FULL = "its disk is full; the site has to free some space, and what it had before stands"
FOLDER = "its own files cannot be used; the site's log says which, and the mend"
VISIT = "its examples cannot be trained on or scored as asked; the site's log says why"
DIVERGED = "its visit came to numbers that are not finite; lower tuning.learning_rate or set tuning.clip_norm"
OTHER = "it met a fault that it does not know; the site's log says where"

# a role that is none; and the columns of a table, which are an example's where it has no header
_QUOTED = re.compile(r"'.*'|\".*\"|\(there are .*\)(?=; add it)", re.DOTALL)


_ABOUT_THE_REQUEST = (WireError, AdapterError, SettingsError)


class GivenUp(Exception):
    """Work that nobody waits for any more."""


class Diverged(Exception):
    """A visit came to numbers that are not finite."""


class OverExamples(Exception):
    """What went wrong in working with the examples, so that its text is for this site alone."""


@contextmanager
def of_the_examples() -> Iterator[None]:
    """What fails in this block may depend on the examples, also where it looks like the request's fault."""
    try:
        yield
    except _ABOUT_THE_REQUEST as error:
        raise OverExamples(str(error)) from error


def told(error: BaseException) -> str:
    """What the server is told of a fault: what is about its own request in full, else a fixed sentence."""
    match error:
        case PluginError():  # which says what went wrong in a module of the site's
            return PLUGIN
        case GivenUp() | WireError() | AdapterError() | SettingsError():
            return str(error)
        case Diverged():
            return DIVERGED
        case OverExamples():
            return VISIT
        case DataError():
            return DATA
        case BaseError():
            return BASE
    causes = list(_causes(error))
    if any(isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in causes):
        return FULL
    if any(_is_of_memory(each) for each in causes):
        return MEMORY
    if isinstance(error, FolderError):
        return FOLDER
    return OTHER


def logged(error: BaseException) -> str:
    """What this site's log is told: our sentences, without what they quote of the data; else the place.

    One line, since a sentence may name what a request brought.
    """
    return sentence(_logged(error))


def _logged(error: BaseException) -> str:
    if isinstance(error, DataError):
        return _QUOTED.sub("(not shown)", str(error))
    if isinstance(error, ShepherdError | GivenUp | Diverged | OverExamples):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    steps = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{type(error).__name__} at {steps}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _is_of_memory(error: BaseException) -> bool:
    """Python's own, CUDA's (by its name, since torch is not imported here), and torch's on a processor."""
    names = {kind.__name__ for kind in type(error).__mro__}
    full = isinstance(error, OSError) and error.errno == errno.ENOMEM
    torch_says = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return full or torch_says or not names.isdisjoint({"MemoryError", "OutOfMemoryError"})
