"""Have the judge compare arms by the protocol `fedit` or `pairwise`.

`fedit` is the paper's protocol (arXiv 2305.05644): both answers of one pair get 1 to 10, several times,
in one order. `pairwise` asks which is better in both orders (arXiv 2306.05685): where the two replies
disagree, the question is a tie, so position bias cannot decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from shepherd.errors import DataError
from shepherd.evaluate.judged import fedit_table, preference_table
from shepherd.evaluate.verdicts import Preferred, Scored, combine
from shepherd.judge import asks, cache, prompts
from shepherd.judge.answers import Answers
from shepherd.judge.asks import Ask, Pair, Plan
from shepherd.judge.cache import Reply
from shepherd.judge.gather import Unanswered, end_of, gather, no_verdict_error, wordless_sentence
from shepherd.judge.questions import Question
from shepherd.settings import JudgeTable

Echo = Callable[[str], None]
Replies = Mapping[str, Reply]

_MAX_SHOWN = 3
"""Most unreadable replies whose ends are shown."""
_RESULT: Mapping[prompts.Verdict, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The judge's verdicts on some pairs of arms.

    `questions` counts the questions, of those `asked` and from the first on, to which every pair has all its
    replies; `left` counts requests still to be made. `refused` and `wordless` requests have no reply; they
    and `unreadable` replies are counted and never scored. `calls` and the token counts cover all replies, new
    and cached; `new_calls` only the new ones.
    """

    protocol: str
    model: str
    base_url: str
    questions: int
    asked: int
    calls: int
    new_calls: int = 0
    prompt_tokens: int
    completion_tokens: int
    unreadable: int = 0
    refused: int
    wordless: int = 0
    left: int
    scored: tuple[Scored, ...] = ()
    preferred: tuple[Preferred, ...] = ()
    rows: tuple[Mapping[str, Any], ...] = ()
    """One row of `fedit_table` or `preference_table` for each pair."""
    strengths: tuple[Mapping[str, Any], ...] = ()
    """Bradley-Terry strengths of the arms, the strongest first; only for `pairwise`."""
    says: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """The table of comparison.json."""
        return {
            "protocol": self.protocol,
            "model": self.model,
            "base_url": self.base_url,
            "questions": self.questions,
            "asked": self.asked,
            "calls": self.calls,
            "tokens": self.prompt_tokens + self.completion_tokens,
            "unreadable": self.unreadable,
            "refused": self.refused,
            "wordless": self.wordless,
            "left": self.left,
            "rows": [dict(row) for row in self.rows],
            "strengths": [dict(row) for row in self.strengths],
            "says": list(self.says),
        }


def judge(
    first: Answers,
    second: Answers,
    questions: Sequence[Question],
    table: JudgeTable,
    folder: Path,
    echo: Echo,
    max_calls: int | None = None,
) -> Result:
    """Compare two arms; see `judge_pairs`."""
    return judge_pairs([(first, second)], questions, table, folder, echo, max_calls)


def plan(
    pairs: Sequence[Pair],
    questions: Sequence[Question],
    table: JudgeTable,
    folder: Path,
    max_calls: int | None = None,
) -> Plan:
    """Cost of `judge_pairs`; asks nothing and writes nothing."""
    requests = _requests(pairs, questions, table)
    return asks.plan(requests, cache.read(folder), table, max_calls)


def judge_pairs(
    pairs: Sequence[Pair],
    questions: Sequence[Question],
    table: JudgeTable,
    folder: Path,
    echo: Echo,
    max_calls: int | None = None,
    against: str | None = None,
) -> Result:
    """Compare each pair of arms on the same questions.

    Args:
        pairs: (baseline, arm) each; `fedit` shows the baseline's answer first, as the paper prints it.
        folder: where replies are kept; requests with a reply there are not sent again.
        max_calls: most new requests to send now; the result then rests on the questions that are complete,
            and the same call continues later. Retries do not count.
        against: the arm that the tables compare the others with.

    Raises:
        DataError: no questions, an answer is missing, or both arms of a pair have one name.
        SettingsError: no model is named.
        JudgeError: no key, an endpoint that cannot be used, or replies that all lack a verdict; what was
            paid for is kept.
        FolderError: the folder cannot be written.
    """
    requests = _requests(pairs, questions, table)
    with cache.opened(folder) as kept:
        coming = asks.plan(requests, kept.replies, table, max_calls)
        echo(coming.sentence(table))
        before = len(kept.replies)
        unanswered = _send_missing(requests, kept, table, echo, max_calls)
        new_calls = len(kept.replies) - before
    used = {ask.key: kept.replies[ask.key] for ask in requests if ask.key in kept.replies}
    bad = [reply for reply in used.values() if not _readable(table)(reply)]
    if used and len(bad) == len(used):
        raise no_verdict_error(len(bad), bad[-1], table)
    result = replace(_verdicts(pairs, questions, table, requests, used, unanswered), new_calls=new_calls)
    says = (*_missing(result, unanswered, table), *_flawed(result, used, bad))
    return _tabled(replace(result, unreadable=len(bad)), says, against)


def _requests(pairs: Sequence[Pair], questions: Sequence[Question], table: JudgeTable) -> tuple[Ask, ...]:
    if not questions:
        raise DataError("there is no question to judge by; give a file that holds some")
    for first, second in pairs:
        first.require(questions)
        second.require(questions)
        if first.name == second.name:
            raise DataError(f"both arms are called {first.name}; give them two names")
    return asks.asks(pairs, questions, table)


