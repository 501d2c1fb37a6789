"""The endpoint. The only file that imports `openai`; it is imported late, where a judge is asked.

`openai` itself tries a request again, later each time and as Retry-After asks, after a time-out, a
dropped connection, a 408, 409, 429 or 5xx. What it lets pass is tried again here: a body that is no
chat completion, and one that is an error although the status is 200, as gateways send it.
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
from shepherd.judge.agreed import URL, is_here
from shepherd.judge.cache import Reply
from shepherd.settings import JudgeTable

PAUSE = 0.5
"""Seconds before the second try; twice as many before each further one, up to 8."""

OF_OPENAI_ALONE = (
    *("OPENAI_ADMIN_KEY", "OPENAI_CUSTOM_HEADERS", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"),
    "OPENAI_WEBHOOK_SECRET",
)
"""Environment variables that are meant for OpenAI's own address alone."""

_SECRET = 8
"""Letters from which on a key is one; "EMPTY" and "none" are what local servers are given."""


_FILTERED = frozenset(
    {"content_filter", "safety", "refusal", "prohibited_content", "blocklist", "recitation"}
)
"""Reasons to finish, in small letters, that are not the model's own: OpenAI's and those of gateways."""
_WORTH_ANOTHER = frozenset({408, 409, 429})
"""Codes below 500 after which another try may do."""
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


class Refused(Exception):
    """The endpoint will not answer this one prompt (too long, or against its rules); says why."""


class Wordless(Exception):
    """The reply ended before its first word: a model that thinks first has spent all its tokens on that."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How an endpoint wants to be asked."""

    limit: str = "max_tokens"
    """What it calls the limit: OpenAI's newer models know max_completion_tokens alone."""
    temperature: bool = True
    """Whether it takes one: models that reason have their own."""

    def instead(self, error: Any) -> Manner:
        """What to try after an error's body; the same where that is about something else.

        >>> Manner().instead({"message": "Unsupported value", "param": "temperature"})
        Manner(limit='max_tokens', temperature=False)
        """
        named = error.get("param") if isinstance(error, Mapping) else None
        said = f"{_words(error)} {named or ''}".lower()
        unknown = named == "max_tokens" and "unsupported" in f"{said} {error.get('code')}"
        if self.limit == "max_tokens" and (unknown or "max_completion_tokens" in said):
            return replace(self, limit="max_completion_tokens")
        return replace(self, temperature=self.temperature and "temperature" not in said)


