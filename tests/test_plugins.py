import sys
import tomllib
from dataclasses import replace

import pytest

from shepherd import plugins
from shepherd.config import PartTable
from shepherd.core import Adapter, Broadcast, Context, Parts, Seeded, Step, Update
from shepherd.errors import PluginError, SettingsError
from shepherd.overrides import dump, parse
from shepherd.settings import SplitTable
from shepherd.training.local import completed, require

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
        (
            PartTable(name="fedadgrad"),
            "no algorithm called 'fedadgrad'; there are .*fedavg, .*fedprox, .*ffa_lora",
        ),
        (PartTable(name="fedpox"), "did you mean 'fedprox'"),
        (PartTable(name=""), "no algorithm called ''"),
        (PartTable(name="__init__"), "no algorithm called '__init__'"),
        (PartTable(name="no_such_package.module"), "cannot be imported .*no_such_package"),
        (PartTable(name=".fedavg"), "cannot be imported"),
        (PartTable(name="..fedavg"), "cannot be imported"),
        (PartTable(name="os.path"), "module os.path is not a plug-in of kind algorithm; define Config"),
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


EQUAL = {"federation": {"weights": "equal"}}
SGD = {"tuning": {"optimiser": {"name": "sgd"}}}
MOMENTUM = {"tuning": {"optimiser": {"name": "sgd", "momentum": 0.9}}}
BY_SIZE = {"name": "size-weighted", "share": 0.5}
PLAIN = "is right only for local steps of plain SGD, and tuning.optimiser is "
INSTEAD = r'set \[tuning.optimiser\] name = "sgd" without momentum'


def run(**tables):
    return parse({"model": {"base": "tiny"}, "data": {"source": "world"}, **tables})


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"selection": {"name": "all", "share": 0.1}},
            "unknown key share; .*share is a key of oort, poisson, power_of_choice, round",
        ),
        ({"selection": {"name": "uniform", "size": 3}}, "unknown key size; known keys there are share$"),
        ({"selection": {"share": 0.0}}, "the selection 'uniform': key share: .* greater than 0"),
        ({"selection": {"share": 1.5}}, "the selection 'uniform': key share"),
        ({"selection": {"name": "size-weighted", "share": 0.5}}, 'set federation.weights = "equal"'),
        ({"selection": {"name": "uniformly"}}, "did you mean 'uniform'"),
        ({"split": {"by": "fair"}}, "no split called 'fair'"),
        ({"split": {"clients": 2.5}}, "the split 'iid': key clients"),
        ({"split": {"by": "natural"}}, "the split 'natural': key field is missing"),
        (
            {"split": {"by": "iid", "beta": 1}},
            "the split 'iid': unknown key beta; known keys there are clients",
        ),
        ({"aggregation": {"name": "mean", "trim": 1}}, "unknown key trim; known keys there are none"),
        ({"server": {"name": "sgd", "momentum": 0.9}}, "unknown key momentum"),
        (
            {"algorithm": {"name": "scaffold"}},
            "the algorithm 'scaffold' counts each client the same, .* set federation.weights = \"equal\"",
        ),
        ({**EQUAL, "algorithm": {"name": "scaffold"}}, f"'scaffold' {PLAIN}'adamw'; {INSTEAD}"),
        ({"algorithm": {"name": "fednova"}}, f"'fednova' {PLAIN}'adamw'; {INSTEAD}"),
        (
            {**EQUAL, "algorithm": {"name": "scaffold"}, **MOMENTUM},
            f"'scaffold' {PLAIN}'sgd' with momentum; {INSTEAD}",
        ),
        ({"algorithm": {"name": "fednova"}, **MOMENTUM}, f"'fednova' {PLAIN}'sgd' with momentum; {INSTEAD}"),
        (
            {**EQUAL, **SGD, "algorithm": {"name": "scaffold"}, "selection": BY_SIZE},
            "'scaffold' counts each client the same, and the selection 'size_weighted' .* name = \"uniform\"",
        ),
        (
            {**SGD, "algorithm": {"name": "fednova"}, "transforms": [{"name": "clip"}]},
            "the algorithm 'fednova' is right only .* the transform 'clip' .*; remove the transform",
        ),
        (
            {"algorithm": {"name": "fed_sb", "warm_up": 3}, "transforms": [{"name": "fedrot"}]},
            "'fedrot' rotates A and B together, and with the algorithm 'fed_sb'",
        ),
        (
            {"algorithm": {"name": "local_adapter"}, "adapter": {"target_parameters": ["mlp.experts.up"]}},
            'stack the matrices of experts, and .*"local_adapter" .* set adapter.target_parameters = ',
        ),
        (
            {"selection": {"name": "oort"}, "privacy": {"examples": {"norm": 1.0, "noise": 1.0}}, **EQUAL},
            "'oort' asks clients by the loss that they report, and with .*they report none; set .*uniform",
        ),
        (
            {"selection": {"name": "power_of_choice"}, "transforms": [{"name": "gaussian"}], **EQUAL},
            "'power_of_choice' draws clients by chances for which no guarantee is known, .*'gaussian'",
        ),
        (
            {"transforms": [{"name": "top_k"}, {"name": "gaussian"}], **EQUAL},
            "'top_k' encodes updates, which 'gaussian' has to bound and hide as numbers; remove top_k",
        ),
        (
            {
                "transforms": [{"name": "top_k"}],
                "server": {"name": "fedsvd"},
                "algorithm": {"name": "ffa_lora"},
            },
            "the transform 'top_k' keeps .* the server optimiser 'fedsvd' .* set feedback = false for it, or",
        ),
    ],
)
def test_a_key_of_another_file_or_a_combination_that_is_not_sound_is_refused(tables, message):
    with pytest.raises(SettingsError, match=message):
        require(run(**tables))


