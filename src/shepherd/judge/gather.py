"""Send the requests that are not cached, several at once; each reply is kept before the next is sent.

After a permanent failure no further request is sent, the replies to those under way are kept, and the message
says how to continue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shepherd.consent import Consent
from shepherd.errors import JudgeError, ShepherdError
from shepherd.judge.agreed import require_agreed
from shepherd.judge.asks import Ask, require_model
from shepherd.judge.cache import Cache, Reply
from shepherd.settings import JudgeTable
from shepherd.version import install

if TYPE_CHECKING:
    from shepherd.judge.client import Endpoint

MAX_UNREADABLE = 20
"""Stop after this many replies if none has a verdict."""
MAX_REFUSALS = 5
"""Stop after this many prompts that were refused, or spent before a first word, without one reply."""
_FORMS = {"pairwise": "VERDICT: tie", "fedit": "SCORES: first 7, second 9"}


@dataclass(slots=True, kw_only=True)
class _Work:
    """State shared by the workers of one call of `gather`."""

    left: Iterator[Ask]
    total: int
    cache: Cache
    table: JudgeTable
    readable: Callable[[Reply], bool]
    echo: Callable[[str], None]
    form: str = ""
    sense: bool = False
    """Whether any reply had a verdict."""
    replies: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    wordless: set[str] = field(default_factory=set)
    fault: ShepherdError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """Requests without a reply to keep, by key; the next command asks them again."""

    refused: Mapping[str, str] = field(default_factory=dict)
    """The reason of each refusal, by key."""
    wordless: frozenset[str] = frozenset()
    """Keys of requests whose tokens were spent before a first word."""

    def __len__(self) -> int:
        return len(self.refused) + len(self.wordless)

    @property
    def keys(self) -> frozenset[str]:
        """Keys of all requests without a reply."""
        return self.wordless | self.refused.keys()


def gather(
    coming: Sequence[Ask],
    cache: Cache,
    table: JudgeTable,
    *,
    readable: Callable[[Reply], bool],
    sense: bool,
    echo: Callable[[str], None],
    form: str = "",
) -> Unanswered:
    """Send requests and keep their replies in `cache`; return those without a reply, and why.

    Args:
        readable: whether a reply has a verdict.
        form: another last line than that of the table's protocol, for messages.
        sense: whether any earlier reply had one; if not, `MAX_UNREADABLE` replies without one stop it.

    Raises:
        JudgeError: no key, no `openai`, an endpoint that cannot be used, or replies that all lack a
            verdict. Earlier replies are kept.
        FolderError: the cache's disk is full.
    """
    work = _Work(
        left=iter(coming),
        total=len(coming),
        cache=cache,
        table=table,
        readable=readable,
        echo=echo,
        sense=sense,
    )
    asyncio.run(_all(work))
    if work.fault is None and _unanswered(work) and not work.replies:
        work.fault = _refusal(work)
    if work.fault is not None:
        kept = f"; {len(cache.replies):,} replies are kept in {cache.path}, and the same command continues"
        raise type(work.fault)(f"{work.fault}{kept if cache.replies else ''}") from work.fault
    return Unanswered(refused=work.refused, wordless=frozenset(work.wordless))


def require_ready(table: JudgeTable, consent: Consent, max_calls: int | None = None) -> None:
    """Check before long work that the judge could be asked after it; nothing is sent.

    Args:
        max_calls: most requests that will be sent; with 0 neither the package nor the key is needed.

    Raises:
        SettingsError: no model is named.
        JudgeError: nobody agreed to the address or the key's variable, the package or the key is missing, or
            a proxy or certificate of the environment cannot be used.
    """
    require_model(table)
    require_agreed(table, consent)
    if max_calls == 0:
        return
    try:
        asyncio.run(_open(table))
    except JudgeError as error:
        raise JudgeError(
            f"{error}; or give --max-calls 0, which asks nothing and takes the verdicts that are kept"
        ) from error


async def _open(table: JudgeTable) -> None:
    async with _endpoint(table):
        pass


@asynccontextmanager
async def _endpoint(table: JudgeTable) -> AsyncIterator[Endpoint]:
    try:
        from shepherd.judge import client
    except ModuleNotFoundError as error:
        raise JudgeError(f"the judge needs the package {error.name}; run {install('judge')}") from None
    async with client.opened(table) as endpoint:
        yield endpoint


async def _all(work: _Work) -> None:
    async with _endpoint(work.table) as endpoint:
        workers = min(work.table.concurrency, work.total)
        await asyncio.gather(*(_worker(work, endpoint) for _ in range(workers)))


async def _worker(work: _Work, endpoint: Endpoint) -> None:
    from shepherd.judge import client

    for ask in work.left:  # one iterator for all the workers
        try:
            _keep(work, ask, await endpoint.reply(ask.prompt))
        except client.Refused as error:
            work.refused[ask.key] = str(error)
        except client.Wordless:
            work.wordless.add(ask.key)
        except ShepherdError as error:
            work.fault = work.fault or error
        if not work.replies and _unanswered(work) >= MAX_REFUSALS:
            work.fault = work.fault or _refusal(work)
        if work.fault is not None:
            return


def _unanswered(work: _Work) -> int:
    return len(work.refused) + len(work.wordless)


def _keep(work: _Work, ask: Ask, reply: Reply) -> None:
    work.cache.add(ask.key, reply, ask.about)
    work.replies += 1
    work.sense = work.sense or work.readable(reply)
    step = max(1, work.total // 10)
    if work.replies % step == 0 or work.replies == work.total:
        work.echo(f"{work.replies:,} of {work.total:,} replies")
    if not work.sense and work.replies >= MAX_UNREADABLE:
        raise no_verdict_error(work.replies, reply, work.table, work.form)


def no_verdict_error(number: int, last: Reply, table: JudgeTable, form: str = "") -> JudgeError:
    """The error for a judge that gave no verdict at all; `form` is another last line than its protocol's."""
    cut = (
        "it was cut, so raise judge.max_tokens"
        if last.cut
        else f"the last line has to be like {form or _FORMS[table.protocol]!r}, so use a stronger judge"
    )
    return JudgeError(
        f"none of {number:,} replies of the judge {table.model} ends in a verdict "
        f"(the last ends in {end_of(last)}); {cut}"
    )


def end_of(reply: Reply) -> str:
    """The end of a reply, quoted and escaped for a terminal."""
    return repr(" ".join(reply.text.split())[-60:])


def wordless_sentence(number: int, table: JudgeTable) -> str:
    """The sentence on requests whose tokens the model spent on thinking."""
    return (
        f"{number:,} replies of the judge {table.model} ended before their first word: it thinks first, and "
        f"judge.max_tokens, now {table.max_tokens:,}, is for both; raise it, or switch its thinking off"
    )


def _refusal(work: _Work) -> JudgeError:
    if not work.refused:
        return JudgeError(f"all {wordless_sentence(len(work.wordless), work.table)}")
    reason = next(iter(work.refused.values()))
    return JudgeError(
        f"{work.table.base_url} refuses the requests ({reason}); change the table judge of the run file"
    )
