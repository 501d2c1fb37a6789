"""FLARE's job process at a site, with our `allowlist` and `tls`; run as a module by `Launcher`."""

from __future__ import annotations

import runpy

from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher

_THEIRS = "nvflare.private.fed.app.client.worker_process"
_OURS = "shepherd.silos.flare.patches.site_job"


class Launcher(ClientProcessJobLauncher):  # type: ignore[misc]
    """Starts a site's job processes as this module."""

    def get_command(self, job_meta, fl_ctx):  # type: ignore[no-untyped-def]
        command = str(super().get_command(job_meta, fl_ctx))
        if f"-m {_THEIRS} " not in command:
            raise RuntimeError(
                "this version of FLARE starts its job processes differently; install nvflare 2.9"
            )
        return command.replace(f"-m {_THEIRS} ", f"-m {_OURS} ", 1)


if __name__ == "__main__":
    from shepherd.silos.flare import tls
    from shepherd.silos.flare.patches.allowlist import restrict
    from shepherd.visible import in_this_process

    in_this_process()
    restrict()
    tls.limit_unconfirmed_time()
    tls.require_server_identity()
    runpy.run_module(_THEIRS, run_name="__main__", alter_sys=True)
