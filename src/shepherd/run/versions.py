"""Versions that a run was started with: Python, the libraries that decide its bits, and the commit."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from shepherd.version import version

VERSIONS = "versions.json"
GIT_TIMEOUT_S = 5
_PACKAGES = ("torch", "transformers", "peft", "datasets", "numpy", "safetensors")


def changed_versions(path: str | Path) -> dict[str, tuple[str, str]]:
    """Versions that differ from those at the run's start, as name -> (then, now); none means equal bits."""
    then = kept(path)
    if not then:
        return {}
    now = versions()
    names = sorted(then.keys() | now.keys())
    return {n: (then.get(n, "none"), now.get(n, "none")) for n in names if then.get(n) != now.get(n)}


def kept(path: str | Path) -> dict[str, str]:
    """Versions that the run in a folder was started with; empty if they are lost or damaged."""
    try:
        found = json.loads((Path(path) / VERSIONS).read_text(encoding="utf8"))
        return {str(name): str(each) for name, each in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}  # only information; a run continues without it


def versions() -> dict[str, str]:
    """Versions of Python, platform, the libraries that decide the bits, and the source commit if known."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "shepherd-fit": version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit(Path(__file__).parent.parent)
    return {**found, "commit": commit} if commit else found


def _commit(package: Path) -> str:
    """Commit of the checkout that contains `package`, with + if files were changed; else ""."""
    try:
        top = Path(_git(package, "rev-parse", "--show-toplevel"))
        if top / "src" / package.name != package:
            return ""  # installed inside somebody else's repository
        dirty = "+" if _git(package, "status", "--porcelain", "--", str(package)) else ""
        return _git(package, "rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(where: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(where), *words], capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True
    )
    return done.stdout.strip()
