"""Write the model of a site's own, where the algorithm of a run leaves a part of it with each site.

It is made of what the site keeps and of the last adapter that it was sent, as a client's in one process
(`run.answerer.own_adapter_of`). Nothing is sent, and nothing of another site is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shepherd import plugins
from shepherd.config import PartTable
from shepherd.core import Broadcast, ClientInfo
from shepherd.data.template import Template, stop_ids
from shepherd.errors import FolderError, SettingsError
from shepherd.federation.clients import of_algorithm
from shepherd.model import licences
from shepherd.model.exporting import EXPORTER, Exporter, Trained
from shepherd.overrides import assigned
from shepherd.run import folder
from shepherd.run.loading import load_base
from shepherd.silos.site import allowed_bases
from shepherd.silos.site.site_settings import SiteSettings, settings_at_site
from shepherd.silos.site.site_store import KEPT_RUNS, AnsweredRound, Store


def export(
    home: Path, site: SiteSettings, output: Path, to: str = "peft", keys: Iterable[str] = (), run: str = ""
) -> int:
    """Write this site's own model of a run to the folder `output`.

    Args:
        home: the folder of the site's state, KIT/shepherd.
        site: the owner's file, which lists the bases and the algorithms that may be loaded.
        to: the format: a file of `shepherd/model/exporters`.
        keys: the format's own keys, as "key=value".
        run: the run's id; "" for the only one that is kept.

    Returns:
        The number of rounds after which the common part was sent.

    Raises:
        FolderError: there is no such run, a part of the model is lost, or `output` is not empty.
        SettingsError: the run's algorithm leaves nothing with its clients, or the format or a key is wrong.
        ShepherdError: the base cannot be loaded, or its adapter cannot be written in this format.
    """
    table = PartTable.model_validate({**assigned(keys), "name": to})
    exporter: Exporter = plugins.built(EXPORTER, table)
    folder.require_free(output)
    store = Store(home)
    run = _chosen(store, run)
    kept, sent = store.kept(run)[-1], store.last_sent(run)
    _require_written_here(kept, run)
    settings = settings_at_site(site, kept.settings, allowed_bases.find(site.bases, kept.base))
    algorithm = plugins.algorithm(settings.algorithm, site.policy.algorithms)
    if not algorithm.personal:
        raise SettingsError(
            f"algorithm.name = {settings.algorithm.name!r} of run {run} gives all sites one model, which the"
            " coordinator has; ask for its adapter"
        )
    if sent is None:
        raise FolderError(
            f"the adapter that run {run} sent to this site is lost; take part in another round of it"
        )
    round, common = sent
    base = load_base(settings)
    me = ClientInfo(name=kept.update.clients[0], examples=kept.examples)
    own = algorithm.start(Broadcast(round=round, adapter=common, seed=0), of_algorithm(kept.memory), me)
    template = Template.of(settings.data)
    stop = stop_ids(template, base.tokenizer)
    exporter.write(output, Trained(base=base, adapter=own, stop=stop, template=template))
    if exporter.holds_base:
        licences.copy(base, output)
    return round


def _chosen(store: Store, run: str) -> str:
    runs = store.runs()
    listed = ", ".join(runs)
    if not runs:
        raise FolderError(
            f"{store.home} keeps no run; give the kit of a site that has trained, within the last"
            f" {KEPT_RUNS} runs"
        )
    if run and run not in runs:
        raise FolderError(f"{store.home} keeps no run {run}; it keeps {listed}")
    if not run and len(runs) > 1:
        raise FolderError(
            f"{store.home} keeps several runs; name one with --run: {listed} (the last one was answered last)"
        )
    return run or runs[0]


def _require_written_here(kept: AnsweredRound, run: str) -> None:
    if not kept.settings:
        raise FolderError(
            f"run {run} was kept by an earlier version, without its settings; take part in another round of"
            " it with this version"
        )
