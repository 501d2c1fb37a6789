"""Safe settings for a kit's `local/` folder: only this package's classes run, and no logs or files are shown.

FLARE reads NAME before NAME.default, so these files replace those of provisioning. They belong to the owner
of the kit; no message and no job can change them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from shepherd.io.atomic import write_atomic
from shepherd.silos.flare.job import CONTROLLER, EXECUTOR, MESSAGE_TIMEOUT_S

Kind = Literal["server", "site", "admin"]

ROLES = ("project_admin", "lead", "org_admin", "member")
_STORE = "nvflare.app_common.storages.filesystem_storage.FilesystemStorage"
_JOB_POLICY = "shepherd.silos.flare.job_policy.OurJob"
_MEGABYTE = 1 << 20


def files(kind: Kind) -> dict[str, dict[str, Any]]:
    """Safe settings of a kit, by file name in its `local/`."""
    if kind == "admin":
        return {}
    return {
        "resources.json": copy.deepcopy(_SERVER if kind == "server" else _SITE),
        "authorization.json": {"format_version": "1.0", "permissions": _permissions(kind)},
        "log_config.json": copy.deepcopy(_LOGS),
    }


def harden(kit: Path, kind: Kind) -> list[str]:
    """Write safe settings that are missing or were loosened; return a sentence for each restored file.

    An owner's stricter or additional settings are kept: only the keys that keep the kit safe are compared.
    """
    local = kit / "local"
    local.mkdir(mode=0o700, exist_ok=True)
    return [said for name, safe in files(kind).items() if (said := _put(local / name, safe))]


def protect(folder: Path) -> None:
    """Make `folder` and everything below it accessible to its owner only."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)


def _put(path: Path, safe: dict[str, Any]) -> str | None:
    existed = path.exists()
    found = _read(path)
    if found is not None and not (loose := _loose(path.name, found, safe)):
        return None
    write_atomic(path, json.dumps(safe, indent=2) + "\n")
    path.chmod(0o600)
    if not existed:
        return None
    why = "it could not be read" if found is None else f"{', '.join(loose)} had been loosened"
    return f"{path} was restored to its safe settings: {why}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _loose(name: str, found: Mapping[str, Any], safe: Mapping[str, Any]) -> list[str]:
    """Names of the settings in `found` that permit more than `safe`."""
    if name == "resources.json":
        return _loose_resources(found, safe)
    if name == "authorization.json":
        return _loose_permissions(found, safe)
    return []


def _loose_resources(found: Mapping[str, Any], safe: Mapping[str, Any]) -> list[str]:
    allowed, granted = found.get("class_allow_list"), safe["class_allow_list"]
    tests = {
        "class_allow_list": isinstance(allowed, list) and all(entry in granted for entry in allowed),
        "class_list_enforcement_mode": found.get("class_list_enforcement_mode") == "enforce",
        "allow_log_streaming": found.get("allow_log_streaming") is False,
        "app_validator": found.get("app_validator") == safe["app_validator"],
        "components": _paths(found) <= _paths(safe),
    }
    return [key for key, kept in tests.items() if not kept]


def _paths(resources: Mapping[str, Any]) -> set[str]:
    parts = resources.get("components")
    parts = parts if isinstance(parts, list) else []
    return {str(part.get("path") if isinstance(part, dict) else part) for part in parts}


def _loose_permissions(found: Mapping[str, Any], safe: Mapping[str, Any]) -> list[str]:
    permissions = found.get("permissions")
    if not isinstance(permissions, dict):
        return ["permissions"]
    return [
        f"{role}.{right}" if right else str(role)
        for role, rights in permissions.items()
        for right in _looser(rights, safe["permissions"].get(role, {}))
    ]


def _looser(rights: Any, safe: Mapping[str, str]) -> list[str]:
    if not isinstance(rights, dict):
        return [] if rights == "none" else [""]  # one word for all rights
    return [str(r) for r, condition in rights.items() if condition not in ("none", safe.get(r))]


def _permissions(kind: Kind) -> dict[str, dict[str, str]]:
    return {role: {**_NOTHING, **_RIGHTS[kind].get(role, {})} for role in ROLES}


