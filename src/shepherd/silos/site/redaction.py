"""Reduce a site's errors to what may be disclosed: fixed sentences to the server, details in the site's log.

The server may learn the kind of an error, and what was wrong with its own request, but no path, value or text
of the site. An error that may depend on the examples is one fixed sentence: who chooses the adapter could
otherwise read an answer about them from a tensor's name, a number, or the class of an error.
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
    SilosError,
    WireError,
)
from shepherd.silos.protocol.schema import sentence

PLUGIN = "it cannot import a plug-in that the run names; see the site's log"
DATA = "its data cannot be used; see the site's log for the file and line"
BASE = "it cannot load the base; see the site's log for the fix"
MEMORY = "it ran out of memory; lower tuning.batch_size, or ask its owner to lower trainer.micro_batch_tokens"
FULL = "its disk is full; ask its owner to free some space; nothing that it had saved is lost"
FOLDER = "its own files cannot be used; see the site's log for the file and the fix"
VISIT = "its examples cannot be trained on or scored with these settings; see the site's log"
DIVERGED = (
    "its visit diverged to numbers that are not finite; lower tuning.learning_rate or set tuning.clip_norm"
)
OTHER = "it met an unexpected error; see the site's log"

# an unknown role; and the columns of a table, which are an example's text if the table has no header
_QUOTED = re.compile(r"'.*'|\".*\"|\(there are .*\)(?=; add it)", re.DOTALL)


_ABOUT_THE_REQUEST = (WireError, AdapterError, SettingsError)


class Cancelled(Exception):
    """The work was cancelled, since its reply is no longer awaited."""


class Diverged(Exception):
    """A visit diverged to numbers that are not finite."""


class OverExamples(Exception):
    """An error from processing the examples, whose text only this site may see."""


@contextmanager
def of_the_examples() -> Iterator[None]:
    """Treat errors in this block as depending on the examples, even those that blame the request."""
    try:
        yield
    except _ABOUT_THE_REQUEST as error:
        raise OverExamples(str(error)) from error


def server_message(error: BaseException) -> str:
    """The sentence for the server: the full message if it is about the request, else a fixed one."""
    match error:
        case PluginError():  # its message quotes an error in a module of the site
            return PLUGIN
        case Cancelled() | WireError() | AdapterError() | SettingsError():
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
    if isinstance(error, FolderError | SilosError):
        return FOLDER
    return OTHER


def log_message(error: BaseException) -> str:
    """The line for this site's log: our own message without quoted data, else the place in the code."""
    return sentence(_logged(error))


def _logged(error: BaseException) -> str:
    if isinstance(error, DataError):
        return _QUOTED.sub("(not shown)", str(error))
    if isinstance(error, ShepherdError | Cancelled | Diverged | OverExamples):
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
    """Whether memory ran out, in Python, in CUDA (matched by name without importing torch) or in torch."""
    names = {kind.__name__ for kind in type(error).__mro__}
    full = isinstance(error, OSError) and error.errno == errno.ENOMEM
    torch_says = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return full or torch_says or not names.isdisjoint({"MemoryError", "OutOfMemoryError"})
