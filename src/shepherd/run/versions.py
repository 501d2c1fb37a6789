"""What a run was started with: Python, the libraries that decide the bits, and the source's commit."""

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
    """What differs from when the run was started, as name -> (then, now); equal bits need none of it."""
    try:
        then = json.loads((Path(path) / VERSIONS).read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}  # the record is for the reader; a run goes on without it
    now = versions()
    names = sorted(then.keys() | now.keys())
    return {n: (then.get(n, "none"), now.get(n, "none")) for n in names if then.get(n) != now.get(n)}


def versions() -> dict[str, str]:
    """Python, platform, the libraries that decide the bits, and the source commit where known."""
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
    """The commit of the checkout that `package` lies in, with + where files were changed; else ""."""
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