_NOTHING = {
    "submit_job": "none",
    "clone_job": "none",
    "manage_job": "none",
    "download_job": "none",
    "view": "none",
    "app_command": "none",  # what the coordinator asks our controller
    "operate": "none",
    "shell_commands": "none",
    "byoc": "none",
    "server-predeployed-flwr": "none",
}
_SEE = {"view": "any"}
_ASK = {"check_status": "any"}  # which jobs run at a site
# a new logging configuration can have any callable built, so nobody sends one
_NO_LOGGING = {"configure_job_log": "none", "configure_site_log": "none"}
_OPERATE = {"disable_client": "any", "enable_client": "any", "remove_client": "any"}
_RIGHTS: dict[Kind, dict[str, dict[str, str]]] = {
    "server": {
        "project_admin": {
            **_SEE,
            **_NO_LOGGING,
            **_OPERATE,
            "submit_job": "any",
            "manage_job": "any",
            "app_command": "any",
        },
        "lead": {
            **_SEE,
            **_NO_LOGGING,
            "submit_job": "any",
            "manage_job": "n:submitter",
            "app_command": "n:submitter",
        },
        "org_admin": _SEE,
        "member": _SEE,
    },
    "site": {
        "project_admin": {**_ASK, "submit_job": "any"},
        "lead": {**_ASK, "submit_job": "any"},
        "org_admin": _ASK,
        "member": _ASK,
    },
}

_SERVER: dict[str, Any] = {
    "format_version": 2,
    "class_list_enforcement_mode": "enforce",
    "class_allow_list": [CONTROLLER],
    "app_validator": {"path": _JOB_POLICY, "args": {"kind": "server"}},
    "allow_log_streaming": False,
    "servers": [
        {
            "admin_storage": "transfer",
            "max_num_clients": 1000,
            "heart_beat_timeout": 30,  # s without a heartbeat until a site is taken for gone; FLARE: 600
            "download_job_url": "",
            "admin_timeout": 10.0,
        }
    ],
    "components": [
        {
            "id": "job_scheduler",
            "path": "nvflare.app_common.job_schedulers.job_scheduler.DefaultJobScheduler",
            "args": {
                "max_jobs": 4,
                "max_schedule_count": 1_000_000,  # a job waits for its sites as long as it takes
                "min_schedule_interval": 1.0,
                "max_schedule_interval": 10.0,
            },
        },
        {
            "id": "job_manager",
            "path": "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
            "args": {"uri_root": "jobs", "job_store_id": "job_store"},  # in the kit; see parent.py
        },
        {"id": "job_store", "path": _STORE},
        {
            "id": "process_launcher",
            "path": "nvflare.app_common.job_launcher.server_process_launcher.ServerProcessJobLauncher",
            "args": {},
        },
    ],
}

_SITE: dict[str, Any] = {
    "format_version": 2,
    "class_list_enforcement_mode": "enforce",
    "class_allow_list": [EXECUTOR],
    "app_validator": {"path": _JOB_POLICY, "args": {"kind": "site"}},
    "allow_log_streaming": False,
    "client": {
        "retry_timeout": 30,
        "compression": "Gzip",
        "communication_timeout": MESSAGE_TIMEOUT_S,  # of a request for a task, which may be lost
    },
    "components": [
        {
            "id": "resource_manager",
            "path": "nvflare.app_common.resource_managers.gpu_resource_manager.GPUResourceManager",
            "args": {"num_of_gpus": 0, "mem_per_gpu_in_GiB": 0, "expiration_period": 300},
        },
        {
            "id": "resource_consumer",
            "path": "nvflare.app_common.resource_consumers.gpu_resource_consumer.GPUResourceConsumer",
            "args": {},
        },
        {
            "id": "process_launcher",
            "path": "shepherd.silos.flare.patches.site_job.Launcher",
            "args": {},
        },
    ],
}

_LOGS: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "plain": {
            "()": "nvflare.fuel.utils.log_utils.BaseFormatter",
            "fmt": "%(asctime)s - %(name)s - %(levelname)s - %(fl_ctx)s - %(message)s",
        }
    },
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "level": "INFO",
            "formatter": "plain",
            "stream": "ext://sys.stdout",
        },
        "file": {
            "class": "logging.handlers.RotatingFileHandler",
            "level": "INFO",
            "formatter": "plain",
            "filename": "log.txt",
            "mode": "a",
            "maxBytes": 5 * _MEGABYTE,
            "backupCount": 3,
        },
    },
    "loggers": {"root": {"level": "INFO", "handlers": ["console", "file"]}},
}
