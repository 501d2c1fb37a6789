"""The notebook of examples/ runs from its first cell to its last in a kernel of its own."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from shepherd import plots

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "from-data-to-plots.ipynb"
SMALLER = {'"limit": 16': '"limit": 6', '"rounds": 3': '"rounds": 2', '"max_steps": 4': '"max_steps": 1'}
SECONDS = 600
PLOTS = ("clients", "loss", "gap", "fairness", "bytes_moved")


@pytest.fixture(scope="module")
def ran() -> Any:
    """The notebook after its run with smaller numbers; a cell that fails fails here."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient").NotebookClient
    pytest.importorskip("ipykernel")
    text = NOTEBOOK.read_text(encoding="utf8")
    for old, new in SMALLER.items():
        old, new = (json.dumps(each)[1:-1] for each in (old, new))
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    book = nbformat.reads(text, as_version=4)
    # a kernel has the sources of this checkout, and one thread for each process
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    client(book, timeout=SECONDS, kernel_name="python3").execute(env=env)
    return book


def outputs(book: Any, source: str) -> list[Any]:
    """The outputs of the one cell whose code contains a text."""
    (cell,) = [cell for cell in book.cells if cell.cell_type == "code" and source in cell.source]
    return list(cell.outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_it_runs_from_data_to_plots(ran: Any) -> None:
    text = "".join(each.get("text", "") for each in outputs(ran, "open_run"))
    found = re.findall(r"^round (\d): training loss ([\d.]+), held out ([\d.]+), gap ([\d.]+)$", text, re.M)
    assert [number for number, *_ in found] == ["1", "2"]
    assert all(0 < float(loss) < 12 for _, *losses, _ in found for loss in losses)
    for name in PLOTS:
        (picture,) = [each for each in outputs(ran, f"plots.{name}(") if "data" in each]
        assert picture["data"]["image/png"]
    answers = "".join(each.get("text", "") for each in outputs(ran, "shepherd.generate"))
    assert re.fullmatch(r"(.* -> .*\n+){2}", answers)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_there_is_a_bar_for_each_round(ran: Any) -> None:
    pytest.importorskip("ipywidgets", reason="the extra [notebook]")
    shown = [each["data"]["text/plain"] for each in outputs(ran, "open_run") if "data" in each]
    assert [text.split(":")[0] for text in shown if text.startswith("round")] == ["round 1/2", "round 2/2"]


def test_what_is_committed_was_executed_and_in_order() -> None:
    book = json.loads(NOTEBOOK.read_text(encoding="utf8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}  # no error
    assert not {"/tmp", "/work", "/home"} & set(re.findall(r"/(?:tmp|work|home)\b", json.dumps(book)))


def test_every_plot_is_in_it() -> None:
    source = NOTEBOOK.read_text(encoding="utf8")
    assert {name for name in plots.__all__ if f"plots.{name}" in source} == set(plots.__all__)
