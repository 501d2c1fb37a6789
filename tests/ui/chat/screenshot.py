"""The chat page as a picture: python -m tests.ui.chat.screenshot RUN_FOLDER FILE.png INSTRUCTION [CONTEXT]"""

from __future__ import annotations

import sys

from shepherd.ui.chat.answering import open_chat
from shepherd.ui.chat.page import serve
from tests import browser


def shoot(path: str, picture: str, instruction: str, context: str = "") -> None:
    """Ask every arm of the run in `path`, and write the page with the answers to `picture`."""
    with (
        serve(open_chat(path)) as url,
        browser.chromium() as chromium,
        browser.visit(chromium, url, width=1360, height=800) as seen,
    ):
        seen.page.get_by_label("Instruction").fill(instruction)
        seen.page.get_by_label("Context").fill(context)
        seen.page.get_by_role("button", name="Ask").click()
        seen.page.locator("#chat-status").get_by_text("Answered in").wait_for(timeout=300_000)
        seen.page.mouse.move(0, 0)
        seen.page.screenshot(path=picture, full_page=True)


if __name__ == "__main__":
    shoot(*sys.argv[1:])
