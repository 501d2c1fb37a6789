"""In processes of their own: what is taken out of FLARE stays out."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from shepherd.silos.flare.patches import site_job

LISTED = """
import json
from nvflare.private.fed.client.admin_commands import AdminCommands
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
def listed():
    topics = [t for p in ClientRequestProcessors.request_processors for t in p.get_topics()]
    return [sorted(map(str, topics)), sorted(c.get_command_name() for c in AdminCommands.commands)]
before = listed()
from shepherd.silos.flare.patches import allowlist as commands
commands.restrict()
after = [sorted(map(str, commands.PARENT_TOPICS)), sorted(commands.JOB_COMMANDS)]
print(json.dumps([before, listed(), after]))
"""


def test_a_sites_processes_take_the_commands_of_a_job_and_no_other() -> None:
    done = subprocess.run([sys.executable, "-c", LISTED], capture_output=True, text=True, check=True)
    before, after, wanted = json.loads(done.stdout)
    assert after == wanted  # none that we allow has gone from FLARE
    gone = set(before[0]) - set(after[0])
    assert {"sys.shell", "sys.configure_site_log", "train.configure_job_log", "train.shutdown"} <= gone
    assert "configure_job_log" in set(before[1]) - set(after[1])


def test_job_processes_are_started_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(command: str) -> Any:
        monkeypatch.setattr(site_job.ClientProcessJobLauncher, "get_command", lambda *_: command)
        return site_job.Launcher().get_command({}, SimpleNamespace())

    assert (
        theirs("/usr/bin/python -u -m nvflare.private.fed.app.client.worker_process -m /kit -n job")
        == "/usr/bin/python -u -m shepherd.silos.flare.patches.site_job -m /kit -n job"
    )
    with pytest.raises(RuntimeError, match="processes differently"):
        theirs("/usr/bin/python -u -m nvflare.elsewhere -m /kit")
