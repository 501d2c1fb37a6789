"""The page in a person's browser: asked, it answers as `generate` does; it knows no host but loopback."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pytest

from shepherd.data.examples import Turn
from shepherd.errors import ShepherdError
from shepherd.run.answerer import generate
from shepherd.ui import access, report
from shepherd.ui.chat import answering, page, style
from shepherd.ui.chat.answering import Chat, open_chat
from shepherd.ui.chat.fragments import Asked
from shepherd.ui.chat.page import serve, throttled
from tests import browser
from tests.browser import Visit

pytestmark = [  # what gradio and its server leave behind is not ours to close
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
HOSTILE = "<img src=x onerror=\"document.title='owned'\"> <b>b</b> **b** [x](javascript:0) ${1+1} {{1}} &amp;"
QUESTION, CONTEXT = "w5 w9", "w7"
WRITTEN = "document.querySelector('#answer-0 p').innerText.trim() != ''"
LONG = 55  # tokens, of the 64 that the base reads


@pytest.fixture(scope="module", autouse=True)
def gradio() -> None:
    if os.environ.get("CI"):
        import gradio  # noqa: F401 - CI must have it
    else:
        pytest.importorskip("gradio", reason="gradio is not installed")


@pytest.fixture(scope="module")
def chat(compared: Path) -> Chat:
    return open_chat(compared)


@pytest.fixture(scope="module")
def url(chat: Chat) -> Iterator[str]:
    with serve(chat) as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.chromium() as found:
        yield found


@pytest.fixture
def visit(chromium: Any, url: str) -> Iterator[Callable[..., Visit]]:
    """Open the page as often as is wanted."""
    opened = []

    def begin(**options: Any) -> Visit:
        opened.append(browser.visit(chromium, url, **options))
        seen = opened[-1].__enter__()
        seen.page.get_by_label("Instruction").wait_for()
        return seen

    yield begin
    for each in opened:
        each.__exit__(None, None, None)


def ask(seen: Visit, instruction: str = QUESTION, context: str = "") -> None:
    seen.page.get_by_label("Instruction").fill(instruction)
    seen.page.get_by_label("Context").fill(context)
    seen.page.get_by_role("button", name="Ask").click()


def said(seen: Visit, text: str) -> None:
    seen.page.locator("#chat-status").get_by_text(text).wait_for(timeout=60_000)


def answers(seen: Visit) -> dict[str, str]:
    """Each column's heading and answer, as a person reads them."""
    columns = seen.page.locator("#answers .column").all()
    return {c.locator("h3").inner_text(): c.locator(".answer p").inner_text() for c in columns}


