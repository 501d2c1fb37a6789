"""Export a run's adapter for other programs: `shepherd export`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shepherd import plugins
from shepherd.config import PartTable
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter
from shepherd.data import data_folder
from shepherd.data.template import Template, stop_ids
from shepherd.errors import DataError
from shepherd.io import paths
from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.model import files, licences
from shepherd.model.base import Base
from shepherd.model.exporting import EXPORTER, Exporter, Trained
from shepherd.overrides import assigned
from shepherd.run import card, claims, folder, hidden, ledger, lineage, release, score_file
from shepherd.run.answerer import adapter_of, own_adapter_of, own_adapters
from shepherd.run.loading import identity, load_base
from shepherd.run.log import read_rows

CARD = "README.md"


def export(
    path: str | Path,
    output: str | Path,
    to: str = "peft",
    keys: Iterable[str] = (),
    *,
    round: int | None = None,
    client: str | None = None,
    results: Iterable[str | Path] = (),
    unreleased: bool = False,
    consent: Consent = NOTHING,
) -> str:
    """Write the adapter of the run in `path` to the folder `output`, with its model card.

    Where the base's weights go along, so do its licence files.

    Args:
        to: the format: a file of `shepherd/model/exporters`, or a dotted module outside the package.
        keys: the format's own keys, as "key=value".
        round: round of a kept checkpoint; by default the final adapter, else that of the last checkpoint.
        client: a client whose own model is written, where the algorithm leaves a part of it with each client.
        results: files that `shepherd evaluate --json` wrote, whose measures go into the card.
        unreleased: whether to write an adapter that the run's gate speaks against; its card says so.
        consent: what a person has agreed to: a module outside the package, code that comes with the base.

    Returns:
        The command that answers with what was written; "" if there is none to name.

    Raises:
        FolderError: there is no run, it has no such round or client, or `output` is not empty.
        SettingsError: there is no such format, or a key of it is wrong.
        DataError: a file of results is none, or is of another adapter.
        NotReleased: the run's gate speaks against the adapter.
        ShepherdError: the base cannot be loaded, or its adapter cannot be written in this format.
    """
    path, output = Path(path), Path(output)
    settings = folder.read_settings(path)
    exporter = _exporter(to, keys, consent)
    results = list(results)
    measured = [_read_results(Path(file)) for file in results]
    folder.require_free(output)
    verdict = release.require_released(path, _released(path, round, client), unreleased)
    base = load_base(settings, consent)
    adapter = (
        adapter_of(path, base, round)
        if client is None
        else own_adapter_of(path, base, client, round, consent)
    )
    for file, result in zip(results, measured, strict=True):
        if result["adapter"] != identity(adapter):
            raise DataError(
                f"{file} is the result of another adapter than the one that is written; evaluate this one"
                " with `shepherd evaluate`, and name that result"
            )
    return _write(
        exporter,
        output,
        _trained(path, base, adapter, consent),
        _card(path, base, round, client),
        results=measured,
        scores=[] if round or client else score_file.current(path),
        verdict=verdict,
    )


def export_clients(
    path: str | Path,
    output: str | Path,
    to: str = "peft",
    keys: Iterable[str] = (),
    *,
    round: int | None = None,
    unreleased: bool = False,
    consent: Consent = NOTHING,
) -> dict[str, Path]:
    """Write the adapter of each client's own model to a folder of its own in `output`, each with its card.

    The folders are called as the clients are, as far as a file may be; see `io.paths.file_name`.

    Args:
        to, keys, round, unreleased, consent: as for `export`.

    Returns:
        Client -> its folder.

    Raises:
        SettingsError: the algorithm gives all clients one model.
        ShepherdError: as for `export`.
    """
    path, output = Path(path), Path(output)
    settings = folder.read_settings(path)
    exporter = _exporter(to, keys, consent)
    folder.require_free(output)
    clients = data_folder.load(path / "data").clients
    verdicts = {
        name: release.require_released(path, _released(path, round, name), unreleased) for name in clients
    }
    base = load_base(settings, consent)
    twins = paths.alike(clients)
    written = {}
    for name, adapter in own_adapters(path, base, round, consent):
        place = output / paths.file_name(name, digested=name in twins)
        trained, text = _trained(path, base, adapter, consent), _card(path, base, round, name)
        _write(exporter, place, trained, text, results=(), scores=(), verdict=verdicts[name])
        written[name] = place
    return written


def _exporter(to: str, keys: Iterable[str], consent: Consent) -> Exporter:
    table = PartTable.model_validate({**assigned(keys), "name": to})
    built: Exporter = plugins.built(EXPORTER, table, consent.plugins)
    return built


def _trained(path: Path, base: Base, adapter: Adapter, consent: Consent) -> Trained:
    template = Template.of(folder.planned(path).data)
    stop = stop_ids(template, base.tokenizer)
    return Trained(base=base, adapter=adapter, stop=stop, template=template, consent=consent)


def _write(
    exporter: Exporter,
    output: Path,
    trained: Trained,
    text: str,
    *,
    results: Sequence[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]],
    verdict: release.Release,
) -> str:
    """Write one adapter with its card; returns the command that answers with it."""
    exporter.write(output, trained)
    if exporter.holds_base:
        licences.copy(trained.base, output)
    whole = card.exported(
        text,
        library=exporter.library,
        holds_base=exporter.holds_base,
        serve=exporter.serve(Path(), trained),
        results=results,
        scores=scores,
        release=verdict,
    )
    write_atomic(output / CARD, whole)
    return exporter.serve(output, trained)


def _released(path: Path, round: int | None, client: str | None) -> release.Release:
    """The verdict of the run's gate; what it measured is of the final adapter, and of no other."""
    verdict = release.of_run(path)
    if not verdict.asked or (round is None and client is None):
        return verdict
    which = f"round {round}" if client is None else f"client {client}"
    return release.Release(asked=True, reasons=(f"its gate is of the final adapter, not of that of {which}",))


