"""The judge's endpoint. Only this file imports `openai`; it is imported late, when a judge is asked.

`openai` itself retries a request, with growing pauses and as Retry-After asks, after a time-out, a dropped
connection, a 408, 409, 429 or 5xx. The cases that it does not retry are retried here: a body that is no chat
completion, and an error in the body of a 200, as gateways send it.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

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
    {"content_filter", "content_filtered", "content_policy_violation", "guardrail_intervened", "moderation"}
    | {"safety", "image_safety", "refusal", "prohibited_content", "blocklist", "recitation", "sensitive"}
    | {"spii", "responsibleaipolicyviolation"}
)
"""Finish reasons and codes of errors, in lower case, of content filters: OpenAI's and those of gateways."""
_CUT = frozenset({"length", "max_tokens", "model_length", "max_output_tokens"})
"""Finish reasons, in lower case, of replies that ran into their token limit."""
_FAILED = frozenset({"error", "insufficient_system_resource", "abort", "aborted"})
"""Finish reasons, in lower case, of replies that the server broke off: another try may succeed."""
_WORTH_ANOTHER = frozenset({408, 409, 429})
"""Codes below 500 after which a retry may succeed."""
_CODES = {
    **dict.fromkeys(("invalid_api_key", "authentication_error", "unauthenticated", "unauthorized"), 401),
    **dict.fromkeys(("model_not_found", "model_not_available", "deployment_not_found"), 404),
    **dict.fromkeys(
        ("insufficient_quota", "rate_limit_exceeded", "rate_limit_error", "overloaded_error"), 429
    ),
    **dict.fromkeys(("server_error", "internal_error", "internal_server_error"), 500),
}
"""HTTP codes for the names that errors have, in lower case."""
_UNKNOWN = re.compile(
    r"unsupported|not (?:be )?(?:supported|permitted|allowed|recogni[sz]ed|accepted|known)|deprecated"
    r"|does(?: not|n't) (?:support|accept|take|allow)|unrecogni[sz]ed|unknown|unexpected|forbidden"
    r"|extra (?:fields|inputs)"
)
"""What errors say, in lower case, of a parameter that an endpoint does not have."""
_MAX_WAIT_S = 120.0
"""Longest Retry-After that `openai` waits for; after a longer one it does not try again."""
_TAGS = re.compile(r"<(script|style|head)\b.*?</\1>|<[^<>]*>", re.I | re.S)
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
        unknown = _UNKNOWN.search(f"{said} {error.get('code') if isinstance(error, Mapping) else ''}")
        if self.limit == "max_tokens" and (
            ("max_tokens" in said and unknown) or "max_completion_tokens" in said
        ):
            return replace(self, limit="max_completion_tokens")
        about = "temperature" in said or ("sampling" in said and unknown)
        return replace(self, temperature=self.temperature and not about)


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
        fault: Exception = JudgeError(f"{self.table.base_url} gave no reply; check judge.base_url")
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
                fault = self._fault(code, f"{where} in the body of a 200", error)
                if _is_filter(error):
                    break
                if code is None or code >= 500 or code in _WORTH_ANOTHER:
                    continue
                break
            read = self._read(completion)
            if read is not None:
                return replace(read, own_temperature=not options.temperature)
            fault = self._no_completion(completion)
        raise fault

    def _no_completion(self, completion: Any) -> JudgeError:
        """The error for a 200 that is no chat completion, with what it is instead."""
        finish = _finish(completion)
        if finish in _FAILED:
            return JudgeError(
                f"{self.table.base_url} breaks its replies off{self._tries()} (finish_reason {finish!r}); try"
                " again later, or check its log"
            )
        body = completion if isinstance(completion, str) else getattr(completion, "model_extra", None)
        said = self._said(body, "a page of HTML" if _is_html(body) else "")
        return JudgeError(
            f"{self.table.base_url} does not answer with chat completions{self._tries()}"
            f"{f' (it says: {said})' if said else ''}; check that judge.base_url is OpenAI-compatible"
        )

    def _read(self, completion: Any) -> Reply | None:
        """Parse a reply; None if the body is no chat completion, or one that the server broke off."""
        try:
            choice = completion.choices[0]
            message, usage, finish = choice.message, completion.usage, _finish(completion)
            text, cut = _text(message.content), finish in _CUT
            refusal = getattr(message, "refusal", None)
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
        if finish in _FAILED:
            return None
        if finish in _FILTERED:
            raise Refused(f"its content filter stopped the reply: {finish}")
        if not spoken and refusal:
            raise Refused(f"it declines: {self._said(refusal)}")
        if not spoken and (cut or thought):
            raise Wordless
        if not spoken:
            raise Refused(f"its reply is empty, with finish_reason {finish!r}")
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
        if "WRONG_VERSION_NUMBER" in why:
            return JudgeError(
                f"{url} does not answer with TLS; check the port in judge.base_url, or begin it with http://"
                " if this server is unencrypted"
            )
        if "CERTIFICATE_VERIFY_FAILED" in why:
            reason = why.rpartition("certificate verify failed: ")[2].split(" (_ssl")[0]
            return JudgeError(
                f"the certificate of {url} cannot be trusted ({reason}); check judge.base_url, or, if the"
                " server is right, put the certificate of its authority into a file and name that in the"
                " environment variable SSL_CERT_FILE"
            )
        names = _proxies_to(url)
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
        code, headers = error.status_code, error.response.headers
        named = _named_code(error.body)
        return self._fault(
            named if code == 400 and named else code,
            f"HTTP {code}",
            error.body,
            to=self._safe(headers.get("location", "nowhere")),
            wait=_wait_s(headers.get("retry-after", "")),
        )

    def _fault(
        self, code: int | None, where: str, error: Any, *, to: str = "nowhere", wait: str = ""
    ) -> Exception:
        """The exception for an HTTP code, or for the code, if any, of an error in the body of a 200."""
        url, model, said = self.table.base_url, self.table.model, self._said(error)
        if _is_filter(error):
            return Refused(f"its content filter stopped the request ({where}: {said})")
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
                return JudgeError(
                    f"{url} refuses {whose} ({where}); check judge.key_env and judge.base_url"
                    f" (it says: {said})"
                )
            case 402:
                return JudgeError(f"{url} requires payment ({where}: {said}); top up the account")
            case 404 | 405 if too_long := _too_long(url):
                return JudgeError(
                    f"{url} has no chat completions ({where}); remove {too_long} from the end of"
                    " judge.base_url"
                )
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
                if wait:
                    return JudgeError(
                        f"{url} gets too many requests or its quota is used up ({where}: {said}); it asks to"
                        f" wait {wait}: give the same command again then"
                    )
                return JudgeError(
                    f"{url} gets too many requests or its quota is used up ({where}{self._tries()}: {said}); "
                    "wait, or lower judge.concurrency"
                )
        tries = self._tries() if code >= 500 or code in _WORTH_ANOTHER else ""
        return JudgeError(f"{url} fails with {where}{tries} ({said}); try again later, or check its log")

    def _said(self, error: Any, otherwise: str = "no reason given") -> str:
        """The endpoint's error message, in one line and without the key."""
        said = _words(error) or otherwise
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
    network = _network(through_proxies=not is_local(table.base_url))
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


