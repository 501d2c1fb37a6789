"""The endpoint. The only file that imports `openai`; it is imported late, where a judge is asked.

`openai` itself tries a request again, later each time and as Retry-After asks, after a time-out, a
dropped connection, a 408, 409, 429 or 5xx. What it lets pass is tried again here: a body that is no
chat completion.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import openai

from shepherd.errors import JudgeError
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


class Refused(Exception):
    """The endpoint will not answer this one prompt (too long, or against its rules); says why."""


@dataclass(slots=True)
class Endpoint:
    """An open connection; from `opened`."""

    table: JudgeTable
    client: openai.AsyncOpenAI
    limit: str = "max_tokens"
    """What the endpoint calls it: OpenAI's newer models know max_completion_tokens alone."""

    async def reply(self, prompt: str) -> Reply:
        """Ask once.

        Raises:
            Refused: this prompt is not answered; others may be.
            JudgeError: the endpoint cannot be used, or did not answer in so many tries.
        """
        for attempt in range(self.table.retries + 1):
            if attempt:
                await asyncio.sleep(min(8.0, PAUSE * 2 ** (attempt - 1)) * random.uniform(0.75, 1.0))
            read = _read(await self._completion(prompt))
            if read is not None:
                return Reply(**{**read, "text": self._safe(read["text"])})
        raise JudgeError(
            f"{self.table.base_url} does not answer with chat completions{self._tries()}; "
            "check that judge.base_url is OpenAI-compatible"
        )

    async def _completion(self, prompt: str) -> Any:
        """What the endpoint answers; None if that is no JSON."""
        fault: Exception
        try:
            return await self._create(prompt)
        except openai.APIStatusError as error:
            fault = self._status_fault(error)
        except openai.APIConnectionError as error:
            fault = self._connection_fault(error)
        except (openai.APIError, ValueError, RecursionError):
            return None
        raise fault  # from here, since the client's own exception carries the key in its request

    def _connection_fault(self, error: openai.APIConnectionError) -> JudgeError:
        url = self.table.base_url
        if isinstance(error, openai.APITimeoutError):
            return JudgeError(
                f"{url} was silent for {self.table.timeout:g} s{self._tries()}; "
                "raise judge.timeout or lower judge.concurrency"
            )
        why = self._safe(str(error.__cause__ or error)) or "the connection broke"
        return JudgeError(f"{url} cannot be reached ({why}); check judge.base_url and the network")

    async def _create(self, prompt: str) -> Any:
        try:
            return await self._send(prompt)
        except openai.BadRequestError as error:
            if self.limit == "max_tokens" and "max_completion_tokens" in str(error):
                self.limit = "max_completion_tokens"
                return await self._send(prompt)
            raise

    async def _send(self, prompt: str) -> Any:
        options: dict[str, Any] = {self.limit: self.table.max_tokens}
        return await self.client.chat.completions.create(
            model=self.table.model,
            messages=[{"role": "user", "content": prompt}],
            temperature=self.table.temperature,
            **options,
        )

    def _status_fault(self, error: openai.APIStatusError) -> Exception:
        url, model, code, said = self.table.base_url, self.table.model, error.status_code, self._said(error)
        match code:
            case 301 | 302 | 303 | 307 | 308:
                to = self._safe(error.response.headers.get("location", "nowhere"))
                return JudgeError(
                    f"{url} sends on to {to} (HTTP {code}), where nothing was sent; if you want that address,"
                    " give it as judge.base_url"
                )
            case 400 | 413 | 422:
                return Refused(f"HTTP {code}: {said}")
            case 401 | 403:
                whose = (
                    f"the key in {self.table.key_env}" if self.table.key_env else "a request without a key"
                )
                return JudgeError(
                    f"{url} refuses {whose} (HTTP {code}); check judge.key_env and judge.base_url"
                )
            case 404:
                return JudgeError(
                    f"{url} has no model {model}, or no chat (HTTP 404: {said}); check judge.model, and "
                    "judge.base_url, which usually ends in /v1"
                )
            case 429:
                return JudgeError(
                    f"{url} is asked too often or its quota is used up (HTTP 429{self._tries()}: {said}); "
                    "wait, or lower judge.concurrency"
                )
        return JudgeError(f"{url} fails with HTTP {code}{self._tries()} ({said}); wait, or look at its log")

    def _said(self, error: openai.APIStatusError) -> str:
        """The endpoint's own words, in one line and without the key."""
        body = error.body
        said = body.get("message") or body.get("detail") if isinstance(body, dict) else None
        return self._safe(" ".join(str(said or "no reason given").split()))[:200].rstrip(". ")

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
    network = openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not is_here(table.base_url))
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


def _read(completion: Any) -> dict[str, Any] | None:
    """The parts of a reply; None if the body was no chat completion."""
    try:
        choice = completion.choices[0]
        said = choice.message.content or getattr(choice.message, "refusal", None) or ""
        usage = completion.usage
        return {
            "text": said if isinstance(said, str) else "",
            "cut": choice.finish_reason == "length",
            "prompt_tokens": _count(usage, "prompt_tokens"),
            "completion_tokens": _count(usage, "completion_tokens"),
        }
    except (AttributeError, TypeError, IndexError, KeyError):
        return None


def _count(usage: Any, name: str) -> int:
    number = getattr(usage, name, 0)
    return number if isinstance(number, int) else 0
