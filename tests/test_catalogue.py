"""The list of plug-ins: the package's own with their keys, and others' from their metadata alone."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from shepherd import catalogue, plugins
from shepherd.data.split import SPLIT
from shepherd.errors import PluginError, SettingsError
from shepherd.ui.cli.main import main

LISTING = """
[shepherd.aggregations]
median = their_package.median
[shepherd.splits]
odd = their_package.odd
"""
MEDIAN = '''"""The median of every coordinate.\x1b[2J"""
from pydantic import BaseModel
class Config(BaseModel):
    trim: int = 0
def build(config):
    raise AssertionError
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A distribution that lists two modules; importing the package fails unless it is allowed."""
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "__init__.py").write_text("")
    (tmp_path / "their_package" / "median.py").write_text(MEDIAN)
    (tmp_path / "their_package" / "odd.py").write_text("raise AssertionError('imported')")
    metadata = tmp_path / "their_package-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(LISTING)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("their_package")]:
        del sys.modules[name]


def test_every_module_of_every_kind_is_there_with_a_line_and_all_of_its_keys() -> None:
    for kind in catalogue.KINDS:
        found = catalogue.own(kind)
        assert [plugin.name for plugin in found] == plugins.names(kind.folder)
        for plugin in found:
            assert plugin.doc.endswith(".")
            fields = plugins.module_of(kind, plugin.name).Config.model_fields
            assert [key.name for key in plugin.keys] == list(fields)
            assert all(key.doc.endswith(".") for key in plugin.keys), plugin.name


def test_others_are_listed_from_their_metadata_and_not_imported(package: None) -> None:
    (median,) = catalogue.others(plugins.AGGREGATION)
    assert (median.name, median.package) == ("their_package.median", "their-package 1.2")
    assert not median.imported
    assert not median.keys
    (odd,) = catalogue.others(SPLIT)
    assert odd.name == "their_package.odd"
    assert not any(name.startswith("their_package") for name in sys.modules)


def test_one_that_is_allowed_by_name_shows_its_keys(package: None) -> None:
    (median,) = catalogue.others(plugins.AGGREGATION, {"their_package.median"})
    assert [(key.name, key.default) for key in median.keys] == [("trim", 0)]
    with pytest.raises(PluginError, match=r"their_package\.odd.*imported"):
        catalogue.others(SPLIT, {"their_package.odd"})


def test_the_command_lists_the_kinds_that_it_is_asked_for(package: None) -> None:
    whole = CliRunner().invoke(main, ["plugins"])
    assert whole.exit_code == 0
    assert all(kind.group in whole.output for kind in catalogue.KINDS)
    assert (
        "their_package.odd [their-package 1.2]: not imported; --allow-plugin their_package.odd"
        in whole.output
    )
    some = CliRunner().invoke(main, ["plugins", "aggregations", "--allow-plugin", "their_package.median"])
    assert "trim (default 0)" in some.output
    assert "shepherd.splits" not in some.output
    assert "\x1b" not in some.output


def test_an_unknown_kind_is_one_sentence() -> None:
    with pytest.raises(SettingsError, match="no kind of plug-in called 'spltis'; choose from algorithms, "):
        catalogue.kinds_named(["spltis"])


def test_the_list_needs_no_torch() -> None:
    code = """
import sys
from shepherd import catalogue
assert list(catalogue.lines(catalogue.KINDS))
print('torch' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
