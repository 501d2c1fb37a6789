"""Ask the endpoint for what is not cached: several at once, each reply kept before the next is asked.

When something fails for good, no further request is sent, those under way are waited for and kept,
and the sentence says where to go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shepherd.errors import JudgeError, ShepherdError
from shepherd.judge.asks import Ask
from shepherd.judge.cache import Cache, Reply
from shepherd.settings import JudgeTable
from shepherd.version import install

if TYPE_CHECKING:
    from shepherd.judge.client import Endpoint

NONSENSE = 20
"""So many replies without one verdict, and no more are paid for."""
REFUSALS = 5
"""So many prompts refused, or spent before a first word, without one reply, and no more are sent."""
_FORMS = {"pairwise": "VERDICT: tie", "fedit": "SCORES: first 7, second 9"}


@dataclass(slots=True, kw_only=True)
class _Work:
    """What the workers of one gathering share."""

    left: Iterator[Ask]
    total: int
    cache: Cache
    table: JudgeTable
    readable: Callable[[Reply], bool]
    echo: Callable[[str], None]
    sense: bool = False
    """Whether any reply had a verdict."""
    replies: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    wordless: set[str] = field(default_factory=set)
    fault: ShepherdError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """Requests that got no reply to keep, by key; the next command asks them again."""

    refused: Mapping[str, str] = field(default_factory=dict)
    """Why each was refused."""
    wordless: frozenset[str] = frozenset()
    """Those whose tokens were spent before a first word."""

    def __len__(self) -> int:
        return len(self.refused) + len(self.wordless)

    @property
    def keys(self) -> frozenset[str]:
        """All of them."""
        return self.wordless | self.refused.keys()


def gather(
    coming: Sequence[Ask],
    cache: Cache,
    table: JudgeTable,
    *,
    readable: Callable[[Reply], bool],
    sense: bool,
    echo: Callable[[str], None],
) -> Unanswered:
    """Send these requests and keep their replies in `cache`; return which got none, and why.

    Args:
        readable: whether a reply has a verdict.
        sense: whether any earlier reply had one; without it, `NONSENSE` replies are enough to stop.

    Raises:
        JudgeError: no key, no `openai`, an endpoint that cannot be used, or replies that all lack a
            verdict. What was answered until then is kept.
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
        kept = f"; {len(cache.replies):,} replies are kept in {cache.path}, where the same command goes on"
        raise type(work.fault)(f"{work.fault}{kept if cache.replies else ''}") from work.fault
    return Unanswered(refused=work.refused, wordless=frozenset(work.wordless))


async def _all(work: _Work) -> None:
    try:
        from shepherd.judge import client
    except ModuleNotFoundError as error:
        raise JudgeError(
            f"the judge needs the package {error.name}; install it by {install('judge')}"
        ) from None
    async with client.opened(work.table) as endpoint:
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
        if not work.replies and _unanswered(work) >= REFUSALS:
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
    if not work.sense and work.replies >= NONSENSE:
        raise nonsense(work.replies, reply, work.table)


def nonsense(number: int, last: Reply, table: JudgeTable) -> JudgeError:
    """The sentence on a judge that gave no verdict at all."""
    cut = (
        "it was cut, so raise judge.max_tokens"
        if last.cut
        else f"the last line has to be as {_FORMS[table.protocol]!r}, so take a stronger judge"
    )
    return JudgeError(
        f"none of {number:,} replies of the judge {table.model} ends in a verdict "
        f"(the last ends in {end_of(last)}); {cut}"
    )


def end_of(reply: Reply) -> str:
    """The end of a reply, in quotes and fit for a terminal."""
    return repr(" ".join(reply.text.split())[-60:])


def wordless(number: int, table: JudgeTable) -> str:
    """The sentence on requests that a model which thinks first has spent on that."""
    return (
        f"{number:,} replies of the judge {table.model} ended before their first word: it thinks first, and "
        f"judge.max_tokens, now {table.max_tokens:,}, is for both; raise it, or switch its thinking off"
    )


def _refusal(work: _Work) -> JudgeError:
    if not work.refused:
        return JudgeError(f"all {wordless(len(work.wordless), work.table)}")
    reason = next(iter(work.refused.values()))
    return JudgeError(
        f"{work.table.base_url} refuses what it is asked ({reason}); change that in the table judge "
        "of the run file"
    )
