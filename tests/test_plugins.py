import sys

import pytest

from shepherd import plugins
from shepherd.config import PartTable
from shepherd.core import Adapter, Broadcast, Context, Seeded, Step, Update
from shepherd.errors import PluginError, SettingsError

OUTSIDE = """
from dataclasses import replace
from pydantic import BaseModel
from shepherd.algorithms import fedavg

class Config(BaseModel):
    start: int = 0

def build(config):
    return replace(fedavg.ALGORITHM, trainable=lambda name, round: round >= config.start)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable `their_package` outside of Shepherd."""
    folder = tmp_path / "their_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("their_package")]:
        del sys.modules[name]


def test_the_file_is_the_plug_in_and_its_keys_reach_it():
    prox = plugins.algorithm(PartTable(name="fedprox", mu=2.0))
    broadcast = Broadcast(round=0, adapter=Adapter({"w": [1.0]}), seed=0)
    step = Step(index=0, rates=0.1)
    assert prox.correct("w", 0.5, 4.0, broadcast, {}, step) == 0.5 + 2.0 * (4.0 - 1.0)


def test_transforms_are_chained_in_their_order():
    chained = plugins.transform([PartTable(name="clip", norm=4.0), PartTable(name="clip", norm=1.0)])
    update = Update(round=0, delta=Adapter({"w": [8.0]}), weight=1.0, clients=("c",))
    assert chained.on_client(update, chained.init(Context()), Seeded(0)).delta.norm() == pytest.approx(1.0)
    assert len(chained.init(Context())) == 2


def test_no_transform_is_an_empty_chain():
    update = Update(round=0, delta=Adapter({"w": [8.0]}), weight=1.0, clients=("c",))
    nothing = plugins.transform([])
    assert nothing.init(Context()) == ()
    assert nothing.on_client(update, (), Seeded(0)) is update


def test_a_dotted_name_is_a_module_outside(package):
    (package / "later.py").write_text(OUTSIDE)
    later = plugins.algorithm(PartTable(name="their_package.later", start=3), ["their_package.later"])
    assert [later.trainable("w", round) for round in (2, 3)] == [False, True]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (PartTable(name="fedadgrad"), "no algorithm called 'fedadgrad'; there are fedavg, fedprox, ffa_lora"),
        (PartTable(name="fedpox"), "did you mean 'fedprox'"),
        (PartTable(name=""), "no algorithm called ''"),
        (PartTable(name="__init__"), "no algorithm called '__init__'"),
        (PartTable(name="no_such_package.module"), "cannot be imported .*no_such_package"),
        (PartTable(name=".fedavg"), "cannot be imported"),
        (PartTable(name="..fedavg"), "cannot be imported"),
        (PartTable(name="os.path"), "module os.path is no algorithm; give it a Config"),
        (
            PartTable(name="fedprox", mew=1.0),
            "the algorithm 'fedprox': unknown key mew; known keys there are mu",
        ),
        (PartTable(name="fedprox", mu="strong"), "the algorithm 'fedprox': key mu: .*number"),
        (PartTable(name="fedavg", mu=1.0), "unknown key mu"),
    ],
)
def test_what_cannot_be_built_says_why(table, message):
    with pytest.raises(SettingsError, match=message):
        plugins.algorithm(table, [table.name])


def test_an_algorithm_is_no_transform():
    with pytest.raises(SettingsError, match="no transform called 'fedavg'; there are clip"):
        plugins.transform([PartTable(name="fedavg")])


def test_a_module_with_an_import_that_fails_says_which(package):
    (package / "broken.py").write_text("import a_library_nobody_has")
    with pytest.raises(SettingsError, match=r"their_package\.broken.*a_library_nobody_has"):
        plugins.algorithm(PartTable(name="their_package.broken"), {"their_package.broken"})


@pytest.mark.parametrize(
    ("text", "fault"),
    [("def x(:", "SyntaxError"), ("1 / 0", "ZeroDivisionError"), ("raise SystemExit(0)", "SystemExit")],
)
def test_a_module_that_fails_while_it_is_imported_is_named(package, text, fault):
    (package / "broken.py").write_text(text)
    with pytest.raises(PluginError, match=rf"'their_package\.broken' cannot be imported \({fault}"):
        plugins.algorithm(PartTable(name="their_package.broken"), {"their_package.broken"})


@pytest.mark.parametrize("allowed", [(), ("their_package",), ("their_package.later.x",), ("later",)])
def test_a_module_outside_is_imported_by_its_whole_name_alone(package, allowed):
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "later.py").write_text(OUTSIDE)
    for ask in (
        lambda: plugins.algorithm(PartTable(name="their_package.later"), allowed),
        lambda: plugins.transform([PartTable(name="clip"), PartTable(name="their_package.later")], allowed),
    ):
        with pytest.raises(PluginError, match=r"--allow-plugin their_package\.later"):
            ask()


def test_a_name_inside_needs_nobodys_word(package):
    assert plugins.algorithm(PartTable(name="fedprox", mu=1.0), allowed=()).correct is not None
