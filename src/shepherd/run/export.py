"""Export a run's adapter for other programs: `shepherd export`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shepherd import plugins
from shepherd.config import PartTable
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter
from shepherd.data import data_folder
from shepherd.data.template import Template, stop_ids
from shepherd.errors import DataError, HubError
from shepherd.io import paths
from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.model import files, licences
from shepherd.model.base import Base
from shepherd.model.exporting import EXPORTER, Exporter, Trained, command
from shepherd.overrides import assigned
from shepherd.run import card, claims, folder, hidden, ledger, lineage, release, score_file, versions
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
    base: str = "",
    repo: str = "",
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
        base: the base's name on the hub, by which card and configuration name it, where the run loads it from
            a folder or from another repository.
        repo: repository of the hub that it is written for, whose readers the card speaks to.
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
        HubError: `base` is no name on the hub.
        NotReleased: the run's gate speaks against the adapter.
        ShepherdError: the base cannot be loaded, or its adapter cannot be written in this format.
    """
    path, output = Path(path), Path(output)
    require_name(base)
    settings = folder.read_settings(path)
    exporter = exporter_of(to, keys, consent)
    results = list(results)
    measured = [_read_results(Path(file)) for file in results]
    folder.require_free(output)
    verdict = release.require_released(path, _released(path, round, client), unreleased)
    loaded = replace(load_base(settings, consent), hub_name=base)
    adapter = (
        adapter_of(path, loaded, round)
        if client is None
        else own_adapter_of(path, loaded, client, round, consent)
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
        _trained(path, loaded, adapter, consent),
        _card(path, loaded, round, client),
        repo=repo,
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
    base: str = "",
    round: int | None = None,
    unreleased: bool = False,
    consent: Consent = NOTHING,
) -> dict[str, Path]:
    """Write the adapter of each client's own model to a folder of its own in `output`, each with its card.

    The folders are called as the clients are, as far as a file may be; see `io.paths.file_name`.

    Args:
        to, keys, base, round, unreleased, consent: as for `export`.

    Returns:
        Client -> its folder.

    Raises:
        SettingsError: the algorithm gives all clients one model.
        ShepherdError: as for `export`.
    """
    path, output = Path(path), Path(output)
    require_name(base)
    settings = folder.read_settings(path)
    exporter = exporter_of(to, keys, consent)
    folder.require_free(output)
    clients = data_folder.load(path / "data").clients
    verdicts = {
        name: release.require_released(path, _released(path, round, name), unreleased) for name in clients
    }
    loaded = replace(load_base(settings, consent), hub_name=base)
    twins = paths.alike(clients)
    written = {}
    for name, adapter in own_adapters(path, loaded, round, consent):
        place = output / paths.file_name(name, digested=name in twins)
        trained, text = _trained(path, loaded, adapter, consent), _card(path, loaded, round, name)
        _write(exporter, place, trained, text, verdict=verdicts[name])
        written[name] = place
    return written


def require_name(base: str) -> None:
    """Raise HubError unless the public name of a base is one of the hub, or none is given."""
    if base and not (paths.is_hub_id(base) and "/" in base):
        raise HubError(f"{base!r} is no model of the hub; give the base's name there as OWNER/NAME")


def exporter_of(to: str, keys: Iterable[str], consent: Consent) -> Exporter:
    """The format of this name with these keys; see `export`."""
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
    verdict: release.Release,
    repo: str = "",
    results: Sequence[Mapping[str, Any]] = (),
    scores: Sequence[score_file.Own] = (),
) -> str:
    """Write one adapter with its card; returns the command that answers with it."""
    elsewhere = _published_command(exporter, trained, repo) if repo else exporter.serve(Path(), trained)
    base_name = files.named(trained.base)[0]
    exporter.write(output, trained)
    if exporter.holds_base:
        licences.copy(trained.base, output)
    whole = card.exported(
        text,
        library=exporter.library,
        holds_base=exporter.holds_base,
        # an adapter over a folder of this machine is served nowhere else
        serve=elsewhere if exporter.library != "peft" or paths.is_hub_id(base_name) else "",
        repo=repo,
        results=results,
        scores=scores,
        release=verdict,
    )
    write_atomic(output / CARD, whole)
    return elsewhere if repo else exporter.serve(output, trained)


def _published_command(exporter: Exporter, trained: Trained, repo: str) -> str:
    """The command that answers with what was published; "" if there is none to name."""
    if exporter.by_id:
        return exporter.serve(Path(repo), trained)
    name = repo.rpartition("/")[2]
    serve = exporter.serve(Path(name), trained)
    return serve and f"{command('hf', 'download', repo, '--local-dir', name)} && {serve}"


def _released(path: Path, round: int | None, client: str | None) -> release.Release:
    """The verdict of the run's gate; what it measured is of the final adapter, and of no other."""
    verdict = release.of_run(path)
    if not verdict.asked or (round is None and client is None):
        return verdict
    which = f"round {round}" if client is None else f"client {client}"
    return release.Release(asked=True, reasons=(f"its gate is of the final adapter, not of that of {which}",))


def _card(path: Path, base: Base, round: int | None, client: str | None) -> str:
    """The card of the run's final adapter; without one, a card of what the run has done so far.

    The run has written that of its final adapter. It is composed again where the base has a name there that
    the run does not know.
    """
    written = path / "adapter" / CARD
    final = round is None and client is None and written.is_file()
    if final and not base.hub_name:
        with disk_errors(path):
            return written.read_text(encoding="utf8")
    settings, whole = folder.planned(path), read_rows(path)
    name, revision = files.named(base)
    if base.hub_name:
        model = settings.model.model_copy(update={"base": name, "revision": revision})
        settings = settings.model_copy(update={"model": model})
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
        answers=folder.scores(path) if final else {},
        data=prepared.summary if prepared else {},
        clients=sizes,
        privacy=privacy,
        of_examples=spent.get(ledger.EXAMPLES, {}),
        own=client is not None,
        hides=hidden.of_run(settings, whole, privacy),
        revision=revision,
        start=lineage.source(path),
        before=lineage.before(path),
        libraries=versions.kept(path),
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