@dataclass(slots=True)
class Endpoint:
    """An open connection; from `opened`."""

    table: JudgeTable
    client: openai.AsyncOpenAI
    manner: Manner = Manner()

    async def reply(self, prompt: str) -> Reply:
        """Ask once.

        Raises:
            Refused: this prompt is not answered; others may be.
            Wordless: it is, without a word.
            JudgeError: the endpoint cannot be used, or did not answer in so many tries.
        """
        fault: Exception = JudgeError(
            f"{self.table.base_url} does not answer with chat completions{self._tries()}; "
            "check that judge.base_url is OpenAI-compatible"
        )
        for attempt in range(self.table.retries + 1):
            if attempt:
                await asyncio.sleep(min(8.0, PAUSE * 2 ** (attempt - 1)) * random.uniform(0.75, 1.0))
            completion, manner = await self._completion(prompt)
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
                return replace(read, own_temperature=not manner.temperature)
        raise fault

    def _read(self, completion: Any) -> Reply | None:
        """The reply; None if the body was no chat completion."""
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
            raise Refused(f"its content filter stopped the reply, {finish}")
        if not spoken and refusal:
            raise Refused(f"it declines: {self._said(refusal)}")
        if not spoken and (cut or thought):
            raise Wordless
        return read

    async def _completion(self, prompt: str) -> tuple[Any, Manner]:
        """What the endpoint answers, None if that is no JSON; and how it was asked."""
        fault: Exception
        try:
            return await self._create(prompt)
        except openai.APIStatusError as error:
            fault = self._status_fault(error)
        except openai.APIConnectionError as error:
            fault = self._connection_fault(error)
        except (openai.APIError, ValueError, RecursionError):
            return None, self.manner
        raise fault  # from here, since the client's own exception carries the key in its request

    def _connection_fault(self, error: openai.APIConnectionError) -> JudgeError:
        url = self.table.base_url
        if isinstance(error, openai.APITimeoutError):
            return JudgeError(
                f"{url} was silent for {self.table.timeout:g} s{self._tries()}; "
                "raise judge.timeout or lower judge.concurrency"
            )
        why = self._safe(str(error.__cause__ or error)) or "the connection broke"
        names = [] if is_here(url) else _set(_PROXIES)
        through = f", by way of the proxy in {' or '.join(names)}" if names else ""
        return JudgeError(f"{url} cannot be reached{through} ({why}); check judge.base_url and the network")

    async def _create(self, prompt: str) -> tuple[Any, Manner]:
        """Ask in the manner that the endpoint is known to want, and find out where it wants another.

        Requests under way side by side each find out for themselves; what succeeded is kept for the next.
        """
        manner = self.manner
        while True:
            try:
                completion = await self._send(prompt, manner)
                error = _error_in(completion)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as refusal:
                error = refusal.body
                if manner.instead(error) == manner:
                    raise
            if error is None:
                self.manner = manner
                return completion, manner
            if manner.instead(error) == manner:
                return completion, manner
            manner = manner.instead(error)

    async def _send(self, prompt: str, manner: Manner) -> Any:
        options: dict[str, Any] = {manner.limit: self.table.max_tokens}
        if manner.temperature:
            options["temperature"] = self.table.temperature
        return await self.client.chat.completions.create(
            model=self.table.model, messages=[{"role": "user", "content": prompt}], **options
        )

    def _status_fault(self, error: openai.APIStatusError) -> Exception:
        to = self._safe(error.response.headers.get("location", "nowhere"))
        return self._fault(error.status_code, f"HTTP {error.status_code}", self._said(error.body), to)

    def _fault(self, code: int | None, where: str, said: str, to: str) -> Exception:
        """What a code means: of a status, or of an error in the body of a 200, which may have none."""
        url, model = self.table.base_url, self.table.model
        match code:
            case 301 | 302 | 303 | 307 | 308:
                return JudgeError(
                    f"{url} sends on to {to} ({where}), where nothing was sent; if you want that address,"
                    " give it as judge.base_url"
                )
            case None | 400 | 413 | 422:
                return Refused(f"{where}: {said}")
            case 401 | 403:
                whose = (
                    f"the key in {self.table.key_env}" if self.table.key_env else "a request without a key"
                )
                return JudgeError(f"{url} refuses {whose} ({where}); check judge.key_env and judge.base_url")
            case 402:
                return JudgeError(f"{url} wants to be paid first ({where}: {said}); top up the account")
            case 404:
                return JudgeError(
                    f"{url} has no model {model}, or no chat ({where}: {said}); check judge.model, and "
                    "judge.base_url, which usually ends in /v1"
                )
            case 407:
                names = " or ".join(_set(_PROXIES)) or "the environment"
                return JudgeError(
                    f"the proxy in {names} wants a name and a password ({where}); put them into its address"
                )
            case 429:
                return JudgeError(
                    f"{url} is asked too often or its quota is used up ({where}{self._tries()}: {said}); "
                    "wait, or lower judge.concurrency"
                )
        return JudgeError(f"{url} fails with {where}{self._tries()} ({said}); wait, or look at its log")

    def _said(self, error: Any) -> str:
        """The endpoint's own words, in one line and without the key."""
        said = _words(error) or "no reason given"
        return self._safe(" ".join(said.split()))[:200].rstrip(". ")

    def _safe(self, text: str) -> str:
        key = self.client.api_key
        return text.replace(key, "[the key]") if len(key) >= _SECRET else text

    def _tries(self) -> str:
        tries = self.table.retries + 1
        return f", {tries} times" if tries > 1 else ""


