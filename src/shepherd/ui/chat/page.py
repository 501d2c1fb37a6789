"""The chat page: a question goes to several arms at once, and their answers appear side by side.

In a blind vote it goes to two of them, whose names are shown after the vote (`shepherd.ui.chat.votes`). The
only module that imports gradio. The page listens on loopback and requires the token of its address. It
calls no other host. What a model writes is shown as plain text, or, where the person asks for it, as Markdown
without HTML, links or pictures (`shepherd.ui.chat.markdown`).
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import webbrowser
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from html import escape
from importlib import import_module
from pathlib import Path
from random import SystemRandom
from threading import Event
from time import perf_counter
from typing import Any, TypeVar

from shepherd.consent import NOTHING, Consent
from shepherd.data.examples import Turn
from shepherd.errors import DataError, ShepherdError
from shepherd.ui.access import Token
from shepherd.ui.chat import fragments, style, votes
from shepherd.ui.chat.answering import Chat, open_chat
from shepherd.ui.chat.arms import BASE, LOCAL
from shepherd.ui.chat.fragments import GOING, WRONG, Asked, answer_text, plain, status_line
from shepherd.ui.chat.gate import Gate
from shepherd.ui.chat.markdown import as_html
from shepherd.ui.chat.votes import Ballot
from shepherd.version import install
from shepherd.visible import shown

_log = logging.getLogger(__name__)

HOST = "127.0.0.1"
PORTS = range(7860, 7960)
UPDATE_INTERVAL_S = 0.05
"""Least time between two updates of answers under way."""
MAX_QUEUED_QUESTIONS = 16

MAX_HISTORY = 50
"""Most earlier questions that a session keeps."""
EXAMPLES = (
    "Name three animals.",
    "Write one sentence about the sea.",
    "What is 7 plus 5?",
)
"""Questions of no data set, so that nothing private is on the page before a person types it."""

LOCAL_LABEL = "a local client"
CHOICES = (("A is better", 0), ("Tie", None), ("B is better", 1))
"""The buttons of a blind vote, with the place of the better answer."""
_GOING = "Answering …"

T = TypeVar("T")
Updates = dict[Any, Any]
"""New values of the page's components."""


def launch(
    path: str | Path,
    *,
    arms: Sequence[str] | None = None,
    port: int | None = None,
    share: bool = False,
    show: bool = False,
    echo: Callable[[str], None] = print,
    consent: Consent = NOTHING,
    adapters: Sequence[str | Path] = (),
) -> None:
    """Open the chat page of the run in `path`, and serve it until Ctrl-C.

    Args:
        path: the run folder.
        arms: the only arms to offer; all if None.
        port: of 127.0.0.1; the first free one from 7860 if None.
        share: whether to serve the page through a public Gradio link too.
        show: whether to open the page in the browser.
        echo: gets each line to print, one of them with the address and its token.
        consent: whether code that comes with the base may run, if the run file in the folder asks for it.
        adapters: PEFT folders of the same base to offer as well.

    Raises:
        ShepherdError: gradio is missing, the port is taken, or a fault that `open_chat` raises.
    """
    _gradio()
    echo(f"loading the arms of {path}")
    began = perf_counter()
    chat = open_chat(path, arms, consent, adapters)
    echo(f"loaded {chat.settings.model.base} in {perf_counter() - began:.1f} s")
    with serve(chat, port=port, share=share) as url:
        echo(f"{url} (stop it with Ctrl-C)")
        with _in_browser(url, Path(path)) if show else nullcontext():
            try:
                Event().wait()
            except KeyboardInterrupt:
                echo("stopped")


@contextmanager
def _in_browser(url: str, folder: Path) -> Iterator[None]:
    """Open the page in the browser through a file, since other users can read the arguments of a command."""
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".chat-", suffix=".html") as file:
        link = escape(url)
        file.write(f'<meta http-equiv="refresh" content="0; url={link}"><a href="{link}">chat</a>\n')
        file.flush()
        webbrowser.open(Path(file.name).resolve().as_uri())
        yield