def _card(path: Path, base: Base, round: int | None, client: str | None) -> str:
    """The card of the run's final adapter; without one, a card of what the run has done so far."""
    written = path / "adapter" / CARD
    if round is None and client is None and written.is_file():
        with disk_errors(path):
            return written.read_text(encoding="utf8")
    settings, whole = folder.planned(path), read_rows(path)
    hidden.require_ledgers(path, settings, whole)
    rows = [row for row in whole if round is None or row["round"] <= round]
    spent = claims.spent(path, whole)
    privacy = spent.get(ledger.CLIENTS, {})
    here = (path / "data").is_dir()
    prepared = data_folder.load(path / "data") if here else None
    taken = rows[-1].get("taken", {}) if rows else {}
    sizes = prepared.sizes if prepared else taken
    return card.text(
        settings,
        rows=rows,
        answers={},
        data=prepared.summary if prepared else {},
        clients=sizes,
        privacy=privacy,
        of_examples=spent.get(ledger.EXAMPLES, {}),
        own=client is not None,
        hides=hidden.of_run(settings, whole, privacy),
        revision=files.named(base)[1],
        start=lineage.source(path),
        before=lineage.before(path),
    )


def _read_results(file: Path) -> Mapping[str, Any]:
    """The result of an evaluation, as `shepherd evaluate --json` prints it."""
    try:
        row = json.loads(file.read_text(encoding="utf8"))
        if not isinstance(row["adapter"], str):
            raise ValueError("adapter")
        for measure in row["measures"]:
            numbers = [measure["run"][key] for key in ("value", "low", "high")] + [measure["base"]["value"]]
            texts = [row["data"], measure["name"], measure["label"]]
            whole = all(
                each is None or (isinstance(each, float | int) and math.isfinite(each)) for each in numbers
            )
            if not (
                whole and all(isinstance(each, str) for each in texts) and type(measure["share"]) is bool
            ):
                raise ValueError(measure)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} holds no result of an evaluation; write one with `shepherd evaluate RUN_FOLDER --data"
            " FILE --json`"
        ) from error
    return dict(row)