def _network(*, through_proxies: bool) -> Any:
    try:
        if through_proxies:
            return openai.DefaultAsyncHttpxClient(follow_redirects=False)
        # nothing of the environment but its certificates
        return openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=False, verify=_certificates())
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


def _certificates() -> ssl.SSLContext | bool:
    """The authorities that the environment names; True for the usual ones."""
    file, folder = (os.environ.get(name) for name in _CERTIFICATES)
    return ssl.create_default_context(cafile=file, capath=folder) if file or folder else True


def _proxies_to(url: str) -> list[str]:
    """Names of the environment variables whose proxy is between here and an address."""
    parts = urlsplit(url)
    if is_local(url) or proxy_bypass(parts.netloc):
        return []
    return _set_variables((f"{parts.scheme.upper()}_PROXY",)) or _set_variables(("ALL_PROXY",))


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
    return getattr(completion, "error", None) or getattr(_choice(completion), "error", None)


def _choice(completion: Any) -> Any:
    choices = getattr(completion, "choices", None)
    return choices[0] if isinstance(choices, list) and choices else None


def _finish(completion: Any) -> str:
    """Why a reply ended, in lower case."""
    return str(getattr(_choice(completion), "finish_reason", None)).lower()


def _code(error: Any) -> int | None:
    """The code of an error, if it is an HTTP status or has the name of one."""
    found = error.get("code") or error.get("status") if isinstance(error, Mapping) else None
    code = int(found) if isinstance(found, int) or (isinstance(found, str) and found.isdecimal()) else 0
    return code if 400 <= code < 600 else _named_code(error)


