"""All errors of the package, as one tree. Every message names the thing and says what to do next.

ShepherdError            anything that a person can fix; the command line prints it and exits with 2
 · SettingsError         the run file: an unknown key, a wrong type, an impossible combination
   · PluginError         a module named in the run file cannot be imported here
 · DataError             a row, a file, a field, a split
   · BadRow              one row, named by file, line and field
   · TemplateError       a template that cannot render, or trains no token
 · BaseError             the base model: missing, unreadable, or one that cannot be trained here
 · AdapterError          an adapter: a missing, extra or misshapen tensor, or one for another base
 · FolderError           a run folder: taken by another run, unreadable, or not a run at all
   · CheckpointError     a checkpoint: corrupt, incomplete, or from another run
 · FederationError       a round that could not be finished
   · QuorumNotMet        too few clients answered
   · Diverged            a round would leave numbers that are not finite
 · JudgeError            the judge: no key, out of reach, or replies that cannot be read
 · SilosError            a federation of silos: its kits, certificates, server, sites and processes
   · OutOfReach          the server cannot be reached now; trying again may help
 · SecureError           secure aggregation: a message, a key or a set of sites that the protocol refuses
 · WireError             a message between server and site: cut, changed, or of another format
 · LocalError            the socket between a site's own processes: closed during a request
   · NotListening        no process serves the socket now
 · StatisticsError       scores without a statistic: none, of differing shapes, or not finite
 · UpdateRefused         one update that failed its checks; counted as a failure, never raised to the top
"""

from shepherd.visible import shown


class ShepherdError(Exception):
    """Base of all errors that a person can fix; `str(error)` names the thing and the fix in one sentence.

    Control characters in quoted text are made visible.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


class SettingsError(ShepherdError):
    """A run file or another settings file has an unknown key or an impossible value."""


class PluginError(SettingsError):
    """A module that the run file names cannot be imported here."""


class DataError(ShepherdError):
    """The data cannot be used as they are."""


class BadRow(DataError):
    """One row of the data cannot be read; names file, line and field.

    `reason` says it without the place and the value, so that such rows can be counted; "" leaves it to the
    message.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class TemplateError(DataError):
    """A template cannot render an example, or would train no token."""


class BaseError(ShepherdError):
    """The base model is missing, unreadable, or cannot be trained here."""


class AdapterError(ShepherdError):
    """An adapter has a missing, extra or misshapen tensor, or belongs to another base."""


class FolderError(ShepherdError):
    """A run folder is taken, unreadable, or not a run."""


class CheckpointError(FolderError):
    """A checkpoint is corrupt, incomplete, or from another run."""


class NotReleased(ShepherdError):
    """The gate of a run speaks against its adapter, which is not written for others."""


class FederationError(ShepherdError):
    """A round could not be finished."""


class QuorumNotMet(FederationError):
    """Fewer clients answered than the run file asks for."""


class Diverged(FederationError):
    """A round would leave numbers that are not finite."""


class SilosError(ShepherdError):
    """A kit, a certificate, a name or a process of a federation of silos cannot be used."""


class OutOfReach(SilosError):
    """The server cannot be reached now; trying again later with the same kit may help."""


class SecureError(ShepherdError):
    """Secure aggregation stopped: a message, key, signature or set of sites is not what the protocol allows.

    Nothing of a single site is released. The round counts as failed, and starts again with new keys.
    """


class StatisticsError(ShepherdError):
    """Scores allow no statistic: there are none, their shapes differ, or one is not finite."""


class UpdateRefused(ShepherdError):
    """One update failed its checks; the round counts it as a failure."""


class JudgeError(ShepherdError):
    """The judge has no key, cannot be reached, or returns no readable verdict."""


class HubError(ShepherdError):
    """The Hugging Face hub refused what was to be published, or was not reached."""


class WireError(ShepherdError):
    """A message between server and site is cut, changed, of another format, or not what was asked for."""


class LocalError(ShepherdError):
    """The socket between a site's own processes failed: nothing listens, or the other end closed it."""


class NotListening(LocalError):
    """No process serves the socket: it has not started, or is restarting."""