@pytest.mark.parametrize("name", ["oort", "power_of_choice"])
def test_a_robust_rule_is_not_fed_by_what_clients_say_of_themselves(name):
    robust = replace(plugins.aggregation(PartTable(name="mean")), robust=True)
    settings = run(selection={"name": name})
    with pytest.raises(SettingsError, match=f"'{name}' asks .* lets one that lies into every cohort"):
        plugins.selection(settings, parts=Parts(aggregation=robust))
    assert plugins.selection(settings).by_loss
    assert not plugins.selection(run(), parts=Parts(aggregation=robust)).by_loss


def test_size_that_draws_the_cohort_does_not_weigh_it_too():
    require(run(selection={"name": "size-weighted", "share": 0.5}, federation={"weights": "equal"}))


@pytest.mark.parametrize("algorithm", ["scaffold", "fednova"])
def test_what_is_derived_for_sgd_runs_under_sgd(algorithm):
    require(run(algorithm={"name": algorithm}, **SGD, **EQUAL))
    require(
        run(algorithm={"name": algorithm}, tuning={"optimiser": {"name": "sgd", "momentum": 0.0}}, **EQUAL)
    )


def test_a_hyphen_in_a_name_is_an_underscore_of_its_file():
    assert SplitTable(by="ready-made") == SplitTable(by="ready_made")
    assert run(selection={"name": "round-robin"}).selection.name == "round_robin"
    assert run(algorithm={"name": "their-package.later"}).algorithm.name == "their-package.later"


def test_a_split_from_outside_is_imported_by_its_whole_name_alone(package):
    (package / "later.py").write_text("raise AssertionError('imported')")
    with pytest.raises(PluginError, match=r"--allow-plugin their_package\.later"):
        require(run(split={"by": "their_package.later"}))


def test_defaults_are_written_out_and_change_nothing():
    settings = run(algorithm={"name": "fedprox"}, transforms=[{"name": "clip"}], split={"by": "shards"})
    whole = completed(settings)
    assert whole.algorithm.own == {"mu": 0.01}
    assert whole.split.own == {"clients": 10, "shards_per_client": 2, "field": ""}
    assert whole.selection.own == {"share": 1.0}
    assert whole.transforms[0].own == {"norm": 1.0}
    assert completed(whole) == whole
    assert parse(tomllib.loads(dump(whole))) == whole
