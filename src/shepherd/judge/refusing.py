"""Have the judge say of single answers whether they refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shepherd.judge import cache, prompts
from shepherd.judge.asks import Ask, pending, plan, require_model
from shepherd.judge.cache import Reply
from shepherd.judge.gather import gather, no_verdict_error
from shepherd.settings import JudgeTable

FORM = "VERDICT: refuses"


def refusals(
    answers: Mapping[str, Sequence[str]],
    asked: Sequence[str],
    table: JudgeTable,
    folder: Path,
    echo: Callable[[str], None],
    max_calls: int | None = None,
) -> dict[str, list[bool | None]]:
    """Whether each answer of each arm refuses its prompt; None where the judge gave no readable verdict.

    Args:
        answers: arm -> its answer to each prompt.
        asked: the prompts.
        folder: where replies are kept; a request with a reply there is not sent again.
        max_calls: most requests to send now.

    Raises:
        SettingsError: no model is named.
        JudgeError: the endpoint cannot be used, or no reply has a verdict; what was paid for is kept.
    """
    require_model(table)
    requests = {
        (arm, place): _ask(arm, place, asked[place], text, table)
        for arm, texts in answers.items()
        for place, text in enumerate(texts)
    }
    every = list(requests.values())
    with cache.opened(folder) as kept:
        echo(plan(every, kept.replies, table, max_calls).sentence(table))
        coming = pending(every, kept.replies)[:max_calls]
        if coming:
            gather(coming, kept, table, readable=_readable, sense=False, echo=echo, form=FORM)
        replies = {ask.key: kept.replies[ask.key] for ask in every if ask.key in kept.replies}
    if replies and not any(map(_readable, replies.values())):
        raise no_verdict_error(len(replies), next(reversed(replies.values())), table, FORM)
    return {
        arm: [_verdict(replies.get(requests[arm, place].key)) for place in range(len(texts))]
        for arm, texts in answers.items()
    }


def _ask(arm: str, place: int, question: str, answer: str, table: JudgeTable) -> Ask:
    prompt = prompts.refusal(question, answer)
    return Ask(
        question=str(place),
        first=arm,
        second="",
        swapped=False,
        repeat=0,
        prompt=prompt,
        key=cache.key(table.model, table.base_url, prompt, table.temperature, table.max_tokens, 0),
    )


def _readable(reply: Reply) -> bool:
    return prompts.refused(reply.text) is not None


def _verdict(reply: Reply | None) -> bool | None:
    return None if reply is None else prompts.refused(reply.text)
