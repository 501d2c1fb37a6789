"""Export a run's adapter for other programs: `shepherd export`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shepherd import plugins
from shepherd.config import PartTable
from shepherd.consent import NOTHING, Consent
from shepherd.data.template import Template, stop_ids
from shepherd.model.exporting import EXPORTER, Exporter, Trained
from shepherd.overrides import assigned
from shepherd.run import folder
from shepherd.run.answerer import adapter_of, own_adapter_of
from shepherd.run.loading import load_base


def export(
    path: str | Path,
    output: str | Path,
    to: str = "peft",
    keys: Iterable[str] = (),
    *,
    round: int | None = None,
    client: str | None = None,
    consent: Consent = NOTHING,
) -> None:
    """Write the adapter of the run in `path` to the folder `output`.

    Args:
        to: the format: a file of `shepherd/model/exporters`, or a dotted module outside the package.
        keys: the format's own keys, as "key=value".
        round: round of a kept checkpoint; by default the final adapter, else that of the last checkpoint.
        client: a client whose own model is written, where the algorithm leaves a part of it with each client.
        consent: what a person has agreed to: a module outside the package, code that comes with the base.

    Raises:
        FolderError: there is no run, it has no such round or client, or `output` is not empty.
        SettingsError: there is no such format, or a key of it is wrong.
        ShepherdError: the base cannot be loaded, or its adapter cannot be written in this format.
    """
    settings = folder.read_settings(path)
    table = PartTable.model_validate({**assigned(keys), "name": to})
    exporter: Exporter = plugins.built(EXPORTER, table, consent.plugins)
    folder.require_free(output)
    base = load_base(settings, consent)
    adapter = (
        adapter_of(Path(path), base, round)
        if client is None
        else own_adapter_of(Path(path), base, client, round, consent)
    )
    trained = Trained(
        base=base,
        adapter=adapter,
        stop=stop_ids(Template.of(settings.data), base.tokenizer),
        consent=consent,
    )
    exporter.write(Path(output), trained)
