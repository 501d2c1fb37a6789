"""The base and the tokenised data, for training and for scoring, that a site keeps loaded."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from shepherd.data import data_folder, pipeline, remarks
from shepherd.data.dataset import TokenisedData
from shepherd.data.examples import Example
from shepherd.data.template import Template, prints_date
from shepherd.errors import DataError, FolderError, SettingsError
from shepherd.io.atomic import disk_errors
from shepherd.machine import memory
from shepherd.model import base as bases
from shepherd.run.loading import load_base
from shepherd.settings import AdapterTable, ModelTable, RunSettings
from shepherd.silos.site import redaction
from shepherd.silos.site.site_store import sweep
from shepherd.version import version

PAIRS = "-pairs"
"""End of the key of data with both answers of each example."""
log = logging.getLogger(__name__)

MAX_STORED_DATASETS = 8  # tokenised data sets kept on the disk, the latest ones


@dataclass(slots=True)
class DataCache:
    """Holds one base, one tokenised training set and one tokenised held-out set; loads others on demand."""

    home: Path
    name: str
    _base: bases.Base | None = None
    _base_key: tuple[str, ModelTable, AdapterTable, int] | None = None
    _prepared: TokenisedData | None = None
    _data_key: str = ""
    _heldout: TokenisedData | None = None
    _heldout_key: str = ""

    @property
    def digest(self) -> str:
        """Digest of the loaded base; "" if none is loaded."""
        return self._base_key[0] if self._base is not None and self._base_key else ""

    def ready(
        self, settings: RunSettings, digest: str, longest: int, *, paired: bool = False
    ) -> TokenisedData | None:
        """The training data, if they and the base that these settings ask for are loaded; else None."""
        held = self._base is not None and self._base_key == _base_key(settings, digest, longest)
        key = _data_key(settings, digest) + PAIRS * paired
        return self._prepared if held and self._data_key == key else None

    def data(self, settings: RunSettings, digest: str, *, paired: bool = False) -> TokenisedData:
        """The tokenised training examples: from memory, from the disk, or tokenised now.

        Args:
            paired: whether both answers of each example are wanted.

        Raises:
            SettingsError: the template prints the date, and the run does not set it.
            DataError: the data cannot be used.
            BaseError: the base's tokenizer cannot be used.
            FolderError: the disk is full or cannot be written.
        """
        key = _data_key(settings, digest) + PAIRS * paired
        if self._prepared is None or key != self._data_key:
            self._prepared = None
            _require_date(settings, "the run sets none; set data.date to one that the site allows")
            self._prepared = self._load_stored(key) or self._tokenise(
                settings, key, partial(pipeline.one_client, paired=paired)
            )
            self._data_key = key
        return self._prepared

    def heldout(self, settings: RunSettings, digest: str) -> TokenisedData:
        """The tokenised held-out examples, rendered as [scoring] says.

        Raises:
            SettingsError: the template prints the date, and [scoring] does not set it.
            DataError, BaseError, FolderError: as for `data`.
        """
        key = "scored-" + _data_key(settings, digest)
        if self._heldout is None or key != self._heldout_key:
            self._heldout = None
            _require_date(settings, "its owner has set none for scores; set scoring.date in its site.toml")
            self._heldout = self._load_stored(key) or self._tokenise(settings, key, pipeline.held_out)
            self._heldout_key = key
        return self._heldout

    def base(self, settings: RunSettings, digest: str, longest: int) -> bases.Base:
        """The base with its adapted layers: from memory, or loaded now.

        Args:
            longest: length in tokens of the longest example that it has to process.

        Raises:
            BaseError: the base cannot be loaded.
        """
        key = _base_key(settings, digest, longest)
        if self._base is None or key != self._base_key:
            self._base = None
            gc.collect()  # two at once may not fit
            data = settings.data.model_copy(update={"max_tokens": longest})
            self._base, self._base_key = load_base(settings.model_copy(update={"data": data})), key
        memory.use_threads(settings.machine.threads)
        return self._base

    def _load_stored(self, key: str) -> TokenisedData | None:
        folder = self.home / "data" / key
        try:
            return data_folder.load(folder) if data_folder.whole(folder) else None
        except FolderError:  # damaged: tokenise again
            return None

    def _tokenise(self, settings: RunSettings, key: str, make: Callable[..., TokenisedData]) -> TokenisedData:
        made = make(settings, self.name, bases.load_tokenizer(settings.model))
        for remark in (*remarks.training_remarks(made), *remarks.training_warnings(made)):
            log.info("%s", redaction.log_message(DataError(remark)))
        folder = self.home / "data" / key
        with disk_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
        data_folder.save(
            folder, replace(made, heldout_examples=[_without_text(e) for e in made.heldout_examples])
        )
        sweep(folder.parent, MAX_STORED_DATASETS)
        return data_folder.load(folder)


def _without_text(example: Example) -> Example:
    """The example without its text, which only generating answers would need."""
    return Example(turns=(), category=example.category)


def _require_date(settings: RunSettings, why: str) -> None:
    table = settings.data
    if table.date or table.template != "chat":
        return
    if prints_date(Template.of(table), bases.load_tokenizer(settings.model)):
        raise SettingsError(f"the chat template of its base prints the date, and {why}")


def _base_key(settings: RunSettings, digest: str, longest: int) -> tuple[str, ModelTable, AdapterTable, int]:
    """Everything that loading the base depends on, including the length up to which packing is verified."""
    unnamed = settings.model.model_copy(update={"base": ""})
    return digest, unnamed, settings.adapter, longest


def _data_key(settings: RunSettings, digest: str) -> str:
    """A hash of everything that the tokens depend on; the base's digest covers its tokenizer."""
    plain = {
        "version": version(),
        "base": digest,
        "data": settings.data.model_dump(mode="json"),
        "files": list(_stamps(Path(settings.data.source))),
        "seed": settings.data_seed,
        "loss_on": settings.tuning.loss_on,
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _stamps(source: Path) -> Iterator[tuple[str, int, int]]:
    """Path, size and modification time of each file of a source, so that changed data are read again."""
    files = sorted(source.rglob("*")) if source.is_dir() else [source] if source.is_file() else []
    for file in files:
        about = file.stat()
        yield str(file), about.st_size, about.st_mtime_ns