@asynccontextmanager
async def opened(table: JudgeTable) -> AsyncIterator[Endpoint]:
    """The endpoint of the table, with the key from the environment.

    Raises:
        JudgeError: the key is not there.
    """
    key = _key(table.key_env)
    # the library would follow a redirection with all that it sends, and send what is meant for this machine
    # through a proxy; a proxy of the environment is the person's own
    network = _network(trust_env=not is_here(table.base_url))
    with _unread(() if table.base_url == URL else OF_OPENAI_ALONE):
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
        names = " or ".join(_set(_CERTIFICATES)) or "SSL_CERT_FILE"
        raise JudgeError(
            f"the certificates that {names} names cannot be read ({error.strerror or error}); correct that "
            "environment variable, or unset it"
        ) from None
    except Exception as error:  # which it is differs by the library's version
        proxies = _set(_PROXIES)
        if not proxies:
            raise
        raise JudgeError(_proxy_fault(proxies, error)) from None


def _proxy_fault(names: Sequence[str], error: Exception) -> str:
    """Why a proxy of the environment cannot be used; never its address, which may hold a password."""
    which = " or ".join(names)
    if isinstance(error, ImportError):
        return (
            f"the environment variable {which} names a SOCKS proxy, which needs the package socksio; install "
            "it by pip install socksio, or unset the variable for this command"
        )
    return (
        f"the environment variable {which} names no proxy that can be used here; write it as "
        "http://HOST:PORT or socks5://HOST:PORT, or unset it for this command"
    )


def _set(names: Sequence[str]) -> list[str]:
    """Those of these environment variables that are set, as they are written there."""
    return [each for name in names for each in (name, name.lower()) if os.environ.get(each)]


@contextmanager
def _unread(names: Sequence[str]) -> Iterator[None]:
    """Keep the library from reading these environment variables, which it would send to any host (law 12)."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _key(name: str) -> str:
    if not name:
        return "none"  # the client wants some text
    key = os.environ.get(name, "").strip()
    if not key:
        raise JudgeError(
            f"the judge's key is missing; put it into the environment variable {name}, or set "
            'judge.key_env to the name of another (or to "" for an endpoint that wants none)'
        )
    if not (key.isascii() and key.isprintable()):
        raise JudgeError(f"the environment variable {name} holds what can be no key; copy it anew")
    return key


def _error_in(completion: Any) -> Any:
    """The error that the body of a 200 is, or that stands in its choice; None where there is none."""
    if completion is None or isinstance(completion, str):
        return None
    if getattr(completion, "object", None) == "error":
        return {name: getattr(completion, name, None) for name in ("message", "code", "param")}
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    return getattr(completion, "error", None) or getattr(choice, "error", None)


def _code(error: Any) -> int | None:
    """An error's code where it is one of HTTP's."""
    found = error.get("code") or error.get("status") if isinstance(error, Mapping) else None
    code = int(found) if isinstance(found, int) or (isinstance(found, str) and found.isdecimal()) else 0
    return code if 400 <= code < 600 else None


def _words(error: Any) -> str:
    """What an error's body says, in any of the forms that servers have; not what it repeats of the request.

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
    """The text of a message, which some servers send in parts, thoughts among them."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _thought(message: Any, usage: Any) -> bool:
    """Whether the model has thought before it spoke, as far as the server says so."""
    names = ("reasoning_content", "reasoning", "thinking")
    return (
        any(getattr(message, name, None) for name in names)
        or isinstance(message.content, list)
        or _count(getattr(usage, "completion_tokens_details", None), "reasoning_tokens") > 0
    )


def _count(usage: Any, name: str) -> int:
    number = getattr(usage, name, 0)
    return number if isinstance(number, int) else 0
