"""What the owner of a site sees before it joins, in a terminal of 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace

from shepherd.data.lint import Report
from shepherd.data.tokens import Counts
from shepherd.overrides import parse
from shepherd.silos.site.preview import BasePreview, DataPreview, Found, OutgoingUpdate
from shepherd.silos.site.site_settings import SiteSettings
from shepherd.ui.terminal.site_preview import print_preview
from tests.ui.terminal.golden import require_golden

COUNTS = Counts(examples=32, kept=32, cut=0, dropped={}, tokens=100, trained=25, cut_tokens=0)
READY = Found(
    site=SiteSettings.model_validate(
        {"data": {"source": "/data/notes.csv"}, "policy": {"metrics": ["loss", "examples", "heldout"]}}
    ),
    run=parse({"model": {"base": "tiny"}, "data": {"source": "/data/notes.csv", "template": "plain"}}),
    bases=(
        BasePreview(name="tiny", folder="/models/tiny", digest="cb8d3f94"),
        BasePreview(name="other", folder="/models/other", digest="0a1b2c3d", fault="another digest"),
        BasePreview(name="gone"),
    ),
    data=DataPreview(
        report=Report(samples=(), counts=COUNTS, by_category={}, by_client={}),
        examples=32,
        heldout={"qa": 16, "poem": 16},
        scored={"qa": 16, "other": 16},
        duplicates=2,
        skipped=("row 3 is empty",),
    ),
    leaving=OutgoingUpdate(
        base="tiny",
        rank=8,
        tensors={
            "model.layers.0.self_attn.q_proj.lora_A.weight": (8, 64),
            "model.layers.1.self_attn.q_proj.lora_A.weight": (8, 64),
            "model.layers.0.self_attn.q_proj.lora_B.weight": (64, 8),
        },
        metrics=("loss",),
    ),
    policy=("An adapter has rank 16 at most.",),
)


def printed(found: Found) -> str:
    stream = io.StringIO()
    assert print_preview(found, stream) == (not found.faults)
    return stream.getvalue()


def test_a_site_that_is_ready() -> None:
    require_golden("site_preview_ready", printed(READY))


def test_a_site_with_something_to_fix() -> None:
    found = replace(
        READY, data=None, leaving=None, faults=("base other has another digest",), notes=("A [note].",)
    )
    require_golden("site_preview_faults", printed(found))


def test_under_masks_neither_tensors_nor_numbers_of_a_visit_leave() -> None:
    secure = parse(
        {
            "model": {"base": "tiny"},
            "data": {"source": "/data/notes.csv", "template": "plain"},
            "secure": {"ring_bits": 64},
        }
    )
    text = " ".join(printed(replace(READY, run=secure)).split())
    numbers = 3 * 8 * 64
    assert f"{numbers:,} whole numbers of 64 bits" in text
    assert f"under masks: {8 * numbers:,} bytes" in text
    assert "no weight and no number of a visit is sent" in text
    assert "tensors of float32" not in text
    assert "With each update" not in text
    assert "A loss is a mean" not in text
    assert "For a score, once a round" in text  # which the owner allows apart from it
