"""The judge's endpoint. Only this file imports `openai`; it is imported late, when a judge is asked.

`openai` itself retries a request, with growing pauses and as Retry-After asks, after a time-out, a dropped
connection, a 408, 409, 429 or 5xx. The cases that it does not retry are retried here: a body that is no chat
completion, and an error in the body of a 200, as gateways send it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import openai

from shepherd.errors import JudgeError
from shepherd.judge import prompts
from shepherd.judge.agreed import URL, is_local
from shepherd.judge.cache import Reply
from shepherd.settings import JudgeTable

FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 8.0
"""Pause before the second try, which doubles with each further one; and the longest pause."""

OPENAI_ONLY_VARIABLES = (
    *("OPENAI_ADMIN_KEY", "OPENAI_CUSTOM_HEADERS", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"),
    "OPENAI_WEBHOOK_SECRET",
)
"""Environment variables that are sent to OpenAI's own address only."""

_MIN_KEY_CHARS = 8
"""Shortest key that is treated as secret; "EMPTY" and "none" are usual for local servers."""


_FILTERED = frozenset(
    {"content_filter", "safety", "refusal", "prohibited_content", "blocklist", "recitation"}
)
"""Finish reasons, in lower case, of content filters: OpenAI's and those of gateways."""
_WORTH_ANOTHER = frozenset({408, 409, 429})
"""Codes below 500 after which a retry may succeed."""
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


class Refused(Exception):
    """The endpoint refuses this one prompt (too long, or against its rules); the message says why."""


class Wordless(Exception):
    """The reply ended before its first word: the model spent all its tokens on thinking."""


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Options of a request that an endpoint accepts."""

    limit: str = "max_tokens"
    """Name of the token limit: OpenAI's newer models accept only max_completion_tokens."""
    temperature: bool = True
    """Whether it accepts a temperature: reasoning models have their own."""

    def instead(self, error: Any) -> RequestOptions:
        """Options to try after an error; the same ones where the error is about something else.

        >>> RequestOptions().instead({"message": "Unsupported value", "param": "temperature"})
        RequestOptions(limit='max_tokens', temperature=False)
        """
        named = error.get("param") if isinstance(error, Mapping) else None
        said = f"{_words(error)} {named or ''}".lower()
        unknown = named == "max_tokens" and "unsupported" in f"{said} {error.get('code')}"
        if self.limit == "max_tokens" and (unknown or "max_completion_tokens" in said):
            return replace(self, limit="max_completion_tokens")
        return replace(self, temperature=self.temperature and "temperature" not in said)