@contextmanager
def serve(chat: Chat, *, port: int | None = None, share: bool = False) -> Iterator[str]:
    """Serve the page while the block runs; yields its address, which contains a token.

    Raises:
        ShepherdError: gradio is missing, the port is taken, or no public link is available.
    """
    gradio = _gradio()
    middleware = import_module("starlette.middleware")
    hosts = import_module("starlette.middleware.trustedhost").TrustedHostMiddleware
    # refuse pages elsewhere whose own host name points at 127.0.0.1
    trusted = middleware.Middleware(hosts, allowed_hosts=["*"] if share else [HOST, "localhost"])
    token = Token()
    gate = middleware.Middleware(Gate, token=token, shared=share)
    page = build(chat).queue(max_size=MAX_QUEUED_QUESTIONS, default_concurrency_limit=1, api_open=False)
    try:
        with _without_proxy(), _taken_port_as_error(port):
            page.launch(
                server_name=HOST,
                server_port=port,
                share=share,
                theme=style.theme(gradio),
                css=style.CSS,
                prevent_thread_lock=True,
                quiet=True,
                inline=False,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                max_file_size=1,  # byte: uploads are refused
                app_kwargs={"openapi_url": None, "middleware": [trusted, gate]},
            )
        if share and not page.share_url:
            raise ShepherdError("Gradio gave no public link; try again, or leave --share out")
        yield token.address(page.share_url or page.local_url)
    finally:
        page.close(verbose=False)