def _send_missing(
    requests: Sequence[Ask], kept: cache.Cache, table: JudgeTable, echo: Echo, max_calls: int | None
) -> Unanswered:
    """Send the missing requests, at most `max_calls`; return those without a reply."""
    coming = asks.pending(requests, kept.replies)[:max_calls]
    if not coming:
        return Unanswered()
    readable = _readable(table)
    held = (kept.replies[ask.key] for ask in requests if ask.key in kept.replies)
    sense = any(map(readable, held))
    return gather(coming, kept, table, readable=readable, sense=sense, echo=echo)


def _readable(table: JudgeTable) -> Callable[[Reply], bool]:
    if table.protocol == "fedit":
        return lambda reply: prompts.scores(reply.text, cut=reply.cut) is not None
    return lambda reply: prompts.verdict(reply.text) is not None


def _verdicts(
    pairs: Sequence[Pair],
    questions: Sequence[Question],
    table: JudgeTable,
    requests: Sequence[Ask],
    used: Replies,
    unanswered: Unanswered,
) -> Result:
    """Verdicts on the complete questions, without statistics."""
    known = used.keys() | unanswered.keys
    unfinished = {ask.question for ask in requests if ask.key not in known}
    # not beyond the first unfinished one: there, only the ties that need no asking would be known
    complete = list(takewhile(lambda question: question.id not in unfinished, questions))
    together = [(question, first, second) for question in complete for first, second in pairs]
    fedit = table.protocol == "fedit"
    return Result(
        protocol=table.protocol,
        model=table.model,
        base_url=table.base_url,
        questions=len(complete),
        asked=len(questions),
        calls=len(used),
        prompt_tokens=sum(reply.prompt_tokens for reply in used.values()),
        completion_tokens=sum(reply.completion_tokens for reply in used.values()),
        refused=len(unanswered.refused),
        wordless=len(unanswered.wordless),
        left=len({ask.key for ask in requests} - known),
        scored=tuple(s for q, a, b in together if fedit for s in _scored(q, a, b, table, used)),
        preferred=tuple(p for q, a, b in together if not fedit for p in _preferred(q, a, b, table, used)),
    )


def _tabled(result: Result, more: Sequence[str], against: str | None) -> Result:
    """The result with its tables, and with sentences on them and on what is missing."""
    rows: Sequence[Mapping[str, Any]] = ()
    strengths: Sequence[Mapping[str, Any]] = ()
    if result.scored:
        rows = fedit_table(result.scored, against)
    elif result.preferred:
        found = preference_table(result.preferred, against)
        rows, strengths = found["rows"], found["strengths"]
    says = (*(str(row["says"]) for row in rows), *more)
    return replace(result, rows=tuple(rows), strengths=tuple(strengths), says=says)


def _missing(result: Result, unanswered: Unanswered, table: JudgeTable) -> Iterator[str]:
    if result.left:
        yield (
            f"{result.left:,} requests are left, so this is on {result.questions:,} of {result.asked:,} "
            "questions; the same command asks the rest."
        )
    if unanswered.wordless:
        said = wordless_sentence(len(unanswered.wordless), table)
        yield f"{said}; they are not scored, and are asked again."
    if refused := unanswered.refused:
        reason = next(iter(refused.values()))
        yield f"{len(refused):,} requests were refused and are not scored ({reason})."


def _flawed(result: Result, used: Replies, bad: Sequence[Reply]) -> Iterator[str]:
    """On replies that are not as they were asked for."""
    if own := sum(reply.own_temperature for reply in used.values()):
        yield (
            f"{own:,} replies are at the judge's own temperature, since it takes no other; asked again, it "
            "may say something else."
        )
    if bad:
        cut = sum(reply.cut for reply in bad)
        yield (
            f"{len(bad):,} of {result.calls:,} replies do not end in a verdict; "
            f"they are counted here and not scored. They end in {_ends(bad)}."
            + (f" {cut:,} of them were cut; raise judge.max_tokens." if cut else "")
        )


def _ends(bad: Sequence[Reply]) -> str:
    """The most frequent ends of replies, as a text for a sentence."""
    ends = Counter(end_of(reply) for reply in bad)
    shown = [
        f"{end} ({number:,} times)" if number > 1 else end for end, number in ends.most_common(_MAX_SHOWN)
    ]
    return ", ".join(shown) + (
        f" and {len(ends) - _MAX_SHOWN:,} other ways" if len(ends) > _MAX_SHOWN else ""
    )


def _scored(
    question: Question, first: Answers, second: Answers, table: JudgeTable, used: Replies
) -> Iterator[Scored]:
    for ask in asks.asks_of(question, first, second, table):
        reply = used.get(ask.key)
        read = prompts.scores(reply.text, cut=reply.cut) if reply else None
        if read is not None:
            yield Scored(
                question=question.id,
                category=question.category,
                first=first.name,
                second=second.name,
                repeat=ask.repeat,
                score_first=read[0],
                score_second=read[1],
            )


def _preferred(
    question: Question, first: Answers, second: Answers, table: JudgeTable, used: Replies
) -> Iterator[Preferred]:
    a, b = first.texts[question.id], second.texts[question.id]
    result = 0.5 if a == b else _both_orders(list(asks.asks_of(question, first, second, table)), used)
    if result is not None:
        yield Preferred(
            question=question.id,
            category=question.category,
            first=first.name,
            second=second.name,
            result=result,
            length_first=len(a),
            length_second=len(b),
        )


def _both_orders(orders: Sequence[Ask], used: Replies) -> float | None:
    """The first arm's result by both replies; None where one cannot be read."""
    seen = []
    for ask in orders:
        verdict = prompts.verdict(used[ask.key].text) if ask.key in used else None
        if verdict is None:
            return None
        seen.append(1 - _RESULT[verdict] if ask.swapped else _RESULT[verdict])
    return combine(*seen)
