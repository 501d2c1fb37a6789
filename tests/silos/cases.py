"""Every case of a stranger, in the order in which one federation can bear them: a removal is the last."""

from __future__ import annotations

from collections.abc import Callable

from tests.silos import strange_jobs, strange_requests, strangers
from tests.silos.scene import Scene
from tests.silos.strangers import Tried

Case = Callable[[Scene, int], Tried]

CASES: dict[str, Case] = {
    "no certificate": strangers.no_certificate,
    "self-made authority": strangers.self_made,
    "expired": strangers.expired,
    "another site": strangers.another_site,
    "site as administrator": strangers.site_as_administrator,
    "replayed connection": strangers.replayed_connection,
    "org_admin": strange_jobs.no_right_to_submit("org_admin", "olga"),
    "member": strange_jobs.no_right_to_submit("member", "max"),
    "code at the server": strange_jobs.code_at_server,
    "code at a site": strange_jobs.code_at_site,
    "class at the server": strange_jobs.class_at_server,
    "class at a site": strange_jobs.class_at_site,
    "FLARE's class at the server": strange_jobs.flares_class_at_server,
    "FLARE's class at a site": strange_jobs.flares_class_at_site,
    "same message again": strange_requests.same_message_again,
    "another question": strange_requests.another_question,
    "old message": strange_requests.old_message,
    **{f"policy {number}": case for number, case in enumerate(strange_requests.POLICY, 1)},
    "removed administrator": strangers.removed_administrator,
    "removed while it runs": strangers.removed_while_running,
    "removed, after a restart": strangers.removed_after_restart,
}