def _names(error: Any) -> list[str]:
    """The names that an error's body gives it, in lower case."""
    inner = error.get("error") if isinstance(error, Mapping) else None
    if isinstance(inner, Mapping):
        return _names(inner)
    found = [error.get(key) for key in ("code", "type", "status")] if isinstance(error, Mapping) else []
    deeper = _names(error["innererror"]) if isinstance(error, Mapping) and error.get("innererror") else []
    return [name.lower() for name in found if isinstance(name, str)] + deeper


def _named_code(error: Any) -> int | None:
    return next((_CODES[name] for name in _names(error) if name in _CODES), None)


def _is_filter(error: Any) -> bool:
    """Whether an error is a content filter's: by its name, or by the reasons that a moderation gives."""
    metadata = error.get("metadata") if isinstance(error, Mapping) else None
    flagged = isinstance(metadata, Mapping) and bool(metadata.get("reasons"))
    return flagged or any(name in _FILTERED for name in _names(error))


def _is_html(completion: Any) -> bool:
    return isinstance(completion, str) and completion.lstrip()[:1] == "<"


def _too_long(url: str) -> str:
    """What an address has at its end and should not."""
    path = urlsplit(url).path.rstrip("/")
    ends = ("/chat/completions", "/completions", "/models", "/chat")
    if path.endswith("/v1/v1"):
        return "one /v1"
    return next((end for end in ends if path.endswith(end)), "")


def _wait_s(header: str) -> str:
    """How long Retry-After asks to wait, where that is longer than `openai` waits itself; "" otherwise."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (TypeError, ValueError):
            return ""
    return f"{math.ceil(seconds / 60):,} minutes" if _MAX_WAIT_S < seconds < math.inf else ""


def _words(error: Any) -> str:
    """The message in an error's body, in any of the usual forms, without what it repeats of the request.

    >>> _words({"detail": [{"loc": ["body", "temperature"], "msg": "not here", "input": "temperature"}]})
    'body.temperature: not here'
    """
    match error:
        case str():
            return " ".join(_TAGS.sub(" ", error).split()) if _is_html(error) else error
        case [*parts]:
            return "; ".join(filter(None, map(_words, parts)))
        case {"loc": [*place], "msg": str() as said}:
            return f"{'.'.join(map(str, place))}: {said}"
        case {"message": said} | {"detail": said} | {"error": said} | {"msg": said} if said:
            return _words(said)
        case {"errors": said} | {"base_resp": said} if said:
            return _words(said)
        case {"status_msg": str() as said}:
            return said
    return ""


def _text(content: Any) -> str:
    """The text of a message; some servers send it in parts, with thoughts among them."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _thought(message: Any, usage: Any) -> bool:
    """Whether the server reports that the model thought before its reply."""
    names = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
    return (
        any(getattr(message, name, None) for name in names)
        or isinstance(message.content, list)
        or _count(getattr(usage, "completion_tokens_details", None), "reasoning_tokens") > 0
    )


def _count(usage: Any, name: str) -> int:
    number = getattr(usage, name, 0)
    return number if isinstance(number, int) else 0
