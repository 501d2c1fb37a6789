"""A judge's server for each test that asks for one, and retries that do not wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from shepherd.settings import JudgeTable
from tests.judge.server import Judge, Rule, Step, serving

KEY = "sk-test-5f3a9c-never-to-be-written"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key in its variable, no proxy on the way to loopback, and hardly a pause before another try."""
    from openai import _base_client

    from shepherd.judge import client

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(_base_client, "INITIAL_RETRY_DELAY", 0.001, raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., Judge]]:
    """`serve(rule, script, always)` starts a server that ends with the test."""
    with ExitStack() as stack:

        def start(rule: Rule = str, script: list[Step] | None = None, always: Step | None = None) -> Judge:
            return stack.enter_context(serving(Judge(rule, script or [], always)))

        yield start


def table(url: str, **keys: object) -> JudgeTable:
    return JudgeTable.model_validate({"model": "judge-1", "base_url": url, "timeout": 5.0, **keys})
