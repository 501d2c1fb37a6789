"""A site's owner writes the model of the site's own, from what the site keeps alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner

from shepherd.core import Adapter, Broadcast, Update
from shepherd.errors import BaseError, FolderError, SettingsError
from shepherd.model import files
from shepherd.run.loading import load_base
from shepherd.silos.protocol.wire import Scores
from shepherd.silos.site import own_model
from shepherd.silos.site.site_settings import SiteSettings, settings_at_site
from shepherd.silos.site.site_store import Store
from shepherd.silos.site.trainer import Trainer
from shepherd.ui.cli import main
from tests.silos.site import trained
from tests.silos.site.test_trainer import simulated
from tests.silos.site.trained import NAME, RUN, ask, blank, reason, request, tables

METHODS = {"fedsa_lora": {"name": "fedsa_lora"}, "local_adapter": {"name": "local_adapter", "rank": 1}}


def site(base: Path, source: Path, **policy: Any) -> SiteSettings:
    return trained.settings(base, source, algorithms=["fedprox", *METHODS], **policy)


def asked_for(name: str) -> dict[str, Any]:
    return tables(algorithm=METHODS[name], tuning={"max_steps": 2})


class Played:
    """A site that trained two rounds of a run, and was scored after the second."""

    def __init__(self, base: Path, source: Path, home: Path, name: str, score: bool = True) -> None:
        self.site, self.home, self.plain = site(base, source), home, asked_for(name)
        self.base = load_base(settings_at_site(self.site, self.plain, str(base)))
        here = simulated(self.base, source, base, self.plain)
        trainer, sent = Trainer(self.site, NAME, home), blank(self.base)
        self.updates: list[Update] = []
        for round in (0, 1):
            list(here.run(sent, [NAME]))
            found = ask(trainer, request(base, sent, settings=self.plain))
            assert isinstance(found, Update)
            self.updates.append(found)
            zeros = {n: np.zeros_like(t) for n, t in sent.adapter.items()}
            moved = sent.adapter.plus(Adapter({**zeros, **found.delta}), 0.5)
            sent = Broadcast(round=round + 1, adapter=moved, seed=7 + round, transforms=({},))
        self.sent, self.trainer = sent, trainer
        if score:
            assert isinstance(ask(trainer, request(base, sent, "score", settings=self.plain)), Scores)
        self.due = here.own_adapter(sent, NAME)
        trainer.stop()
        trainer._worker.shutdown()


@pytest.fixture(scope="module", params=list(METHODS))
def played(request, llama_folder, source, tmp_path_factory) -> Played:
    return Played(llama_folder, source, tmp_path_factory.mktemp("kit") / "shepherd", request.param)


def test_it_is_the_model_that_the_client_has_in_one_process(played, tmp_path) -> None:
    """Law 2: bit for bit, with the common part of after the last round."""
    assert own_model.export(played.home, played.site, tmp_path / "own") == 2
    found = files.read(tmp_path / "own", played.base)
    assert found == played.due
    assert found != played.sent.adapter


def test_the_command_writes_it_and_says_of_which_round(played, tmp_path) -> None:
    config = tmp_path / "site.toml"
    config.write_text(tomli_w.dumps(played.site.model_dump(exclude_none=True)))
    words = ["silos", "export", str(played.home.parent), "--config", str(config), "-o", str(tmp_path / "own")]
    said = CliRunner().invoke(main.main, words)
    assert said.exit_code == 0, said.output
    assert said.output == (
        f"wrote {tmp_path / 'own'}: what this site keeps, with the common part as after 2 rounds\n"
    )
    assert files.read(tmp_path / "own", played.base) == played.due
    before = {path: path.read_bytes() for path in (tmp_path / "own").iterdir()}
    again = CliRunner().invoke(main.main, words)
    assert again.exit_code != 0
    assert before == {path: path.read_bytes() for path in (tmp_path / "own").iterdir()}


def test_without_a_score_the_common_part_is_that_of_the_last_visit(llama_folder, source, tmp_path) -> None:
    made = Played(llama_folder, source, tmp_path / "shepherd", "fedsa_lora", score=False)
    assert own_model.export(made.home, made.site, tmp_path / "own") == 1
    found = files.read(tmp_path / "own", made.base)
    for name, tensor in made.due.items():
        assert np.array_equal(found[name], tensor) == (".lora_B." in name), name


@pytest.mark.parametrize("damage", ["scored", "started"])
def test_a_file_that_a_power_cut_spoilt_is_not_read(played, tmp_path, damage) -> None:
    home = shutil.copytree(played.home, tmp_path / "shepherd")
    for start in (home / "state" / RUN).glob("start-00003" if damage == "scored" else "start-*"):
        start.write_bytes(bytes(start.stat().st_size))
    if damage == "scored":
        assert own_model.export(home, played.site, tmp_path / "own") == 1
    else:
        with pytest.raises(FolderError, match="sent to this site is lost"):
            own_model.export(home, played.site, tmp_path / "own")


def test_what_cannot_be_written_is_named(played, llama_folder, source, tmp_path) -> None:
    with pytest.raises(FolderError, match="keeps no run; give the kit of a site that has trained"):
        own_model.export(tmp_path / "nothing", played.site, tmp_path / "own")
    with pytest.raises(FolderError, match=f"keeps no run abc; it keeps {RUN}"):
        own_model.export(played.home, played.site, tmp_path / "own", run="abc")
    with pytest.raises(SettingsError, match=r"no exporter called 'pelf'; .* did you mean 'peft'"):
        own_model.export(played.home, played.site, tmp_path / "own", to="pelf")
    strict = played.site.model_copy(update={"bases": ()})
    with pytest.raises(BaseError, match="no base of this site has the digest"):
        own_model.export(played.home, strict, tmp_path / "own")
    home = shutil.copytree(played.home, tmp_path / "shepherd")
    (kept,) = Store(home).kept(RUN)[-1:]
    Store(home).save("f" * 16, kept)
    with pytest.raises(FolderError, match=f"name one with --run: {RUN}, {'f' * 16} "):
        own_model.export(home, played.site, tmp_path / "own")
    assert own_model.export(home, played.site, tmp_path / "own", run=RUN) == 2
    Store(home).save("e" * 16, replace(kept, settings={}))
    with pytest.raises(FolderError, match="kept by an earlier version"):
        own_model.export(home, played.site, tmp_path / "other", run="e" * 16)
    common = {**kept.settings, "algorithm": {"name": "fedprox"}}
    Store(home).save("d" * 16, replace(kept, settings=common))
    with pytest.raises(SettingsError, match=r"'fedprox' of run d* gives all sites one model"):
        own_model.export(home, played.site, tmp_path / "other", run="d" * 16)


def test_an_a_from_nowhere_is_not_scored_through_the_b_that_a_site_keeps(
    llama_folder, source, tmp_path
) -> None:
    """With FedSA-LoRA the server sends B = 0, so what it sends looks blank whatever its A is."""
    made = Played(llama_folder, source, tmp_path / "shepherd", "fedsa_lora")
    trainer = Trainer(made.site, NAME, made.home)
    far = replace(made.sent, round=3, adapter=made.sent.adapter.times(50.0))
    said = reason(ask(trainer, request(llama_folder, far, "score", settings=made.plain)))
    assert "this is neither" in said
    assert "loss" not in ask(trainer, request(llama_folder, far, settings=made.plain)).metrics
    trainer.stop()
    trainer._worker.shutdown()
