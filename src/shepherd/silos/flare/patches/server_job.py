"""FLARE's job process at the server, which would end itself where one update cannot be fetched or read.

A line that stays broken in the middle of an upload, a site that dies there, or one that sends nonsense would
end the job for every site. Here it is as where any other message cannot be read: a line in the log and no
reply. The site sends its answer again, or the round ends without it.
"""

from __future__ import annotations

from nvflare.fuel.f3.cellnet import cell


def outlive_updates() -> None:
    """Have this process live on; in the server's job process, before anybody is asked."""
    cell._is_server_job_cell = lambda my_info: False