@dataclass(slots=True)
class Endpoint:
    """An open connection to the judge; made by `opened`."""

    table: JudgeTable
    client: openai.AsyncOpenAI
    options: RequestOptions = RequestOptions()

    async def reply(self, prompt: str) -> Reply:
        """Send one prompt and return the reply, with retries.

        Raises:
            Refused: the endpoint refuses this prompt; it may answer others.
            Wordless: the reply has no word.
            JudgeError: the endpoint cannot be used, or did not answer after all retries.
        """
        fault: Exception = JudgeError(
            f"{self.table.base_url} does not answer with chat completions{self._tries()}; "
            "check that judge.base_url is OpenAI-compatible"
        )
        for attempt in range(self.table.retries + 1):
            if attempt:
                await asyncio.sleep(
                    min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)) * random.uniform(0.75, 1.0)
                )
            completion, options = await self._completion(prompt)
            error = _error_in(completion)
            if error is not None:
                code = _code(error)
                where = f"error {code}" if code else "an error"
                fault = self._fault(code, f"{where} in the body of a 200", self._said(error), "nowhere")
                if code is None or code >= 500 or code in _WORTH_ANOTHER:
                    continue
                break
            read = self._read(completion)
            if read is not None:
                return replace(read, own_temperature=not options.temperature)
        raise fault

    def _read(self, completion: Any) -> Reply | None:
        """Parse a reply; None if the body is no chat completion."""
        try:
            choice = completion.choices[0]
            message, usage = choice.message, completion.usage
            text, cut = _text(message.content), choice.finish_reason == "length"
            refusal, finish = getattr(message, "refusal", None), str(choice.finish_reason).lower()
            spoken = prompts.spoken(text).strip()
            thought = _thought(message, usage) or bool(text.strip())
            read = Reply(
                text=self._safe(text),
                cut=cut,
                prompt_tokens=_count(usage, "prompt_tokens"),
                completion_tokens=_count(usage, "completion_tokens"),
            )
        except (AttributeError, TypeError, IndexError, KeyError):
            return None
        if finish in _FILTERED:
            raise Refused(f"its content filter stopped the reply: {finish}")
        if not spoken and refusal:
            raise Refused(f"it declines: {self._said(refusal)}")
        if not spoken and (cut or thought):
            raise Wordless
        return read

    async def _completion(self, prompt: str) -> tuple[Any, RequestOptions]:
        """The endpoint's answer, None if it is not JSON; and the options of the request."""
        fault: Exception
        try:
            return await self._create(prompt)
        except openai.APIStatusError as error:
            fault = self._status_fault(error)
        except openai.APIConnectionError as error:
            fault = self._connection_fault(error)
        except (openai.APIError, ValueError, RecursionError):
            return None, self.options
        raise fault  # outside the handler, since the client's exception has the key in its request

    def _connection_fault(self, error: openai.APIConnectionError) -> JudgeError:
        url = self.table.base_url
        if isinstance(error, openai.APITimeoutError):
            return JudgeError(
                f"{url} did not answer within {self.table.timeout:g} s{self._tries()}; "
                "raise judge.timeout or lower judge.concurrency"
            )
        why = self._safe(str(error.__cause__ or error)) or "the connection broke"
        names = [] if is_local(url) else _set_variables(_PROXIES)
        through = f", through the proxy in {' or '.join(names)}" if names else ""
        return JudgeError(f"{url} cannot be reached{through} ({why}); check judge.base_url and the network")

    async def _create(self, prompt: str) -> tuple[Any, RequestOptions]:
        """Send a request with the options that worked before, adapting them to errors about options.

        Concurrent requests each adapt on their own; the options that succeeded are kept for the next.
        """
        options = self.options
        while True:
            try:
                completion = await self._send(prompt, options)
                error = _error_in(completion)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as refusal:
                error = refusal.body
                if options.instead(error) == options:
                    raise
            if error is None:
                self.options = options
                return completion, options
            if options.instead(error) == options:
                return completion, options
            options = options.instead(error)

    async def _send(self, prompt: str, options: RequestOptions) -> Any:
        arguments: dict[str, Any] = {options.limit: self.table.max_tokens}
        if options.temperature:
            arguments["temperature"] = self.table.temperature
        return await self.client.chat.completions.create(
            model=self.table.model, messages=[{"role": "user", "content": prompt}], **arguments
        )

    def _status_fault(self, error: openai.APIStatusError) -> Exception:
        to = self._safe(error.response.headers.get("location", "nowhere"))
        return self._fault(error.status_code, f"HTTP {error.status_code}", self._said(error.body), to)

    def _fault(self, code: int | None, where: str, said: str, to: str) -> Exception:
        """The exception for an HTTP code, or for the code, if any, of an error in the body of a 200."""
        url, model = self.table.base_url, self.table.model
        match code:
            case 301 | 302 | 303 | 307 | 308:
                return JudgeError(
                    f"{url} redirects to {to} ({where}), where nothing was sent; to use that address,"
                    " set judge.base_url to it"
                )
            case None | 400 | 413 | 422:
                return Refused(f"{where}: {said}")
            case 401 | 403:
                whose = (
                    f"the key in {self.table.key_env}" if self.table.key_env else "a request without a key"
                )
                return JudgeError(f"{url} refuses {whose} ({where}); check judge.key_env and judge.base_url")
            case 402:
                return JudgeError(f"{url} requires payment ({where}: {said}); top up the account")
            case 404:
                return JudgeError(
                    f"{url} has no model {model}, or no chat completions ({where}: {said}); check judge.model"
                    ", and judge.base_url, which usually ends in /v1"
                )
            case 407:
                names = " or ".join(_set_variables(_PROXIES)) or "the environment"
                return JudgeError(
                    f"the proxy in {names} needs a user name and a password ({where}); add them to its"
                    " address"
                )
            case 429:
                return JudgeError(
                    f"{url} gets too many requests or its quota is used up ({where}{self._tries()}: {said}); "
                    "wait, or lower judge.concurrency"
                )
        return JudgeError(
            f"{url} fails with {where}{self._tries()} ({said}); try again later, or check its log"
        )

    def _said(self, error: Any) -> str:
        """The endpoint's error message, in one line and without the key."""
        said = _words(error) or "no reason given"
        return self._safe(" ".join(said.split()))[:200].rstrip(". ")

    def _safe(self, text: str) -> str:
        key = self.client.api_key
        return text.replace(key, "[the key]") if len(key) >= _MIN_KEY_CHARS else text

    def _tries(self) -> str:
        tries = self.table.retries + 1
        return f", {tries} times" if tries > 1 else ""


