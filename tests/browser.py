"""A page as a person's browser opens it: headless Chromium, and what it complained of or asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NoReturn

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# no sandbox: it cannot be had as root, in containers, and the pages are the tests' own
ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")


@dataclass(slots=True)
class Visit:
    """An open page; `errors` and `requests` grow while it stays open."""

    page: Any
    errors: list[str] = field(default_factory=list)
    """What the console said as an error or a warning, and what the page's scripts threw."""
    requests: list[str] = field(default_factory=list)
    """The address of all that it fetched, itself first."""

    def __call__(self, script: str, given: Any = None) -> Any:
        """Run JavaScript in the page."""
        return self.page.evaluate(script, given)

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Until a JavaScript expression is true. Asked from outside: a strict policy forbids the page `eval`.

        Raises:
            AssertionError: it is not true in time.
        """
        end = monotonic() + seconds
        while not self(condition):
            assert monotonic() < end, f"after {seconds} s it is still not so: {condition}"
            self.page.wait_for_timeout(100)


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's Chromium, started once for as many visits as are wanted.

    Skips the test where there is no Chromium or no Playwright; where CI is set, that is a failure.
    """
    path = next(filter(None, (shutil.which(name) for name in NAMES)), None)
    if path is None:
        _go_without("there is no chromium on this machine")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _go_without("playwright is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS])
        try:
            yield browser
        finally:
            browser.close()


def _go_without(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI must have it")
    pytest.skip(reason)


@contextmanager
def visit(
    browser: Any, url: str, *, width: int = 1280, height: int = 900, dark: bool = False, paper: bool = False
) -> Iterator[Visit]:
    """Open `url` in a context of its own, at a size in CSS pixels, on the screen or as on paper."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
    )
    try:
        found = Visit(context.new_page())
        found.page.on("console", lambda message: _heard(found, message))
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on("request", lambda request: found.requests.append(request.url))
        if paper:
            found.page.emulate_media(media="print")
        found.page.goto(url)
        yield found
    finally:
        context.close()


def _heard(found: Visit, message: Any) -> None:
    if message.type in ("error", "warning"):
        found.errors.append(message.text)
