"""What a job brings to the server comes back as it went, and a site is told no more of it than it needs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from shepherd.errors import FederationError
from shepherd.overrides import parse
from shepherd.settings import FederationTable, MachineTable
from shepherd.silos.protocol import jobspec
from shepherd.silos.protocol.jobspec import JobSpec
from shepherd.silos.site.site_settings import SiteDataTable, SiteSettings, settings_at_site

ORDER = JobSpec(
    run="0123456789abcdef",
    base="ba5e",
    fingerprint="f1",
    version="1.0",
    sites=("a", "b"),
    settings={"output": "runs/x", "tuning": {"lr": 1e-3}},
)


def test_what_travels_names_no_path_of_the_coordinator() -> None:
    settings = parse(
        {
            "output": "/home/ada/secret-runs",
            "model": {"base": "/home/ada/secret-models/base"},
            "data": {"source": "/home/ada/secret-data", "template": "plain"},
            "tuning": {"clip_norm": 0},
            "machine": {"threads": 3, "device": "cuda:1"},
        }
    )
    travels = jobspec.settings_for_site(settings)

    assert "secret" not in json.dumps(travels)
    assert not travels.keys() & {"machine", "silos"}  # how others run it, and who they are
    assert travels["model"]["base"] == "base"
    assert parse(travels).data.template == "plain"
    assert parse(travels).tuning == settings.tuning


def test_an_order_brings_nothing_of_the_coordinators_machine() -> None:
    machine = {"device": "cuda:1", "threads": 3, "workers": 2, "stack_size": 5, "micro_batch_tokens": 99}
    settings = parse({"model": {"base": "/a/base"}, "data": {"source": "/b/x"}, "machine": machine})
    brought = jobspec.settings_of(settings)
    assert "machine" not in brought
    assert parse(brought).machine == MachineTable()
    assert parse(brought).silos == settings.silos


def test_an_order_of_the_version_before_has_its_waits() -> None:
    """As it lies in the run folder of a run that goes on now."""
    old = replace(ORDER, settings={"federation": {"deadline": 7.0, "wave": 3, "sites": ["a", "b"]}})
    assert old.federation == FederationTable()
    assert (old.silos.deadline_s, old.silos.max_in_flight, old.silos.sites) == (7.0, 3, ("a", "b"))


def test_an_order_comes_back_as_it_went() -> None:
    assert jobspec.read(ORDER.text()) == ORDER


@pytest.mark.parametrize(
    "change",
    [{"run": "../../etc/cron.d"}, {"run": 7}, {"sites": None}, {"more": 1}, {"run": "0" * 16 + "\n"}],
)
def test_an_order_that_is_none_is_refused(change: dict[str, Any]) -> None:
    plain = {**json.loads(ORDER.text()), **change}
    with pytest.raises(FederationError, match="submit the job again"):
        jobspec.read(json.dumps(plain))


def test_how_chats_are_written_travels() -> None:
    chat = {
        "template": "chat",
        "template_options": {"enable_thinking": False},
        "system": "Be brief.",
        "date": "2026-11-28",
    }
    settings = parse({"model": {"base": "tiny"}, "data": {"source": "x", **chat}})
    travels = json.loads(json.dumps(jobspec.settings_for_site(settings)))
    site = SiteSettings(data=SiteDataTable(source="its own"))
    for data in (parse(travels).data, settings_at_site(site, travels, "base").data):
        assert {key: getattr(data, key) for key in chat} == chat


def test_a_site_is_told_neither_how_cohorts_are_drawn_nor_what_is_measured_elsewhere() -> None:
    settings = parse(
        {
            "model": {"base": "tiny"},
            "data": {"source": "world"},
            "selection": {"name": "round-robin", "share": 0.5},
            "split": {"by": "dirichlet", "alpha": 0.1},
            "evaluation": {"metrics": ["their.metric"], "examples": 7},
        }
    )
    travels = jobspec.settings_for_site(settings)
    assert travels.keys().isdisjoint({"selection", "split", "aggregation", "server"})
    assert "metrics" not in travels["evaluation"]
    assert parse(travels).evaluation.examples == 7


def test_an_order_of_the_version_before_is_read() -> None:
    old = replace(ORDER, settings={"federation": {"rounds": 3, "share": 0.5, "quorum": 0.7}})
    assert old.federation.quorum == 0.7