@asynccontextmanager
async def opened(table: JudgeTable) -> AsyncIterator[Endpoint]:
    """Open the endpoint of the table, with the key from the environment.

    Raises:
        JudgeError: the key is missing or not printable, or a proxy or certificate of the environment
            cannot be used.
    """
    key = _key(table.key_env)
    # the library would follow a redirection with all that it sends, and send what is meant for this machine
    # through a proxy; a proxy of the environment is the person's own
    network = _network(trust_env=not is_local(table.base_url))
    with _hidden(() if table.base_url == URL else OPENAI_ONLY_VARIABLES):
        made = openai.AsyncOpenAI(
            api_key=key,
            base_url=table.base_url,
            timeout=table.timeout,
            max_retries=table.retries,
            http_client=network,
        )
    async with made as client:
        yield Endpoint(table, client)


def _network(*, trust_env: bool) -> Any:
    try:
        return openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=trust_env)
    except OSError as error:
        names = " or ".join(_set_variables(_CERTIFICATES)) or "SSL_CERT_FILE"
        raise JudgeError(
            f"the certificates in {names} cannot be read ({error.strerror or error}); correct that "
            "environment variable, or unset it"
        ) from None
    except Exception as error:  # which it is differs by the library's version
        proxies = _set_variables(_PROXIES)
        if not proxies:
            raise
        raise JudgeError(_proxy_fault(proxies, error)) from None


def _proxy_fault(names: Sequence[str], error: Exception) -> str:
    """Why a proxy of the environment cannot be used, without its address, which may hold a password."""
    which = " or ".join(names)
    if isinstance(error, ImportError):
        return (
            f"the environment variable {which} names a SOCKS proxy, which needs the package socksio; install "
            "it by pip install socksio, or unset the variable for this command"
        )
    return (
        f"the environment variable {which} names a proxy that cannot be used; write it as "
        "http://HOST:PORT or socks5://HOST:PORT, or unset it for this command"
    )


def _set_variables(names: Sequence[str]) -> list[str]:
    """Names of those environment variables that are set, in upper or lower case."""
    return [each for name in names for each in (name, name.lower()) if os.environ.get(each)]


@contextmanager
def _hidden(names: Sequence[str]) -> Iterator[None]:
    """Hide environment variables from the library, which would send them to any host (law 12)."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _key(name: str) -> str:
    if not name:
        return "none"  # the client requires a text
    key = os.environ.get(name, "").strip()
    if not key:
        raise JudgeError(
            f"the judge's key is missing; put it into the environment variable {name}, or set "
            'judge.key_env to the name of another (or to "" for an endpoint that needs none)'
        )
    if not (key.isascii() and key.isprintable()):
        raise JudgeError(f"the environment variable {name} holds no valid key; copy the key again")
    return key


def _error_in(completion: Any) -> Any:
    """The error in the body of a 200 or in its choice; None for none."""
    if completion is None or isinstance(completion, str):
        return None
    if getattr(completion, "object", None) == "error":
        return {name: getattr(completion, name, None) for name in ("message", "code", "param")}
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    return getattr(completion, "error", None) or getattr(choice, "error", None)


def _code(error: Any) -> int | None:
    """The code of an error, if it is an HTTP status."""
    found = error.get("code") or error.get("status") if isinstance(error, Mapping) else None
    code = int(found) if isinstance(found, int) or (isinstance(found, str) and found.isdecimal()) else 0
    return code if 400 <= code < 600 else None


def _words(error: Any) -> str:
    """The message in an error's body, in any of the usual forms, without what it repeats of the request.

    >>> _words({"detail": [{"loc": ["body", "temperature"], "msg": "not here", "input": "temperature"}]})
    'body.temperature: not here'
    """
    match error:
        case str():
            return error
        case [*parts]:
            return "; ".join(filter(None, map(_words, parts)))
        case {"loc": [*place], "msg": str() as said}:
            return f"{'.'.join(map(str, place))}: {said}"
        case {"message": said} | {"detail": said} | {"error": said} | {"msg": said} if said:
            return _words(said)
    return ""


def _text(content: Any) -> str:
    """The text of a message; some servers send it in parts, with thoughts among them."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _thought(message: Any, usage: Any) -> bool:
    """Whether the server reports that the model thought before its reply."""
    names = ("reasoning_content", "reasoning", "thinking")
    return (
        any(getattr(message, name, None) for name in names)
        or isinstance(message.content, list)
        or _count(getattr(usage, "completion_tokens_details", None), "reasoning_tokens") > 0
    )


def _count(usage: Any, name: str) -> int:
    number = getattr(usage, name, 0)
    return number if isinstance(number, int) else 0
