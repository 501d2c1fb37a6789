"""What FLARE's server may tell a site's processes to do: what a job needs, and nothing else.

A site asks its `authorization.json` only where the server's message says that it should. A server in the
wrong hands would leave that out, and read the site's files with FLARE's shell commands, or have any
callable built by a new logging configuration. So those commands are taken out of the processes.
"""

from __future__ import annotations

from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.private.defs import TrainingTopic
from nvflare.private.fed.client.admin_commands import AdminCommands
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

PARENT = frozenset(
    {
        TrainingTopic.CHECK_RESOURCE,
        TrainingTopic.CANCEL_RESOURCE,
        TrainingTopic.DEPLOY,
        TrainingTopic.START_JOB,
        TrainingTopic.CHECK_STATUS,
        TrainingTopic.NOTIFY_JOB_STATUS,
        TrainingTopic.ABORT,
        TrainingTopic.ABORT_TASK,
        TrainingTopic.DELETE_RUN,
    }
)
JOB = frozenset(
    {
        AdminCommandNames.CHECK_STATUS,
        AdminCommandNames.ABORT,
        AdminCommandNames.ABORT_TASK,
        AdminCommandNames.SHUTDOWN,
    }
)


def restrict() -> None:
    """Take every other command out of this process; before FLARE starts in it."""
    processors = ClientRequestProcessors.request_processors
    processors[:] = [one for one in processors if PARENT.issuperset(one.get_topics())]
    commands = AdminCommands.commands
    commands[:] = [one for one in commands if one.get_command_name() in JOB]
