"""The endpoint against a real server: what is tried again, what is not, and what is said."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, ItemsView, Iterator, MutableMapping
from email.utils import formatdate
from http.server import ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shepherd.errors import JudgeError, SettingsError
from shepherd.judge import client
from shepherd.judge.cache import Reply
from shepherd.settings import JudgeTable
from tests.judge import server
from tests.judge.conftest import KEY, table


def ask(settings: JudgeTable, prompt: str = "which?") -> Reply:
    async def once() -> Reply:
        async with client.opened(settings) as endpoint:
            return await endpoint.reply(prompt)

    return asyncio.run(once())


def fault(settings: JudgeTable, kind: type[Exception] = JudgeError) -> str:
    with pytest.raises(kind) as caught:
        ask(settings)
    message = str(caught.value)
    assert KEY not in message
    assert "\n" not in message
    return message


def test_a_reply_with_its_tokens(serve) -> None:
    judge = serve(lambda prompt: f"you asked {prompt}")
    said = ask(table(judge.url, temperature=0.5, max_tokens=77))
    assert said == Reply(text="you asked which?", prompt_tokens=100, completion_tokens=10)
    (body,) = judge.bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-1", 0.5, 77)
    assert body["messages"] == [{"role": "user", "content": "which?"}]
    assert judge.headers[0]["authorization"] == f"Bearer {KEY}"


FAULTS = {
    "429": server.status(429),
    "500": server.status(500),
    "503": server.status(503),
    "broken JSON": server.body('{"choices": [{"mess'),
    "no JSON": server.body("<html>busy</html>", content_type="text/html"),
    "not UTF-8": lambda handler, _: handler.wfile.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n\xff\xfe"
    ),
    "another object": server.body('{"detail": "warming up"}'),
    "no choice": server.body('{"choices": []}'),
    "choices of numbers": server.body('{"choices": 5}'),
    "dropped within the body": server.dropped,
    "hung up": server.hung_up,
    "time-out": server.silent,
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_passes_is_tried_again(serve, name: str) -> None:
    judge = serve(lambda _: "well", [FAULTS[name], FAULTS[name]])
    assert ask(table(judge.url, timeout=0.2, retries=2)).text == "well"
    assert judge.calls == 3


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_pass_is_one_sentence_after_the_last_try(serve, name: str) -> None:
    judge = serve(always=FAULTS[name])
    said = fault(table(judge.url, timeout=0.1, retries=1))
    assert judge.url in said
    assert judge.calls == 2


def test_the_sentences_name_what_to_do(serve) -> None:
    for step, words in (
        (
            server.status(429, "slow down"),
            r"HTTP 429, 2 times: slow down\); wait, or lower judge.concurrency",
        ),
        (server.status(500, "oops"), r"fails with HTTP 500, 2 times \(oops\)"),
        (server.silent, r"did not answer within 0.1 s, 2 times; raise judge.timeout"),
        (server.body("hello"), r"does not answer with chat completions, 2 times"),
    ):
        judge = serve(always=step)
        with pytest.raises(JudgeError, match=words):
            ask(table(judge.url, timeout=0.1, retries=1))


def test_retry_after_is_waited_for(serve) -> None:
    judge = serve(lambda _: "well", [server.status(429, retry_after_ms="", retry_after="0.3")])
    start = time.monotonic()
    assert ask(table(judge.url)).text == "well"
    assert time.monotonic() - start >= 0.3


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (401, "refuses the key in OPENAI_API_KEY (HTTP 401)"),
        (403, "refuses the key in OPENAI_API_KEY (HTTP 403)"),
        (404, "has no model judge-1, or no chat completions (HTTP 404: no such model)"),
    ],
)
def test_what_another_try_cannot_repair_is_not_tried_again(serve, code: int, words: str) -> None:
    judge = serve(always=server.status(code, "no such model"))
    assert words in fault(table(judge.url))
    assert judge.calls == 1


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_prompt_may_be_refused(serve, code: int) -> None:
    judge = serve(always=server.status(code, "too long.\nMuch"))
    assert fault(table(judge.url), client.Refused) == f"HTTP {code}: too long. Much"
    assert judge.calls == 1


def test_an_endpoint_out_of_reach_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        assert fault(table(url, retries=1)).startswith(f"{url} cannot be reached (")


def test_the_newer_name_of_the_token_limit_is_found_out_once(serve) -> None:
    def rule(handler: server.Handler, _: str) -> None:
        if "max_tokens" in handler.judge.bodies[-1]:
            server.status(400, "Unsupported parameter: use 'max_completion_tokens' instead")(handler, _)
        else:
            server.said(handler, "well")

    judge = serve(always=rule)

    async def twice() -> None:
        async with client.opened(table(judge.url, max_tokens=9)) as endpoint:
            assert (await endpoint.reply("a")).text == (await endpoint.reply("b")).text == "well"

    asyncio.run(twice())
    assert ["max_tokens" in body for body in judge.bodies] == [True, False, False]
    assert judge.bodies[-1]["max_completion_tokens"] == 9


def refusing(*names: str, by: Callable[[str], server.Step]) -> server.Step:
    """Refuses the first of these parameters that a request has, as `by` says."""

    def step(handler: server.Handler, prompt: str) -> None:
        name = next((name for name in names if name in handler.asked), None)
        by(name)(handler, prompt) if name else server.said(handler, "well")

    return step


def raw(code: int, content: object) -> server.Step:
    """A status with any body."""
    return lambda handler, _: handler.send(code, json.dumps(content))


WAYS: dict[str, Callable[[str], server.Step]] = {
    "OpenAI": lambda name: raw(
        400,
        {"error": {"message": f"Unsupported: {OTHERS[name]}", "code": "unsupported_value", "param": name}},
    ),
    "the parameter alone": lambda name: raw(
        400, {"error": {"message": "Not so.", "param": name, "code": "unsupported_parameter"}}
    ),
    "TGI": lambda name: raw(422, {"error": f"Input validation error: {OTHERS[name]}", "error_type": "v"}),
    "FastAPI": lambda name: raw(
        422, {"detail": [{"loc": ["body", name], "msg": f"extra, {OTHERS[name]}", "type": "x"}]}
    ),
    "in the body of a 200": lambda name: server.failing({"code": 400, "message": OTHERS[name]}),
    "as text in the body of a 200": lambda name: server.failing(f"bad request: {OTHERS[name]}"),
}
OTHERS = {
    "temperature": "`temperature` must be strictly positive",
    "max_tokens": "'max_tokens' is not known, use 'max_completion_tokens' instead",
}


@pytest.mark.parametrize(
    "names", [("temperature",), ("max_tokens", "temperature"), ("temperature", "max_tokens")]
)
@pytest.mark.parametrize("way", WAYS)
def test_what_a_judge_will_not_take_is_left_out_and_not_sent_again(serve, way: str, names) -> None:
    judge = serve(always=refusing(*names, by=WAYS[way]))

    async def twice() -> list[Reply]:
        async with client.opened(table(judge.url)) as endpoint:
            return [await endpoint.reply("a"), await endpoint.reply("b")]

    for reply in asyncio.run(twice()):
        assert (reply.text, reply.own_temperature) == ("well", "temperature" in names)
    assert judge.calls == len(names) + 2
    for body in judge.bodies[len(names) :]:
        assert not {*names} & {*body}
        assert body.get("max_tokens", body.get("max_completion_tokens")) == 512


def test_what_a_judge_will_not_take_is_found_out_by_many_at_once(serve) -> None:
    judge = serve(always=refusing("max_tokens", "temperature", by=WAYS["OpenAI"]))

    async def many() -> list[Reply]:
        async with client.opened(table(judge.url)) as endpoint:
            return await asyncio.gather(*(endpoint.reply(str(n)) for n in range(12)))

    assert [reply.text for reply in asyncio.run(many())] == ["well"] * 12


def test_a_refusal_that_only_repeats_the_request_changes_nothing(serve) -> None:
    echo = {"temperature": 0.0, "max_completion_tokens": None}
    part = {"loc": ["body", "messages"], "msg": "too long", "input": echo}
    judge = serve(lambda _: "well", [raw(422, {"detail": [part]})])

    async def twice() -> Reply:
        async with client.opened(table(judge.url)) as endpoint:
            with pytest.raises(client.Refused, match=r"HTTP 422: body\.messages: too long"):
                await endpoint.reply("a")
            return await endpoint.reply("b")

    assert asyncio.run(twice()) == Reply(text="well", prompt_tokens=100, completion_tokens=10)
    assert ["temperature" in body for body in judge.bodies] == [True, True]


def test_a_parameter_is_given_up_only_where_that_was_the_reason(serve) -> None:
    """A limit that is too large is no limit by another name."""
    said = "max_tokens is too large: 512; this model supports at most 100"
    judge = serve(always=raw(400, {"error": {"message": said, "param": "max_tokens", "code": None}}))
    assert said in fault(table(judge.url), client.Refused)
    assert judge.calls == 1


@pytest.mark.parametrize(
    ("error", "kind", "calls", "words"),
    [
        (
            {"code": 429, "message": "slow down"},
            JudgeError,
            3,
            "error 429 in the body of a 200, 3 times: slow",
        ),
        (
            {"code": "503", "message": "oops"},
            JudgeError,
            3,
            "fails with error 503 in the body of a 200, 3 times",
        ),
        (
            {"code": 401, "message": "no"},
            JudgeError,
            1,
            "refuses the key in OPENAI_API_KEY (error 401 in the",
        ),
        ({"code": 402, "message": "no credit"}, JudgeError, 1, "requires payment (error 402"),
        (
            {"code": 404, "message": "none"},
            JudgeError,
            1,
            "has no model judge-1, or no chat completions (error 404",
        ),
        ({"code": 400, "message": "too long"}, client.Refused, 1, "error 400 in the body of a 200: too long"),
        ({"code": 301, "message": "moved"}, client.Refused, 3, "an error in the body of a 200: moved"),
        (
            {"message": "the model is loading"},
            client.Refused,
            3,
            "an error in the body of a 200: the model is",
        ),
        ("out of memory", client.Refused, 3, "an error in the body of a 200: out of memory"),
        ({"type": "x"}, client.Refused, 3, "an error in the body of a 200: no reason given"),
        (f"bad key {KEY}", client.Refused, 3, "bad key [the key]"),
    ],
)
def test_an_error_in_the_body_of_a_200(
    serve, error: object, kind: type[Exception], calls: int, words: str
) -> None:
    judge = serve(always=server.failing(error))
    assert words in fault(table(judge.url, retries=2), kind)
    assert judge.calls == calls


@pytest.mark.parametrize(
    "wrong",
    [
        {"object": "error", "message": "busy", "code": 50001},
        {"choices": [{"error": {"code": 502, "message": "busy"}, "finish_reason": "error", "message": {}}]},
        {"choices": [], "error": {"code": 502, "message": "busy"}},
    ],
)
def test_an_error_in_other_places_of_a_200_is_tried_again_and_said(serve, wrong: object) -> None:
    judge = serve(lambda _: "well", [raw(200, wrong)] * 2)
    assert ask(table(judge.url, retries=2)).text == "well"
    with pytest.raises((JudgeError, client.Refused), match=r"in the body of a 200.*busy"):
        ask(table(serve(always=raw(200, wrong)).url, retries=1))


def test_a_completion_with_an_error_of_nothing_is_a_completion(serve) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "well"}, "finish_reason": "stop"}
    judge = serve(always=raw(200, {"choices": [{**choice, "error": None}], "error": None}))
    assert ask(table(judge.url)).text == "well"


@pytest.mark.parametrize("finish", ["content_filter", "SAFETY", "refusal", "sensitive", "IMAGE_SAFETY"])
@pytest.mark.parametrize("text", [None, "The first ans"])
def test_a_content_filter_refuses(serve, finish: str, text: str | None) -> None:
    judge = serve(always=lambda handler, _: server.said(handler, text, finish=finish))
    assert "content filter stopped the reply" in fault(table(judge.url), client.Refused)
    assert judge.calls == 1


def test_a_refusal_is_none_of_the_replies(serve) -> None:
    judge = serve(always=lambda handler, _: server.said(handler, None, refusal=f"I can't, {KEY}."))
    assert fault(table(judge.url), client.Refused) == "it declines: I can't, [the key]"


THOUGHT: dict[str, dict[str, Any]] = {
    "nothing, cut": {"text": None, "finish": "length"},
    "nothing but counted thought": {"text": "", "thought": 512, "finish": "stop"},
    "thought in a field": {"text": None, "reasoning_content": "Hm, the first", "finish": "stop"},
    "thought in another field": {"text": "", "reasoning": "Hm", "finish": "length"},
    "thought in the text": {"text": "<think>\nHm\nVERDICT: first", "finish": "length"},
    "thought in the text, ended": {"text": "<think>\nHm</think>\n", "finish": "length"},
    "thought in a part": {"text": [{"type": "thinking", "thinking": "Hm"}], "finish": "length"},
}


@pytest.mark.parametrize("name", THOUGHT)
def test_a_reply_that_is_spent_before_its_first_word(serve, name: str) -> None:
    judge = serve(always=lambda handler, _: server.said(handler, **THOUGHT[name]))
    with pytest.raises(client.Wordless):
        ask(table(judge.url))
    assert judge.calls == 1


def test_a_reply_in_parts_is_its_text(serve) -> None:
    parts = [
        {"type": "thinking", "thinking": "Hm"},
        {"type": "text", "text": "we"},
        {"type": "text", "text": "ll"},
    ]
    judge = serve(always=lambda handler, _: server.said(handler, parts, thought=5))
    assert ask(table(judge.url)).text == "well"


PASSWORD = "of-mine-and-nobody-elses"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        (
            "ALL_PROXY",
            f"socks5://me:{PASSWORD}@127.0.0.1:9",
            "names a SOCKS proxy, which needs the package socksio",
        ),
        ("https_proxy", "socks5h://127.0.0.1:9", "names a SOCKS proxy"),
        (
            "all_proxy",
            f"socks://me:{PASSWORD}@127.0.0.1:9",
            "names a proxy that cannot be used; write it as http://",
        ),
        ("ALL_PROXY", "socks4://127.0.0.1:9", "names a proxy that cannot be used"),
        ("HTTP_PROXY", f"http://me:{PASSWORD}@:bad:port", "names a proxy that cannot be used"),
        ("HTTPS_PROXY", "http://[::1", "names a proxy that cannot be used"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_and_not_shown(
    monkeypatch, variable: str, value: str, words: str
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv(variable, value)
    said = fault(table("http://judge.example/v1", retries=0))
    assert words in said
    assert f"environment variable {variable} " in said
    assert PASSWORD not in said
    assert "judge" not in said  # the endpoint has nothing to do with it


def test_a_socks_proxy_is_nothing_to_a_judge_of_this_machine(serve, monkeypatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert ask(table(serve(lambda _: "well").url)).text == "well"


def test_a_proxy_out_of_reach_is_named(monkeypatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://me:{PASSWORD}@127.0.0.1:{taken.getsockname()[1]}")
        said = fault(table("http://judge.example/v1", retries=0))
    assert "cannot be reached, through the proxy in http_proxy" in said
    assert PASSWORD not in said


def test_a_proxy_that_wants_a_password_is_named(serve, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    said = fault(table(serve(always=server.status(407)).url))
    assert said.startswith("the proxy in HTTP_PROXY needs a user name and a password (HTTP 407)")


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_named(monkeypatch, tmp_path, text: str | None) -> None:
    if text:
        (tmp_path / "ca.pem").write_text(text)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert "the certificates in SSL_CERT_FILE cannot be read" in fault(table("https://judge.example/v1"))


def test_what_is_meant_for_openai_alone_is_sent_to_no_other_host(serve, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-mine")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Of-Mine: header-of-mine\nAuthorization: Bearer of-mine")
    judge = serve(lambda prompt: "well")
    ask(table(judge.url))
    (sent,) = judge.headers
    assert "of-mine" not in str(sent)
    assert os.environ["OPENAI_ORG_ID"] == "org-of-mine"  # still there for others


class Watched(MutableMapping[str, str]):
    """An environment that notes the names it is asked for; to go through all of it is no question."""

    def __init__(self, real: MutableMapping[str, str]) -> None:
        self.real, self.asked = real, set[str]()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self.real[name]

    def __setitem__(self, name: str, value: str) -> None:
        self.real[name] = value

    def __delitem__(self, name: str) -> None:
        del self.real[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.real)

    def __len__(self) -> int:
        return len(self.real)

    def __contains__(self, name: object) -> bool:
        return name in self.real

    def items(self) -> ItemsView[str, str]:
        return self.real.items()


SECRETS = (
    *("OPENAI_API_KEY", "OPENAI_BASE_URL", *client.OPENAI_ONLY_VARIABLES),
    *("AZURE_OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MINE"),
)


@pytest.mark.parametrize("key_env", ["", "MINE"])
def test_no_variable_is_read_but_the_one_with_the_key(serve, monkeypatch, key_env: str) -> None:
    judge = serve(lambda _: "well")
    for name in SECRETS:
        monkeypatch.setenv(name, f"of-mine-{name}")
    watched = Watched(os.environ)
    monkeypatch.setattr(os, "environ", watched)
    ask(table(judge.url, key_env=key_env))
    read = watched.asked & {*SECRETS} - {
        *client.OPENAI_ONLY_VARIABLES
    }  # those are gone when they are looked for
    assert read == {key_env} - {""}
    (sent,) = judge.headers
    assert [name for name in SECRETS if f"of-mine-{name}" in str(sent)] == [key_env] * bool(key_env)


def test_the_names_of_what_is_openais_alone_are_all_that_the_package_reads() -> None:
    """A variable that a new version reads should be thought about here."""
    import openai

    found: set[str] = set()
    for path in Path(openai.__file__).parent.rglob("*.py"):
        found |= set(re.findall(r"environ(?:\.get\(|\[)\s*[\"'](\w+)", path.read_text(encoding="utf8")))
    given = {"OPENAI_API_KEY", "OPENAI_BASE_URL"}  # to the client, as arguments
    elsewhere = {  # read when it is imported, or for clients of another kind
        *("OPENAI_LOG", "OPENAI_API_TYPE", "OPENAI_API_VERSION", "AZURE_OPENAI_ENDPOINT"),
        *("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
    }
    assert {name for name in found if name.startswith("OPENAI_")} <= {
        *client.OPENAI_ONLY_VARIABLES,
        *given,
        *elsewhere,
    }


def test_what_a_home_folder_has_for_a_host_is_not_sent(serve, monkeypatch, tmp_path) -> None:
    judge = serve(lambda _: "well")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password of-mine\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    ask(table(judge.url))
    assert judge.headers[0]["authorization"] == f"Bearer {KEY}"


def test_a_judge_of_this_machine_is_asked_through_no_proxy(serve, monkeypatch) -> None:
    judge, proxy = serve(lambda _: "well"), serve(lambda _: "never asked so")
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
    assert ask(table(judge.url)).text == "well"
    assert proxy.calls == 0
    assert "no such path" in fault(table("http://judge.example/v1", retries=0))
    assert proxy.calls == 1  # the person's own proxy, for other addresses


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirection_leads_to_no_other_host(serve, code: int) -> None:
    other = serve(lambda _: "sent on")
    judge = serve(always=server.status(code, location=f"{other.url}/chat/completions"))
    said = fault(table(judge.url))
    assert f"redirects to {other.url}/chat/completions (HTTP {code})" in said
    assert "judge.base_url" in said
    assert other.calls == 0
    assert judge.calls == 1


def test_a_reply_may_be_cut(serve) -> None:
    judge = serve(
        script=[
            lambda handler, _: server.said(handler, "so f", finish="length"),
            server.body('{"choices": [{"message": {"content": "bare"}}]}'),
        ]
    )
    settings = table(judge.url)
    assert ask(settings).cut
    assert ask(settings) == Reply(text="bare")  # nothing was said of tokens


def test_the_key_that_a_server_repeats_goes_no_further(serve) -> None:
    judge = serve(lambda _: f"your key is {KEY}", [server.status(400, f"bad key {KEY}")])
    assert fault(table(judge.url), client.Refused) == "HTTP 400: bad key [the key]"
    assert ask(table(judge.url)).text == "your key is [the key]"


def test_a_missing_key_is_asked_for_by_the_name_of_its_variable(serve, monkeypatch) -> None:
    judge = serve(lambda _: "well")
    monkeypatch.setenv("MINE", " ")
    for name in ("MINE", "NOT_SET_AT_ALL"):
        assert f"environment variable {name}" in fault(table(judge.url, key_env=name))
    monkeypatch.setenv("MINE", "sk-ключ-12345")
    with pytest.raises(JudgeError, match="MINE holds no valid key") as caught:
        ask(table(judge.url, key_env="MINE"))
    assert "ключ" not in str(caught.value)
    assert judge.calls == 0
    assert ask(table(judge.url, key_env="")).text == "well"
    assert judge.headers[0]["authorization"] == "Bearer none"


@pytest.mark.parametrize("finish", ["stop", "tool_calls", "other"])
@pytest.mark.parametrize("text", [None, "", " \n", []])
def test_an_empty_reply_is_none_to_keep(serve, finish: str, text: object) -> None:
    judge = serve(always=lambda handler, _: server.said(handler, text, finish=finish))
    if text == []:  # parts are how thoughts are sent
        with pytest.raises(client.Wordless):
            ask(table(judge.url))
    else:
        assert fault(table(judge.url), client.Refused) == f"its reply is empty, with finish_reason '{finish}'"


@pytest.mark.parametrize("finish", ["MAX_TOKENS", "max_tokens", "model_length"])
def test_a_limit_has_other_names(serve, finish: str) -> None:
    judge = serve(lambda _: "", [lambda handler, _: server.said(handler, "so f", finish=finish)])
    assert ask(table(judge.url)).cut
    with pytest.raises(client.Wordless):
        ask(table(serve(always=lambda handler, _: server.said(handler, None, finish=finish)).url))


@pytest.mark.parametrize("finish", ["error", "insufficient_system_resource"])
def test_a_reply_that_the_server_broke_off_is_asked_again(serve, finish: str) -> None:
    def broken(handler: server.Handler, _: str) -> None:
        server.said(handler, "The fir", finish=finish)

    assert ask(table(serve(lambda _: "well", [broken]).url)).text == "well"
    assert "breaks its replies off, 2 times" in fault(table(serve(always=broken).url, retries=1))


@pytest.mark.parametrize(
    "said",
    [
        "max_tokens is not supported with this model",
        "Unrecognized request argument supplied: max_tokens",
        "max_tokens: Extra inputs are not permitted",
    ],
)
def test_a_limit_that_is_unknown_in_other_words_gets_its_newer_name(serve, said: str) -> None:
    judge = serve(always=refusing("max_tokens", by=lambda _: server.status(400, said)))
    assert ask(table(judge.url)).text == "well"
    assert "max_completion_tokens" in judge.bodies[-1]


FILTERS = {
    "Azure": (400, {"error": {"message": "filtered", "code": "content_filter", "param": "prompt"}}),
    "Azure, within": (
        400,
        {"error": {"message": "filtered", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
    ),
    "OpenRouter": (403, {"error": {"message": "flagged", "code": 403, "metadata": {"reasons": ["x"]}}}),
    "in the body of a 200": (200, {"error": {"message": "filtered", "code": "content_filter"}}),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_of_the_request_refuses_that_prompt_alone(serve, name: str) -> None:
    judge = serve(always=raw(*FILTERS[name]))
    assert "its content filter stopped the request" in fault(table(judge.url), client.Refused)
    assert judge.calls == 1


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("invalid_api_key", "refuses the key in OPENAI_API_KEY"),
        ("model_not_found", "has no model judge-1"),
        ("insufficient_quota", "its quota is used up"),
    ],
)
@pytest.mark.parametrize("status", [200, 400])
def test_an_error_may_have_a_name_for_a_code(serve, status: int, code: str, words: str) -> None:
    judge = serve(always=raw(status, {"error": {"message": "no", "code": code}}))
    assert words in fault(table(judge.url, retries=0))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            server.body("<html><style>p {}</style><p>Sign in</p>", content_type="text/html"),
            "(it says: Sign in)",
        ),
        (server.body('{"success": false, "errors": [{"message": "no such account"}]}'), "no such account"),
        (server.body('{"choices": null, "base_resp": {"status_msg": "login fail"}}'), "login fail"),
        (server.body('{"message": "no Route matched"}'), "no Route matched"),
        (server.body("{}"), "chat completions; check"),
    ],
)
def test_what_is_no_completion_is_shown(serve, answer: server.Step, words: str) -> None:
    assert words in fault(table(serve(always=answer).url, retries=0))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1", "remove one /v1 from the end of judge.base_url"),
        ("/chat/completions", "remove /chat/completions from the end of judge.base_url"),
        ("/chat/completions/", "remove /chat/completions"),
        ("/models", "remove /models"),
        ("/other", "usually ends in /v1"),
    ],
)
def test_an_address_that_is_too_long_is_shortened(serve, path: str, words: str) -> None:
    said = fault(table(serve().url + path))
    assert words in said
    assert "HTTP 404" in said


@pytest.mark.parametrize("url", ["http://h:99999/v1", "http://h:abc/v1", "http://[::1/v1", "http://:80/v1"])
def test_an_address_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"judge\.base_url is not a plain http address"):
        table(url)


def test_only_what_is_tried_again_is_counted(serve) -> None:
    judge = serve(always=server.status(405, "Method Not Allowed"))
    assert "fails with HTTP 405 (Method" in fault(table(judge.url))
    assert judge.calls == 1


@pytest.mark.parametrize("wait", ["3600", "date"])
def test_a_wait_of_an_hour_is_said_and_not_waited_for(serve, wait: str) -> None:
    header = formatdate(time.time() + 3600, usegmt=True) if wait == "date" else wait
    judge = serve(always=lambda handler, _: handler.send(429, "{}", {"retry-after": header}))
    assert "asks to wait 60 minutes" in fault(table(judge.url))
    assert judge.calls == 1


@pytest.mark.parametrize(
    ("set_", "shown"),
    [
        ({"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "*"}, False),
        ({"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ".invalid"}, False),
        ({"HTTPS_PROXY": "http://127.0.0.1:9"}, False),
        ({"ALL_PROXY": "http://127.0.0.1:9", "NO_PROXY": "other.invalid"}, True),
    ],
)
def test_only_a_proxy_on_the_way_is_named(monkeypatch, set_: dict[str, str], shown: bool) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in set_.items():
        monkeypatch.setenv(name, value)
    assert ("through the proxy in" in fault(table("http://judge.invalid/v1", retries=0))) is shown


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A judge of this machine behind TLS, and the file of its certificate."""
    key, authority = tmp_path / "key.pem", tmp_path / "ca.pem"
    certify(key, authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, key)
    handler = type("TlsHandler", (server.Handler,), {"judge": server.Judge(lambda _: "well")})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"https://127.0.0.1:{http.server_port}/v1", authority
    http.shutdown()
    thread.join()
    http.server_close()


def certify(key: Path, certificate: Path) -> None:
    """Write a key and a certificate of its own for 127.0.0.1."""
    made = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "judge")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, made.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(made, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(made.private_bytes(serialization.Encoding.PEM, *private))


def test_a_certificate_that_is_not_trusted_says_how(encrypted, monkeypatch) -> None:
    url, authority = encrypted
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    said = fault(table(url, retries=0))
    assert said.startswith(f"the certificate of {url} cannot be trusted (self-signed certificate)")
    assert "SSL_CERT_FILE" in said
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    assert ask(table(url)).text == "well"


def test_a_server_without_tls_is_no_network_fault(serve) -> None:
    url = serve().url.replace("http:", "https:")
    assert fault(table(url, retries=0)).startswith(f"{url} does not answer with TLS; check the port")