@contextmanager
def _taken_port_as_error(port: int | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ShepherdError(_taken_port(port)) from error


def _taken_port(port: int | None) -> str:
    if port is None:
        return f"no port of {HOST} from {PORTS[0]} to {PORTS[-1]} is free; name another with --port"
    return f"port {port} of {HOST} is taken; name another with --port"


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        return import_module("gradio")
    except ImportError as error:
        raise ShepherdError(f"the chat page needs gradio ({error}); run {install('chat')}") from error


@contextmanager
def _without_proxy() -> Iterator[None]:
    """Let Gradio reach its own server without a proxy."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    hosts = ",".join(filter(None, {*before.values(), HOST}))
    os.environ.update(dict.fromkeys(before, hosts))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def build(chat: Chat) -> Any:
    """The chat page as Gradio blocks."""
    return _Page(chat, _gradio()).blocks


class _Page:
    """Components and events of the page. Each arm has a column; all local arms share one."""

    def __init__(self, chat: Chat, gradio: Any) -> None:
        self.chat = chat
        self.gr = gradio
        others = [name for name in chat.arms if name not in chat.local]
        place = others.index(BASE) + 1 if BASE in others else 0
        self.columns = [*others[:place], *([LOCAL] if chat.local else []), *others[place:]]
        title = f"Shepherd: {shown(chat.settings.output)}"
        with gradio.Blocks(title=title, analytics_enabled=False) as self.blocks:
            gradio.HTML(fragments.head(chat), elem_classes="head")
            self._question()
            self._choices()
            self._answers()
        with self.blocks:
            self._wire()

    def _question(self) -> None:
        gr = self.gr
        with gr.Row(equal_height=True):
            self.instruction = gr.Textbox(
                label="Instruction",
                lines=3,
                max_lines=12,
                scale=3,
                min_width=260,
                placeholder="What you want to ask. Shift+Enter sends it.",
            )
            self.context = gr.Textbox(
                label="Context (optional)",
                lines=3,
                max_lines=12,
                scale=2,
                min_width=260,
                placeholder="Text that the instruction refers to.",
            )
        with gr.Row(elem_id="actions"):
            self.ask = gr.Button("Ask", variant="primary", min_width=90, elem_id="ask")
            self.stop = gr.Button("Stop", min_width=90, elem_id="stop", interactive=False)
            self.clear = gr.Button("Clear", min_width=90, elem_id="clear")
        with gr.Row(elem_id="modes"):
            self.follow = gr.Checkbox(False, label="Continue the conversation", container=False)
            several = len(self.columns) > 1
            self.blind = gr.Checkbox(
                False, label="Blind vote between two arms", container=False, visible=several
            )
        with gr.Row(elem_id="examples"):
            self.examples = [gr.Button(each, size="sm", min_width=160) for each in EXAMPLES]

    def _choices(self) -> None:
        gr, chat = self.gr, self.chat
        tuning = chat.settings.evaluation
        with gr.Row():
            labels = [(LOCAL_LABEL if name == LOCAL else shown(name), name) for name in self.columns]
            self.shown = gr.CheckboxGroup(labels, value=self.columns, label="Arms", scale=3, min_width=260)
            clients = [(shown(name.removeprefix(LOCAL)), name) for name in chat.local]
            self.client = gr.Dropdown(
                clients,
                value=chat.local[0] if chat.local else None,
                label="Local client",
                visible=len(clients) > 1,
                min_width=160,
            )
            self.training = gr.Dropdown(
                [(str(seed), seed) for seed in chat.trainings],
                value=next(iter(chat.trainings)),
                label="Seed of training",
                visible=len(chat.trainings) > 1,
                min_width=120,
            )
        with gr.Accordion("Template and sampling", open=False), gr.Row():
            style = chat.settings.data.template
            self.template = gr.Dropdown(list(chat.templates), value=style, label="Template", min_width=160)
            self.temperature = gr.Slider(
                0, 2, 0, step=0.05, label="Temperature (0: the likeliest answer)", min_width=200
            )
            self.top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", min_width=200)
            self.longest = gr.Slider(
                1,
                chat.max_answer_tokens,
                min(tuning.max_new_tokens, chat.max_answer_tokens),
                step=1,
                label="Longest answer, in tokens",
                min_width=200,
            )
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, min_width=120)
            self.formatted = gr.Checkbox(False, label="Show Markdown as formatted", min_width=160)
            self.system = gr.Textbox(
                self._own_system(),
                label="System prompt",
                lines=2,
                max_lines=8,
                min_width=260,
                placeholder="As the template has it.",
            )

    def _answers(self) -> None:
        gr = self.gr
        self.status = gr.HTML(status_line(""), elem_classes="chat-status", elem_id="chat-status")
        self.heads: list[Any] = []
        self.texts: list[Any] = []
        self.copies: list[Any] = []
        self.boxes: list[Any] = []
        with gr.Row(elem_id="answers") as self.answers_box:
            for name in self.columns:
                arm = self._arm(name, self.chat.local[0] if self.chat.local else None)
                with gr.Column(min_width=200) as box:
                    self.heads.append(gr.HTML(self._heading(arm), elem_classes="arm"))
                    text = gr.HTML(
                        answer_text(""), elem_classes="answer", elem_id=f"answer-{len(self.texts)}"
                    )
                    self.copies.append(gr.Button("Copy", size="sm", min_width=70))
                self.texts.append(text)
                self.boxes.append(box)
        self._ballot()
        self.kept = gr.State([])
        self.conversation = gr.State([])
        with gr.Accordion("Earlier questions of this session", open=False):
            self.history = gr.HTML(fragments.history([]), elem_classes="history", elem_id="history")
            self.forget = gr.Button("Forget them", size="sm", min_width=90, elem_id="forget")

    def _ballot(self) -> None:
        """Two answers without names, the buttons of a vote, and what the votes of this run come to."""
        gr = self.gr
        self.ballot = gr.State(None)
        with gr.Column(visible=False, elem_id="ballot") as self.ballot_box:
            with gr.Row(elem_id="blind"):
                self.blind_heads, self.blind_texts = [], []
                for name in "AB":
                    with gr.Column(min_width=200):
                        self.blind_heads.append(gr.HTML(fragments.blind_head(name), elem_classes="arm"))
                        self.blind_texts.append(
                            gr.HTML(answer_text(""), elem_classes="answer", elem_id=f"blind-{name}")
                        )
            with gr.Row():
                self.votes = [gr.Button(label, min_width=90, interactive=False) for label, _ in CHOICES]
            gr.HTML(fragments.notice(self.chat.path / votes.FOLDER), elem_classes="votes", elem_id="notice")
            self.standings = gr.HTML(
                fragments.standings(self.chat.path), elem_classes="votes", elem_id="standings"
            )

    def _wire(self) -> None:
        gr = self.gr
        private = {"api_visibility": "private"}
        immediate = {**private, "queue": False, "show_progress": "hidden"}
        sampling = [self.template, self.temperature, self.top_p, self.longest, self.seed]
        asked = [self.instruction, self.context, self.shown, self.client, self.training, self.system]
        session = [self.kept, self.conversation]
        ask_events = [self.ask.click, self.instruction.submit]
        status = [self.status, self.ask, self.stop, self.clear]
        gr.on(ask_events, None, None, status, js=fragments.waiting_script(), **immediate)
        asking = gr.on(
            ask_events,
            self._answer_question,
            [*asked, *sampling, self.formatted, self.follow, self.blind, *session],
            [self.status, *self.texts, *session, self.history, *self._of_ballot()],
            concurrency_limit=1,
            trigger_mode="once",
            show_progress="hidden",
            **private,
        )
        for ended in (asking.then, asking.failure):  # only `failure` comes if a number is out of range
            ended(None, self.status, status, js=fragments.ended_script("Stopped."), **immediate)
        self.stop.click(None, cancels=asking, **immediate)
        cleared = [self.instruction, self.context, self.status, *self.texts, self.conversation]
        self.clear.click(self._cleared, None, [*cleared, *self._of_ballot()], **immediate)
        self.blind.change(
            lambda blind: [
                gr.Row(visible=not blind),
                gr.Column(visible=blind),
                gr.Checkbox(visible=not blind),
            ],
            self.blind,
            [self.answers_box, self.ballot_box, self.follow],
            **immediate,
        )
        voted = [self.status, self.ballot, *self.votes, *self.blind_heads, self.standings]
        for button, (_, choice) in zip(self.votes, CHOICES, strict=True):
            vote = partial(self._voted, choice=choice)
            button.click(vote, self.ballot, voted, trigger_mode="once", **immediate)
        self.forget.click(lambda: [[], fragments.history([])], None, [self.kept, self.history], **immediate)
        for button, words in zip(self.examples, EXAMPLES, strict=True):
            button.click(None, None, self.instruction, js=f"() => {json.dumps(words)}", **immediate)
        for place, button in enumerate(self.copies):
            button.click(None, None, None, js=fragments.copy_script(f"answer-{place}"), **immediate)
        self.shown.change(self._visible, self.shown, self.boxes, **immediate)
        if LOCAL in self.columns:
            place = self.columns.index(LOCAL)
            local = [self.heads[place], self.texts[place]]
            self.client.change(
                lambda name: [self._heading(name), answer_text("")], self.client, local, **immediate
            )

    def _own_system(self) -> str:
        """The system prompt of the run; a run without one shows an empty box, as one with an empty prompt."""
        return self.chat.settings.data.system or ""

    def _arm(self, column: str, client: str | None) -> str:
        return client if column == LOCAL and client else column

    def _heading(self, name: str) -> str:
        arm = self.chat.arms[name]
        return f"<h3>{plain(arm.name)}</h3><p>{plain(arm.says)}</p>"

    def _visible(self, shown: Sequence[str]) -> list[Any]:
        return [self.gr.Column(visible=name in shown) for name in self.columns]

    def _of_ballot(self) -> list[Any]:
        return [self.ballot, *self.votes, *self.blind_heads, *self.blind_texts]

    def _cleared(self) -> Updates:
        empty = {self.instruction: "", self.context: "", self.conversation: []}
        return {**empty, **self._outputs("", {}, {}), **self._no_ballot()}

    def _no_ballot(self) -> Updates:
        """The panel of a vote without answers."""
        return {
            self.ballot: None,
            **dict.fromkeys(self.votes, self.gr.Button(interactive=False)),
            **{head: fragments.blind_head(name) for head, name in zip(self.blind_heads, "AB", strict=True)},
            **dict.fromkeys(self.blind_texts, answer_text("")),
        }

    def _answer_question(
        self,
        instruction: str,
        context: str,
        shown: Sequence[str],
        client: str | None,
        training: int,
        system: str,
        template: Any,
        temperature: float,
        top_p: float,
        longest: int,
        seed: int | None,
        formatted: bool,
        follow: bool,
        blind: bool,
        kept: Sequence[Asked],
        conversation: Sequence[Asked],
    ) -> Iterator[Updates]:
        """Yield what changes on the page as answers grow: the answers, and the session's state at the end."""
        arms = {name: self._arm(name, client) for name in self.columns if name in shown}
        options = {
            "training": training,
            "system": None if system == self._own_system() else system,
            "template": template,
            "temperature": temperature,
            "top_p": top_p,
            "max_new_tokens": int(longest),
            "seed": int(seed or 0),
        }
        now = Turn(role="user", text=instruction or "", context=context or "")
        show = as_html if formatted else plain
        if blind:
            steps = self._blind_steps(now, list(arms.values()), options, show)
        else:
            before = [*conversation] if follow else []
            steps = self._steps(now, arms, options, show, kept, before)
        last: Updates = {}
        try:
            with closing(steps):
                for last in throttled(steps, UPDATE_INTERVAL_S):
                    yield last
        except ShepherdError as error:
            yield {**last, self.status: status_line(str(error), WRONG)}
        except Exception as error:  # such as a full GPU; the page stays usable
            _log.exception("an answer failed")
            message = f"the answer failed ({type(error).__name__}: {error}); see the terminal"
            yield {**last, self.status: status_line(message, WRONG)}

    def _steps(
        self,
        now: Turn,
        arms: Mapping[str, str],
        options: Mapping[str, Any],
        show: Callable[[str], str],
        kept: Sequence[Asked],
        before: Sequence[Asked],
    ) -> Generator[Updates, None, None]:
        """All arms side by side, each going on from its own answers of the conversation `before`."""
        began = perf_counter()
        texts: dict[str, str] = {}
        yield self._outputs(_GOING, arms, texts, GOING)
        earlier = {arm: _turns(before, arm, options["training"]) for arm in arms.values()}
        answers = self.chat.answer(
            now.text, now.context, arms=list(arms.values()), earlier=earlier, **options
        )
        with closing(answers):
            for texts in answers:
                yield self._outputs(_GOING, arms, texts, GOING, show)
        asked: Asked = (now.text, now.context, texts, options["training"])
        history = [*kept, asked][-MAX_HISTORY:]
        turn = f", turn {len(before) + 1} of this conversation" if before else ""
        done = f"Answered in {perf_counter() - began:.1f} s{turn}."
        yield {
            **self._outputs(done, arms, texts, "", show),
            self.kept: history,
            self.conversation: [*before, asked],
            self.history: fragments.history(history),
        }

    def _blind_steps(
        self, now: Turn, arms: Sequence[str], options: Mapping[str, Any], show: Callable[[str], str]
    ) -> Generator[Updates, None, None]:
        """Two of the arms, drawn and placed by chance, under the names A and B."""
        if len(arms) < 2:
            raise DataError("a blind vote is between two arms; choose at least two")
        first, second = SystemRandom().sample(arms, 2)
        yield {self.status: status_line(_GOING, GOING), **self._no_ballot()}
        texts = {first: "", second: ""}
        answers = self.chat.answer(now.text, now.context, arms=[first, second], **options)
        with closing(answers):
            for texts in answers:
                yield {
                    self.status: status_line(_GOING, GOING),
                    **self._blind_answers(texts, show),
                }
        if texts[first] == texts[second]:
            same = "Both answers are the same, so there is nothing to choose; ask something else."
            yield {self.status: status_line(same), **self._blind_answers(texts, show, ended=True)}
            return
        said = options["system"] if options["system"] is not None else self._own_system()
        system = [Turn(role="system", text=said)] if said else []
        ballot = Ballot(
            prompt=(*system, now),
            arms=(first, second),
            answers=(texts[first], texts[second]),
            options={key: value for key, value in options.items() if key != "system"},
        )
        yield {
            self.status: status_line("Which answer is better?"),
            **self._blind_answers(texts, show, ended=True),
            self.ballot: ballot,
            **dict.fromkeys(self.votes, self.gr.Button(interactive=True)),
        }

    def _blind_answers(
        self, texts: Mapping[str, str], show: Callable[[str], str], ended: bool = False
    ) -> Updates:
        drawn = (answer_text(text, show, ended) for text in texts.values())
        return dict(zip(self.blind_texts, drawn, strict=True))

    def _voted(self, ballot: Ballot | None, choice: int | None) -> Updates:
        """Save a vote, and show whose answers they were."""
        if ballot is None:
            return {self.status: status_line("There is nothing to vote on; ask a question first.", WRONG)}
        try:
            votes.keep(self.chat.path, ballot, choice)
        except ShepherdError as error:
            return {self.status: status_line(str(error), WRONG)}
        named = zip(self.blind_heads, "AB", ballot.arms, strict=True)
        return {
            self.status: status_line(f"Saved. A was {ballot.arms[0]}, B was {ballot.arms[1]}."),
            self.ballot: None,
            **dict.fromkeys(self.votes, self.gr.Button(interactive=False)),
            **{head: fragments.blind_head(name, arm) for head, name, arm in named},
            self.standings: fragments.standings(self.chat.path),
        }

    def _outputs(
        self,
        status: str,
        arms: Mapping[str, str],
        texts: Mapping[str, str],
        kind: str = "",
        show: Callable[[str], str] | None = None,
    ) -> Updates:
        asked = [arms.get(name, "") for name in self.columns]
        ended = kind != GOING
        shown = (answer_text(texts.get(arm, ""), show or plain, ended and arm in texts) for arm in asked)
        return {self.status: status_line(status, kind), **dict(zip(self.texts, shown, strict=True))}


def _turns(before: Sequence[Asked], arm: str, training: int) -> list[Turn]:
    """The conversation with one arm of one seed so far: the questions that it answered, and its answers."""
    return [
        turn
        for instruction, context, texts, seed in before
        if arm in texts and seed == training
        for turn in (
            Turn(role="user", text=instruction, context=context),
            Turn(role="assistant", text=texts[arm]),
        )
    ]


def throttled(values: Iterator[T], seconds: float) -> Iterator[T]:
    """The values that come at least `seconds` after the last one yielded, and the final value."""
    shown = float("-inf")
    value = None
    for value in values:
        if perf_counter() - shown >= seconds:
            yield value
            shown, value = perf_counter(), None
    if value is not None:
        yield value