def boxes(seen: Visit, part: str = "") -> list[dict[str, float]]:
    return [each.bounding_box() for each in seen.page.locator(f"#answers .column {part}".strip()).all()]


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps each question took; the first is a long one, and slow, until it is left."""
    fast, steps = answering.stream, []

    def stream(*given: Any, **options: Any) -> Iterator[Any]:
        first, place = not steps, len(steps)
        steps.append(0)
        for step in fast(*given, **{**options, **({"max_new_tokens": LONG} if first else {})}):
            steps[place] += 1
            time.sleep(0.15 * first)
            yield step

    monkeypatch.setattr(answering, "stream", stream)
    return steps


# --- asking


def test_what_is_typed_is_answered_by_every_arm_as_generate_does(
    visit: Callable[..., Visit], compared: Path
) -> None:
    seen = visit()
    ask(seen, QUESTION, CONTEXT)
    said(seen, "Answered in")
    found = answers(seen)
    assert list(found) == ["base", "local-client-1", "federated", "centralised", "ffa"]
    assert found["base"] == generate(compared, QUESTION, CONTEXT, base=True)
    assert found["federated"] == generate(compared, QUESTION, CONTEXT)
    variant = compared / "compare" / "seed-0" / "ffa"
    assert found["ffa"] == generate(variant, QUESTION, CONTEXT, max_new_tokens=12)
    assert len(set(found.values())) >= 4
    assert seen.errors == []


def test_no_other_host_is_asked_for_anything(
    chat: Chat, chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:9")  # even where there is a proxy
    asked: list[Any] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        asked.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    with serve(chat) as url, browser.visit(chromium, url) as seen:
        ask(seen)
        said(seen, "Answered in")
        seen.page.wait_for_timeout(300)
        hosts = {urlsplit(each).hostname for each in seen.requests if each.startswith("http")}
        assert hosts == {"127.0.0.1"}
        assert seen.errors == []
    remote = [address for address in asked if isinstance(address, tuple) and address[0] != "127.0.0.1"]
    assert remote == []
    assert asked  # the page's own start-up was seen


def test_a_local_client_and_the_arms_are_chosen(
    visit: Callable[..., Visit], chat: Chat, compared: Path
) -> None:
    seen = visit()
    seen.page.get_by_role("combobox", name="Local client").click()
    seen.page.get_by_role("option", name="client-3").click()
    seen.page.get_by_role("heading", name="local-client-3").wait_for()
    seen.page.get_by_role("checkbox", name="centralised").uncheck()
    seen.page.get_by_role("heading", name="centralised").wait_for(state="detached")
    ask(seen)
    said(seen, "Answered in")
    *_, expected = chat.answer(QUESTION, arms=["base", "local-client-3", "federated", "ffa"])
    assert answers(seen) == expected
    assert "7 examples of" in seen.page.locator("#answers .column").nth(1).inner_text()


def test_template_and_sampling_are_chosen(visit: Callable[..., Visit], chat: Chat) -> None:
    seen = visit()
    seen.page.get_by_text("Template and sampling").click()
    seen.page.get_by_label("Template", exact=True).click()
    seen.page.get_by_role("option", name="vicuna").click()
    for label, value in (("Temperature", "1.5"), ("Longest", "5"), ("Seed", "7")):
        box = seen.page.get_by_label(re.compile(label)).and_(seen.page.locator("input[type=number]"))
        box.fill(value)
        box.blur()
    ask(seen)
    said(seen, "Answered in")
    options: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": 5, "seed": 7}
    arms = [name for name in chat.arms if name != "local-client-3"]
    *_, expected = chat.answer(QUESTION, arms=arms, template="vicuna", **options)
    assert answers(seen) == expected


def test_answers_stream_and_stop(visit: Callable[..., Visit], questions: list[int]) -> None:
    seen = visit()
    buttons = {name: seen.page.get_by_role("button", name=name) for name in ("Ask", "Stop", "Clear")}
    ask(seen)
    seen.wait(WRITTEN, 60)
    assert seen.page.locator("#chat-status p").inner_text() == "Answering …"
    assert {name: button.is_enabled() for name, button in buttons.items()} == {
        "Ask": False,
        "Stop": True,
        "Clear": False,
    }
    buttons["Stop"].click()
    said(seen, "Stopped.")
    begun = answers(seen)
    ask(seen)  # the base is free again
    said(seen, "Answered in")
    assert questions[0] < LONG
    assert questions[1] == 12
    for name, text in answers(seen).items():
        shorter, longer = sorted([text.split(), begun[name].split()], key=len)
        assert longer[: len(shorter)] == shorter
    buttons["Clear"].click()
    seen.wait(f"!({WRITTEN})")
    assert seen.page.get_by_label("Instruction").input_value() == ""
    assert not buttons["Stop"].is_enabled()


def test_what_nobody_foresaw_is_said_too(
    visit: Callable[..., Visit], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*given: Any, **options: Any) -> Iterator[Any]:
        raise RuntimeError("out of memory")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(answering, "stream", broken)
        seen = visit()
        ask(seen)
        said(seen, "the answer failed (RuntimeError: out of memory); see the terminal")
    assert "Traceback" in caplog.text
    ask(seen)
    said(seen, "Answered in")


def test_a_reader_who_goes_away_holds_nobody_up(
    visit: Callable[..., Visit], questions: list[int], chat: Chat
) -> None:
    gone, seen = visit(), visit()
    ask(gone)
    gone.wait(WRITTEN, 60)
    gone.page.close()
    ask(seen, "w30 w31")
    said(seen, "Answered in")
    assert questions[0] < LONG
    *_, expected = chat.answer("w30 w31", arms=list(answers(seen)))
    assert answers(seen) == expected


def test_two_readers_get_their_own_answers(visit: Callable[..., Visit], chat: Chat) -> None:
    readers = {"w5 w9": visit(), "w30 w31 w32": visit()}
    for question, seen in readers.items():
        ask(seen, question)
    for question, seen in readers.items():
        said(seen, "Answered in")
        *_, expected = chat.answer(question, arms=list(answers(seen)))
        assert answers(seen) == expected


def test_what_cannot_be_asked_is_said_in_a_sentence(visit: Callable[..., Visit]) -> None:
    seen = visit()
    ask(seen, " ")
    said(seen, "the instruction is empty; write the question or task to answer")
    assert seen.page.get_by_role("alert").count() == 1
    ask(seen, "w5 " * 70)
    said(seen, "reads at most 64; shorten the instruction")


# --- what a model writes, and who asks


def test_what_a_model_writes_is_text_and_nothing_else(
    visit: Callable[..., Visit], chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile(*given: Any, **options: Any) -> Iterator[dict[str, str]]:
        yield dict.fromkeys(options["arms"], HOSTILE)

    monkeypatch.setattr(Chat, "answer", hostile)
    seen = visit()
    ask(seen)
    said(seen, "Answered in")
    assert set(answers(seen).values()) == {HOSTILE}
    assert seen("document.querySelectorAll('#answers img, #answers b, #answers a').length") == 0
    assert seen.page.title() == f"Shepherd: {chat.settings.output}"


def test_markdown_is_formatted_only_where_a_person_asks_and_never_runs(
    visit: Callable[..., Visit], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile(*given: Any, **options: Any) -> Iterator[dict[str, str]]:
        yield dict.fromkeys(options["arms"], HOSTILE + "\n\n![p](http://192.0.2.1/p.png)\n\n- one\n- two")

    monkeypatch.setattr(Chat, "answer", hostile)
    seen = visit()
    seen.page.get_by_text("Template and sampling").click()
    seen.page.get_by_label("Show Markdown as formatted").check()
    ask(seen)
    said(seen, "Answered in")
    assert seen("document.querySelectorAll('#answer-0 strong').length") == 1
    assert seen("document.querySelectorAll('#answer-0 li').length") == 2
    assert seen("document.querySelectorAll('#answers img, #answers a, #answers script').length") == 0
    assert not any("192.0.2.1" in each for each in seen.requests)
    assert "<img src=x" in seen.page.locator("#answer-0").inner_text()


def test_a_session_keeps_its_questions_until_they_are_forgotten(
    visit: Callable[..., Visit], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile(self: Any, instruction: str, *given: Any, **options: Any) -> Iterator[dict[str, str]]:
        yield dict.fromkeys(options["arms"], f"to {instruction}: {HOSTILE}")

    monkeypatch.setattr(Chat, "answer", hostile)
    seen, other = visit(), visit()
    for question in ("first <b>", "second"):
        ask(seen, question)
        seen.page.locator("#answer-0").get_by_text(f"to {question}:").wait_for()
        said(seen, "Answered in")
    seen.page.get_by_text("Earlier questions of this session").click()
    headings = seen.page.locator("#history h3")
    headings.nth(1).wait_for()
    assert headings.all_inner_texts() == ["second", "first <b>"]
    assert seen("document.querySelectorAll('#history img, #history b, #history a').length") == 0
    assert other("document.querySelectorAll('#history h3').length") == 0
    seen.page.locator("#forget").click()
    seen.page.locator("#history").get_by_text("None yet.").wait_for()
    ask(seen, "third")
    headings.get_by_text("third").wait_for()
    assert headings.count() == 1


def test_an_answer_that_is_empty_is_said_to_be(
    visit: Callable[..., Visit], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*given: Any, **options: Any) -> Iterator[dict[str, str]]:
        yield dict.fromkeys(options["arms"], "")

    words = "getComputedStyle(document.querySelector('#answer-0 p'), '::before').content"
    monkeypatch.setattr(Chat, "answer", silent)
    seen = visit()
    assert "The answer appears here." in seen(words)
    ask(seen)
    said(seen, "Answered in")
    assert "An empty answer." in seen(words)


def test_examples_fill_the_question_and_answers_are_copied(visit: Callable[..., Visit]) -> None:
    seen = visit()
    seen.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    seen.page.get_by_role("button", name=page.EXAMPLES[1]).click()
    seen.page.wait_for_function(f"document.querySelector('textarea').value == {json.dumps(page.EXAMPLES[1])}")
    ask(seen)
    said(seen, "Answered in")
    answer = seen.page.locator("#answer-0").inner_text()
    seen.page.get_by_role("button", name="Copy").first.click()
    seen.page.wait_for_function(f"navigator.clipboard.readText().then(text => text == {json.dumps(answer)})")
    assert seen.errors == []


def test_its_colours_are_the_reports() -> None:
    sheet = (Path(report.__file__).parent / "templates" / "style.css").read_text(encoding="utf8")
    light, dark = re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)[:2]
    names = ("paper", "raised", "ink", "soft", "rule", "accent")
    for name, (by_day, by_night) in zip(names, (*style.COLOURS_OF_REPORT,), strict=True):
        assert f"--{name}: {by_day};" in light
        assert f"--{name}: {by_night};" in dark


def test_it_fits_a_phone_and_a_wide_screen(visit: Callable[..., Visit]) -> None:
    seen = visit(width=360, height=740, dark=True)
    ask(seen)
    said(seen, "Answered in")
    assert seen("document.documentElement.scrollWidth") <= 360
    edges = boxes(seen)
    assert len({round(edge["x"]) for edge in edges}) == 1  # one below the other
    assert all(edge["width"] > 280 for edge in edges)
    seen.page.set_viewport_size({"width": 1600, "height": 900})
    assert len({round(edge["y"]) for edge in boxes(seen)}) == 1  # side by side
    assert len({round(edge["y"]) for edge in boxes(seen, ".answer")}) == 1


def test_it_answers_its_own_name_alone_and_takes_no_file(url: str) -> None:
    place = urlsplit(url)
    cookie = {"Cookie": f"shepherd-{place.port}={place.query.removeprefix('token=')}"}

    def status(path: str, data: bytes | None = None, **headers: str) -> int:
        request = urllib.request.Request(f"http://{place.netloc}/{path}", data, {**cookie, **headers})
        try:
            with urllib.request.urlopen(request) as answer:
                return int(answer.status)
        except HTTPError as error:
            with error:
                return error.code

    assert place.hostname == "127.0.0.1"
    assert status("") == 200
    assert status("", Host="elsewhere.example") == 400
    assert status("docs") == status("openapi.json") == 404
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="f"\r\n\r\nhello\r\n--x--\r\n'
    assert status("gradio_api/upload", form, **{"Content-Type": "multipart/form-data; boundary=x"}) == 413
    info = urllib.request.Request(f"http://{place.netloc}/gradio_api/info", headers=cookie)
    with urllib.request.urlopen(info) as answer:
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.read() == b'{"named_endpoints":{},"unnamed_endpoints":{}}'


def test_without_the_token_nothing_is_told(url: str) -> None:
    place = urlsplit(url)
    for path in ("", "?token=wrong", "config", "gradio_api/info", "gradio_api/queue/data", "theme.css"):
        request = urllib.request.Request(
            f"http://{place.netloc}/{path}", headers={"Cookie": f"shepherd-{place.port}=wrong"}
        )
        with pytest.raises(HTTPError, match="403") as refused, urllib.request.urlopen(request):
            pass
        with refused.value as error:
            assert error.read().decode() == access.REFUSED


def test_the_browser_has_a_cookie_and_no_token_in_its_address(visit: Callable[..., Visit]) -> None:
    seen = visit()
    assert "token" not in seen("location.href")
    assert seen("document.cookie") == ""
    assert [each for each in seen.requests if "token=" in each] == seen.requests[:1]


def test_a_port_that_is_taken_is_named(chat: Chat, url: str) -> None:
    port = urlsplit(url).port
    with pytest.raises(ShepherdError, match=rf"port {port} of 127\.0\.0\.1 is taken; name another"):
        serve(chat, port=port).__enter__()


def test_launching_says_where_until_it_is_stopped(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        def wait(self) -> None:
            raise KeyboardInterrupt

    heard: list[str] = []
    shown: list[str] = []
    monkeypatch.setattr(page, "Event", Stopped)

    def opened(link: str) -> None:
        """Reads the file, which no other user can: the words of a browser's command are everybody's."""
        file = Path(urlsplit(link).path)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        shown.append(file.read_text())

    monkeypatch.setattr("webbrowser.open", opened)
    page.launch(compared, arms=["base", "federated"], echo=heard.append)
    assert heard[0] == f"loading the arms of {compared}"
    assert re.fullmatch(r"loaded .*llama.* in \d+\.\d s", heard[1])
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32,} \(stop it with Ctrl-C\)", heard[2])
    assert shown == []
    page.launch(compared, arms=["base"], echo=heard.append, show=True)
    assert heard[-2].split()[0] in shown[0]
    assert not list(compared.glob(".chat-*"))


def test_a_public_link_that_cannot_be_had_is_an_error(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradio import networking

    def tunnel(**options: Any) -> str:
        raise OSError("no way out")

    monkeypatch.setattr(networking, "setup_tunnel", tunnel)
    with pytest.raises(ShepherdError, match="Gradio gave no public link"):
        serve(chat, share=True).__enter__()


def test_without_gradio_what_to_install_is_named(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ShepherdError, match=r"pip install .*\[chat\]"):
        page.launch(compared)


def test_updates_are_throttled_and_end_with_the_last() -> None:
    steps = [{"arm": str(n)} for n in range(50)]
    assert list(throttled(iter(steps), 0.0)) == steps
    assert list(throttled(iter(steps), 60.0)) == [steps[0], steps[-1]]
    assert list(throttled(iter([]), 60.0)) == []


# --- conversations and votes


def test_a_conversation_goes_on(visit: Callable[..., Visit], chat: Chat) -> None:
    seen = visit()
    arms = [name for name in chat.arms if name != "local-client-3"]
    ask(seen)
    said(seen, "Answered in")
    first = answers(seen)
    seen.page.get_by_label("Continue the conversation").check()
    ask(seen, "w12")
    said(seen, "turn 2 of this conversation")
    earlier = {
        name: [Turn(role="user", text=QUESTION), Turn(role="assistant", text=first[name])] for name in arms
    }
    *_, expected = chat.answer("w12", arms=arms, earlier=earlier)
    assert answers(seen) == expected
    seen.page.get_by_role("button", name="Clear").click()
    seen.wait("!document.querySelector('#chat-status').innerText.includes('turn')")  # or it clears the next
    ask(seen, "w12")
    said(seen, "Answered in")
    *_, anew = chat.answer("w12", arms=arms)
    assert answers(seen) == anew


def test_a_system_prompt_is_typed(visit: Callable[..., Visit], chat: Chat) -> None:
    seen = visit()
    seen.page.get_by_text("Template and sampling").click()
    seen.page.get_by_label("System prompt").fill("w30 w31 w32")
    ask(seen)
    said(seen, "Answered in")
    arms = [name for name in chat.arms if name != "local-client-3"]
    *_, expected = chat.answer(QUESTION, arms=arms, system="w30 w31 w32")
    assert answers(seen) == expected


def test_a_blind_vote_hides_the_arms_until_it_is_saved(
    visit: Callable[..., Visit], chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "path", tmp_path)
    seen = visit()
    buttons = [seen.page.get_by_role("button", name=label) for label, _ in page.CHOICES]
    seen.page.get_by_label("Blind vote between two arms").check()
    seen.page.locator("#notice").get_by_text("as data to train on").wait_for()
    assert not seen.page.locator("#answers").is_visible()
    assert all(button.is_disabled() for button in buttons)
    ask(seen, QUESTION, CONTEXT)
    said(seen, "Which answer is better?")
    heads = seen.page.locator("#blind h3")
    assert heads.all_inner_texts() == ["Answer A", "Answer B"]
    shown = seen.page.locator("#blind .answer p").all_inner_texts()
    ballot = seen.page.locator("#ballot").inner_html()
    assert not [name for name in chat.arms if name in ballot]
    assert not (tmp_path / "votes").exists()
    buttons[2].click()
    said(seen, "Saved. A was ")
    (row,) = map(json.loads, (tmp_path / "votes" / "preferences.jsonl").read_text().splitlines())
    assert [row["rejected"][0]["content"], row["chosen"][0]["content"]] == shown
    assert row["prompt"] == [{"role": "user", "content": QUESTION}]
    assert row["context"] == CONTEXT
    named = [f"Answer A: {row['rejected_arm']}", f"Answer B: {row['chosen_arm']}"]
    assert heads.all_inner_texts() == named
    *_, expected = chat.answer(QUESTION, CONTEXT, arms=[row["chosen_arm"], row["rejected_arm"]])
    assert list(expected.values()) == shown[::-1]
    assert "1 won" in seen.page.locator("#standings").inner_text() or "1 lost" in (
        seen.page.locator("#standings").inner_text()
    )
    assert all(button.is_disabled() for button in buttons)  # one vote for one answer
    assert seen.errors == []


def test_a_blind_vote_needs_two_arms(visit: Callable[..., Visit], chat: Chat) -> None:
    seen = visit()
    seen.page.get_by_label("Blind vote between two arms").check()
    for name in chat.arms:
        if name not in ("base", *chat.local):
            seen.page.get_by_role("checkbox", name=name, exact=True).uncheck()
    seen.page.get_by_role("checkbox", name="a local client").uncheck()
    ask(seen)
    said(seen, "a blind vote is between two arms; choose at least two")


@pytest.mark.slow
def test_pairs_and_places_are_drawn(chat: Chat) -> None:
    import gradio

    drawn = page._Page(chat, gradio)
    options = {"system": None, "max_new_tokens": 1}
    found = set()
    for _ in range(40):
        *_, end = drawn._blind_steps(Turn(role="user", text=QUESTION), list(chat.arms)[-3:], options, str)
        found |= {end[drawn.ballot].arms} if end.get(drawn.ballot) else set()
    assert len(found) >= 4  # of six
    assert any((second, first) in found for first, second in found)


def test_a_conversation_goes_on_from_answers_of_the_same_training() -> None:
    """The arms of another seed have one name, and are other models."""
    before: list[Asked] = [("one", "c", {"federated": "a"}, 0), ("two", "", {"federated": "b"}, 1)]
    assert page._turns(before, "federated", 1) == [
        Turn(role="user", text="two"),
        Turn(role="assistant", text="b"),
    ]
    assert page._turns(before, "local-a", 1) == []
