"""A real OpenAI-compatible HTTP server on loopback: it answers by a rule, and fails by a script."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Rule = Callable[[str], str]
Step = Callable[["Handler", str], None]


@dataclass
class Judge:
    """What the server does and has seen. `script` is used up first, one step a request; then the rule."""

    rule: Rule
    script: list[Step] = field(default_factory=list)
    always: Step | None = None
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    busiest: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _busy: int = 0

    @property
    def calls(self) -> int:
        return len(self.bodies)

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]

    @contextmanager
    def seen(self, handler: Handler, body: dict[str, Any]) -> Iterator[Step]:
        with self._lock:
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            step = self.script.pop(0) if self.script else self.always
        try:
            yield step or (lambda handler, prompt: said(handler, self.rule(prompt)))
        finally:
            with self._lock:
                self._busy -= 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    judge: Judge
    asked: dict[str, Any]
    """The body of the request that is answered."""

    def do_POST(self) -> None:
        body = self.asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.judge.seen(self, body) as step:
            if self.path != "/v1/chat/completions":
                step = status(404, "no such path")
            step(self, body["messages"][-1]["content"])

    def send(self, code: int, body: str, headers: dict[str, str] | None = None, cut: int = 0) -> None:
        data = body.encode()
        self.send_response(code)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data) + cut))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def said(handler: Handler, text: Any, finish: str = "stop", thought: int = 0, **more: Any) -> None:
    """A chat completion; every one costs 100 tokens to read and 10 to write, `thought` of them for that."""
    message = {"role": "assistant", "content": text, **more}
    usage = {
        **{"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }
    choice = {"index": 0, "message": message, "finish_reason": finish}
    completion = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    handler.send(200, json.dumps({**completion, "choices": [choice], "usage": usage}))


def status(code: int, message: str = "", **headers: str) -> Step:
    """An error in OpenAI's form; headers have _ for -, and ask for another try in a millisecond."""
    named = {"retry-after-ms": "1", **{name.replace("_", "-"): value for name, value in headers.items()}}
    body = json.dumps({"error": {"message": message or f"status {code}", "type": "t"}})
    return lambda handler, _: handler.send(code, body, named)


def body(text: str, **headers: str) -> Step:
    """A 200 with any body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, _: handler.send(200, text, named)


def failing(error: Any, **more: Any) -> Step:
    """A 200 whose body is an error, as gateways send it once they have begun."""
    return body(json.dumps({"error": error, **more}))


def dropped(handler: Handler, _: str) -> None:
    """Half a body, then the connection closes."""
    handler.send(200, '{"id": "x", "choi', cut=500)
    handler.close_connection = True


def hung_up(handler: Handler, _: str) -> None:
    """No answer at all."""
    handler.close_connection = True


def silent(handler: Handler, _: str) -> None:
    """Longer than any client of the tests waits."""
    handler.judge.stopping.wait(5)
    handler.close_connection = True


def shown(prompt: str) -> tuple[str, str]:
    """Both answers, as a judge reads them: each between its own marks."""
    mark = re.search(r"carry the mark (\w+)\.", prompt)
    assert mark
    blocks = [
        re.search(rf"BEGIN {name} ANSWER {mark[1]}\n(.*?)\nEND {name} ANSWER {mark[1]}", prompt, re.S)
        for name in ("FIRST", "SECOND")
    ]
    return blocks[0][1], blocks[1][1]  # type: ignore[index]


@contextmanager
def serving(judge: Judge) -> Iterator[Judge]:
    """The server on a free port until the block ends; its threads end with it."""
    handler = type("JudgeHandler", (Handler,), {"judge": judge})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False  # so that closing waits for them
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        judge.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
