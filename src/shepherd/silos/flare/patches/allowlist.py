"""Allow FLARE's server only the commands to a site that a job needs.

A site checks its `authorization.json` only if the server's message says so. A compromised server would leave
that out, and read the site's files with FLARE's shell commands, or have any callable built by a new logging
configuration. So all other commands are removed from the site's processes.
"""

from __future__ import annotations

from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.private.defs import TrainingTopic
from nvflare.private.fed.client.admin_commands import AdminCommands
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

PARENT_TOPICS = frozenset(
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
JOB_COMMANDS = frozenset(
    {
        AdminCommandNames.CHECK_STATUS,
        AdminCommandNames.ABORT,
        AdminCommandNames.ABORT_TASK,
        AdminCommandNames.SHUTDOWN,
    }
)


def restrict() -> None:
    """Remove all other commands from this process; to be called before FLARE starts in it."""
    processors = ClientRequestProcessors.request_processors
    processors[:] = [one for one in processors if PARENT_TOPICS.issuperset(one.get_topics())]
    commands = AdminCommands.commands
    commands[:] = [one for one in commands if one.get_command_name() in JOB_COMMANDS]
