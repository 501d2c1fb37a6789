"""A server that only aggregates, where nothing else is installed: a script, run by test_distributions.

    python -m tests.serving FOLDER [--as-if-installed DISTRIBUTION ...]

With the option, the environment's other distributions are hidden, as if only these were installed.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SERVER = (
    *("silos.server.server_run", "plugins", "run.checkpoint", "ui.cli.main"),
    "silos.coordinator.status_update",
)
"""What a server's rounds need, whatever carries the messages."""
OVER_FLARE = (
    *(
        "silos.server.serve",
        "silos.server.kept_runs",
        "silos.coordinator.admin",
        "ui.terminal.federation_tables",
    ),
    *("silos.flare.controller", "silos.flare.patches.site_parent", "silos.flare.provision"),
)
HEAVY = ("accelerate", "datasets", "huggingface_hub", "peft", "pyarrow", "scipy", "torch", "transformers")


class Hiding:
    """A finder that does not find some top-level modules."""

    def __init__(self, finder: Any, hidden: Iterable[str]) -> None:
        self.finder, self.hidden = finder, frozenset(hidden)

    def __getattr__(self, name: str) -> Any:  # importlib.metadata asks for more than modules
        return getattr(self.finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self.hidden:
            return None
        found: ModuleSpec | None = self.finder.find_spec(name, path, target)
        return found


def hide_all_but(distributions: Sequence[str]) -> None:
    """Hide the modules of every distribution that these, and what they require, do not bring."""
    there = closure(distributions)
    modules = metadata.packages_distributions()
    hidden = {name for name, owners in modules.items() if not there.intersection(map(normal, owners))}
    hidden -= {"shepherd", "tests", "__pycache__"}
    assert {"torch", "transformers", "peft"} <= hidden
    sys.meta_path[:] = [Hiding(finder, hidden) for finder in sys.meta_path]


def closure(names: Iterable[str]) -> set[str]:
    """These distributions and all that they require without extras."""
    found: set[str] = set()
    waiting = [normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another Python or platform
            continue
        waiting += [normal(requirement) for requirement in required if "extra ==" not in requirement]
    return found


def normal(requirement: str) -> str:
    """The distribution's name in its one normal form (PEP 503)."""
    found = re.match(r"[\w.-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def import_the_server() -> None:
    """Every module of the server, and every plug-in of a method."""
    from shepherd import plugins

    for kind in plugins.KINDS:
        for name in plugins.names(kind.folder):
            importlib.import_module(f"{kind.folder.__name__}.{name}")
    for name in (*SERVER, *(OVER_FLARE if find_spec("nvflare") else ())):
        importlib.import_module(f"shepherd.{name}")


def go_through_rounds(folder: Path) -> None:
    """Two rounds with three sites that are functions of numpy's, held against a mean worked out by hand."""
    import numpy as np

    from shepherd import plugins, rounds
    from shepherd.core import Adapter
    from shepherd.overrides import parse, plain
    from shepherd.run import checkpoint
    from shepherd.run.checkpoint import Checkpoint
    from shepherd.silos.protocol.jobspec import JobSpec
    from shepherd.silos.server.server_run import ServerRun
    from shepherd.version import version
    from tests.silos.server.posts import Letters, honest

    assert version() != "unknown"
    name = "q.lora_A.weight"
    settings = parse(
        {
            "model": {"base": "tiny"},
            "data": {"source": "world"},
            "federation": {"rounds": 2},
            "silos": {"deadline_s": 5.0},
            "transforms": [{"name": "clip", "norm": 100.0}],
        }
    )
    state = rounds.start(plugins.method(settings), Adapter({name: np.ones((2, 3))}))
    notes: dict[str, Any] = {"positions": {}, "row": None, "base": "f"}
    given = checkpoint.save(folder / "given", Checkpoint(state=state, notes=notes), keep=1)
    order = JobSpec(
        run="0" * 16,
        base="b" * 64,
        fingerprint="f",
        version=version(),
        sites=("a", "b", "c"),
        settings=plain(settings),
    )
    post = Letters({"a": honest("a", 1.0), "b": honest("b", 2.0, weight=2.0), "c": honest("c", 4.0)})
    service = ServerRun(order, folder / "home", given, post)
    service.run()

    told = service.snapshot({"rows": 0, "said": 0})
    assert told["outcome"] == {"finished": True}, told
    assert [sorted(row.get("weights", ())) for row in told["rows"]] == [[], ["a", "b", "c"], ["a", "b", "c"]]
    last = checkpoint.load(folder / "home" / "checkpoints" / "round-00002")
    np.testing.assert_allclose(last.state.adapter[name], 1 + 2 * (1 * 1 + 2 * 2 + 1 * 4) / 4)


def command(*words: str) -> None:
    """`shepherd WORDS ...` in this process, up to its exit."""
    from shepherd.ui.cli.main import main

    try:
        main(words, prog_name="shepherd")
    except SystemExit as ended:
        print(f"shepherd {words[0]} ended with {ended.code}")


def main(folder: Path, distributions: Sequence[str]) -> None:
    if distributions:
        hide_all_but(distributions)
    import_the_server()
    go_through_rounds(folder)
    assert not set(HEAVY) & set(sys.modules)
    run_file = folder / "run.toml"
    run_file.write_text(f'output = "{folder / "run"}"\n[model]\nbase = "tiny"\n[data]\nsource = "world"\n')
    command("run", str(run_file))
    if find_spec("nvflare"):
        command("silos", "create", str(folder / "federation"), "--server", "localhost", "--site", "a")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[3:])
