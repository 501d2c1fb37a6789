"""Ask the endpoint for what is not cached: several at once, each reply kept before the next is asked.

When something fails for good, no further request is sent, those under way are waited for and kept,
and the sentence says where to go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shepherd.errors import JudgeError, ShepherdError
from shepherd.judge.asks import Ask
from shepherd.judge.cache import Cache, Reply
from shepherd.settings import JudgeTable

if TYPE_CHECKING:
    from shepherd.judge.client import Endpoint

NONSENSE = 20
"""So many replies without one verdict, and no more are paid for."""
REFUSALS = 5
"""So many prompts refused without one reply, and no more are sent."""


@dataclass(slots=True, kw_only=True)
class _Work:
    """What the workers of one gathering share."""

    left: Iterator[Ask]
    total: int
    cache: Cache
    table: JudgeTable
    readable: Callable[[str], bool]
    echo: Callable[[str], None]
    sense: bool = False
    """Whether any reply had a verdict."""
    replies: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    fault: ShepherdError | None = None


def gather(
    coming: Sequence[Ask],
    cache: Cache,
    table: JudgeTable,
    *,
    readable: Callable[[str], bool],
    sense: bool,
    echo: Callable[[str], None],
) -> dict[str, str]:
    """Send these requests and keep their replies in `cache`; return why some prompts were refused, by key.

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
    if work.fault is None and work.refused and not work.replies:
        work.fault = _refusal(work)
    if work.fault is not None:
        kept = f"; {len(cache.replies):,} replies are kept in {cache.path}, where the same command goes on"
        raise type(work.fault)(f"{work.fault}{kept if cache.replies else ''}") from work.fault
    return work.refused


async def _all(work: _Work) -> None:
    try:
        from shepherd.judge import client
    except ModuleNotFoundError as error:
        raise JudgeError(
            f"the judge needs the package {error.name}; install it by pip install 'shepherd-fit[judge]'"
        ) from None
    async with client.opened(work.table) as endpoint:
        workers = min(work.table.concurrency, work.total)
        await asyncio.gather(*(_worker(work, endpoint, client.Refused) for _ in range(workers)))


async def _worker(work: _Work, endpoint: Endpoint, refused: type[Exception]) -> None:
    for ask in work.left:  # one iterator for all the workers
        try:
            _keep(work, ask, await endpoint.reply(ask.prompt))
        except refused as error:
            work.refused[ask.key] = str(error)
            if not work.replies and len(work.refused) >= REFUSALS:
                work.fault = work.fault or _refusal(work)
        except ShepherdError as error:
            work.fault = work.fault or error
        if work.fault is not None:
            return


def _keep(work: _Work, ask: Ask, reply: Reply) -> None:
    work.cache.add(ask.key, reply, ask.about)
    work.replies += 1
    work.sense = work.sense or work.readable(reply.text)
    step = max(1, work.total // 10)
    if work.replies % step == 0 or work.replies == work.total:
        work.echo(f"{work.replies:,} of {work.total:,} replies")
    if not work.sense and work.replies >= NONSENSE:
        raise nonsense(work.replies, reply, work.table)


def nonsense(number: int, last: Reply, table: JudgeTable) -> JudgeError:
    """The sentence on a judge that gave no verdict at all."""
    cut = "it was cut, so raise judge.max_tokens" if last.cut else "take a stronger judge"
    return JudgeError(
        f"none of {number:,} replies of the judge {table.model} ends in a verdict "
        f"(the last ends in {' '.join(last.text.split())[-60:]!r}); {cut}"
    )


def _refusal(work: _Work) -> JudgeError:
    reason = next(iter(work.refused.values()))
    return JudgeError(
        f"{work.table.base_url} refuses what it is asked ({reason}); change that in the table judge "
        "of the run file"
    )
