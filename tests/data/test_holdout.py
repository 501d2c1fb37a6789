"""What is held out: whole groups, the share that is asked for, and the order in which they are scored."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shepherd.data.examples import Example, Turn
from shepherd.data.folding import folded, shows_nothing
from shepherd.data.groups import DIGEST_BYTES, Edges, _numbers, joined, marks
from shepherd.data.holdout import HoldOut, duplicate_warning, hold_out, hold_out_remarks, set_apart
from shepherd.evaluate.loss import stratified_subset


def chat(*texts: str, system: str = "", context: str = "", category: str = "", client: str = "") -> Example:
    """User and assistant in turn."""
    turns = [Turn(role="system", text=system)] if system else []
    for place, text in enumerate(texts):
        asked = place % 2 == 0
        of = context if place == 0 else ""
        turns.append(Turn(role="user" if asked else "assistant", text=text, context=of))
    return Example(turns=tuple(turns), category=category, client=client)


def single(number: int, category: str = "", client: str = "") -> Example:
    return chat(f"Question {number}", f"Answer {number}", category=category, client=client)


def exchanges(example: Example) -> set[tuple[str, str, str]]:
    """As they stand, by another way than the digests: each user turn with its response."""
    return {
        (asked.text, asked.context, told.text)
        for asked, told in zip(example.turns, example.turns[1:], strict=False)
        if asked.role == "user"
    }


def leaks(examples: list[Example], found: HoldOut) -> int:
    """Held-out examples of which an exchange, or the first question, is trained on."""
    trained = [examples[i] for i in found.train]
    said = set().union(*map(exchanges, trained))
    asked = {(one.instruction, one.context) for one in trained}
    held = [examples[i] for i in found.heldout]
    return sum(bool(exchanges(one) & said) or (one.instruction, one.context) in asked for one in held)


# ---- groups


def test_chats_that_share_their_first_exchange_stay_on_one_side() -> None:
    examples = [chat(f"q{i}", f"answer {i}", "and why?", f"because {i}") for i in range(200)]
    examples += [chat(f"q{i}", f"answer {i}") for i in range(200)]
    examples += [chat(f"solo {i}", "x") for i in range(20)]
    found = hold_out(examples, 0.2, 0)
    assert (leaks(examples, found), found.shared, found.duplicates) == (0, 0, 0)
    assert len(found.heldout) == 84


def test_one_question_under_two_system_prompts_stays_on_one_side() -> None:
    examples = [
        chat(f"q{i}", f"answer {i}", system=system)
        for i in range(100)
        for system in ("You are kind.", "You are brief.")
    ]
    found = hold_out(examples, 0.1, 0)
    assert (len(found.heldout), leaks(examples, found)) == (20, 0)


def test_a_later_turn_that_is_shared_ties_too_and_through_others() -> None:
    """a - b by a late exchange, b - c by the first: all three on one side."""
    knots = [
        [
            chat(f"a{i}", "1", f"late {i}", "2"),
            chat(f"b{i}", "3", f"late {i}", "2"),
            chat(f"b{i}", "4", "z", f"{i}"),
        ]
        for i in range(60)
    ]
    examples = [one for knot in knots for one in knot]
    found = hold_out(examples, 0.1, 3)
    assert leaks(examples, found) == found.shared == 0
    assert len(found.heldout) == 18
    assert set(Counter(i // 3 for i in found.heldout.tolist()).values()) == {3}


def test_the_same_instruction_about_another_text_is_another_question() -> None:
    examples = [chat("Sum up.", f"Short {n}.", context=f"Text {n}") for n in range(50)]
    found = hold_out(examples, 0.2, 0)
    assert (len(found.heldout), found.shared) == (10, 0)


def written(question: str, context: str, way: str, response: str = "An answer.") -> Example:
    """One question about one text, as data sets write it."""
    match way:
        case "apart":
            return chat(question, response, context=context)
        case "joined":
            return chat(f"{question}\n\n{context}", response)
        case "one line":
            return chat(f"{question} {context}", response)
        case "text first":
            return chat(f"{context}\n\n{question}", response)
        case "system":
            return chat(question, response, system=context)
        case _:
            return chat(question, response)


WAYS = ["apart", "joined", "one line", "text first", "system"]


def together(pairs: list[tuple[Example, Example]], share: float = 0.2) -> bool:
    """Whether the two of each pair are on one side; with examples between that nothing ties."""
    examples = [one for pair in pairs for one in pair] + [single(i) for i in range(1000, 1040)]
    found = hold_out(examples, share, 0)
    assert (found.duplicates, found.shared, found.common) == (0, 0, 0)
    assert abs(len(found.heldout) - share * len(examples)) <= 1
    held = set(found.heldout.tolist())
    return all((2 * i in held) == (2 * i + 1 in held) for i in range(len(pairs)))


UNTOLD = ({"joined", "text first"}, {"one line", "text first"})  # neither says where the context begins


@pytest.mark.parametrize(
    ("one", "other"), [(one, other) for one in WAYS for other in WAYS if {one, other} not in UNTOLD]
)
@pytest.mark.parametrize("same", [True, False])
def test_a_context_ties_wherever_it_stands(one: str, other: str, same: bool) -> None:
    """With the same answer or with another one: the question is the same."""
    pairs = [
        (
            written(f"What is asked, {i}?", f"- A text: {i}\n- and more", one),
            written(
                f"What is asked, {i}?", f"- A text: {i}\n- and more", other, "An answer." if same else f"b{i}"
            ),
        )
        for i in range(50)
    ]
    if same:
        pairs = [(a, replace(b, client="other")) for a, b in pairs]
    assert together(pairs)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "one line"])
def test_a_question_and_its_answer_tie_whether_or_not_its_context_is_left_out(way: str) -> None:
    pairs = [
        (written(f"Who is {i}?", f"A long text\nabout {i}.", way, f"A {i}"), chat(f"Who is {i}?", f"A {i}"))
        for i in range(50)
    ]
    assert together(pairs)


def test_a_question_with_and_without_a_context_and_two_answers_is_two_questions() -> None:
    pairs = [
        (chat(f"Go on, {i}.", "Yes.", context=f"Text {i}"), chat(f"Go on, {i}.", "No.")) for i in range(50)
    ]
    assert not together(pairs)


def test_a_short_answer_about_many_texts_ties_none_of_them() -> None:
    examples = [chat("Is it kind?", "yn"[i % 2], context=f"Text {i}") for i in range(200)]
    examples += [chat("Is it kind?", "y"), chat("Is it kind?", "n")]
    found = hold_out(examples, 0.2, 0)
    assert (len(found.heldout), found.shared) == (40, 0)


def test_a_later_turn_ties_to_the_chat_that_begins_with_it() -> None:
    pairs = [(chat(f"a{i}", "1", f"Why, {i}?", "2"), chat(f"Why, {i}?", f"other {i}")) for i in range(50)]
    assert together(pairs)


def test_a_later_turn_that_no_chat_begins_with_ties_nothing() -> None:
    pairs = [
        (chat(f"a{i}", "1", f"Why, {i}?", "2"), chat(f"b{i}", "3", f"Why, {i}?", "4")) for i in range(50)
    ]
    assert not together(pairs)


@pytest.mark.parametrize(
    ("system", "way"),
    [*(("", way) for way in WAYS if way != "one line"), *(("You are kind.", way) for way in [*WAYS, "none"])],
)
def test_a_question_with_its_answer_ties_to_the_middle_of_a_chat(system: str, way: str) -> None:
    pairs = [
        (
            chat(f"a{i}", "1", f"Why, {i}?", "2", f"And, {i}?", "3", system=system),
            written(f"Why, {i}?", system or "Some text", way, "2"),
        )
        for i in range(50)
    ]
    assert together(pairs)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("“Don’t”, she said — twice", '"Don\'t", she said - twice'),
        ("‚a‘ „b“ ‹c› «d» ‛e‟ ″f″ `g´", "'a' \"b\" 'c' \"d\" 'e\" \"f\" 'g'"),
        ("1–2 ‐ 3‑4 ‒5 ― −6 ﹘ ﹣ －", "1-2 - 3-4 -5 - -6 - - -"),
        ("a—b", "a -- b"),
        ("＂a＇ ʼ", "\"a' '"),
        ("wait…", "wait..."),
    ],
)
def test_quotes_and_dashes_are_compared_as_they_are_typed(one: str, other: str) -> None:
    assert folded(one) == folded(other)
    assert hold_out([chat(one, "x"), chat(other, "x")], 0.0, 0).duplicates == 1


def test_every_dash_and_every_quote_of_unicode_is_one() -> None:
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        if unicodedata.category(letter) == "Pd":
            assert folded(f"a{letter}b") == "a-b", f"{code:x}"
        if unicodedata.category(letter) in ("Pi", "Pf") and "QUOTATION" in unicodedata.name(letter):
            assert folded(f"a{letter}b") in ("a'b", 'a"b'), f"{code:x}"


@given(st.text(), st.text())
def test_what_is_folded_stays_so_and_what_is_joined_may_be_folded_before(one: str, other: str) -> None:
    assert folded(folded(one)) == folded(one)
    first, second = marks(chat(one, "x", context=other)), marks(chat(f"{one}\n\n{other}", "x"))
    assert set(first.questions) & set(second.questions)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_texts_are_compared_whatever_way_they_are_coded(form: str) -> None:
    text = "Où est l’Ångström ①  ﬁnie ?"
    coded = unicodedata.normalize(form, text).upper().replace("  ", "\u00a0\n")
    assert folded(f"\ufeff{coded}") == folded(text)
    twice = [chat(text, "Là."), chat(coded, "Là.\u200b"), chat("other", "x")]
    assert hold_out(twice, 0.0, 0).duplicates == 1


UNSEEN = [
    chr(code)
    for code in range(sys.maxunicode + 1)
    if (unicodedata.category(chr(code)) in ("Cf", "Cc") and not chr(code).isspace())
    or code in (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x3164, 0xFFA0)
    or 0x180B <= code <= 0x180F
    or 0xFE00 <= code <= 0xFE0F
    or 0xE0000 <= code <= 0xE01EF
]


def test_every_character_that_shows_nothing_is_folded_away() -> None:
    assert folded("What " + "".join(UNSEEN) + "is a bee?") == "what is a bee?"
    assert shows_nothing(" ".join(UNSEEN))
    assert folded("What\tis\x85a\r\nbee?") == "what is a bee?"


@given(st.text(), st.sampled_from(UNSEEN), st.data())
def test_what_shows_nothing_changes_nothing_anywhere(text: str, unseen: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text)))
    assert folded(text[:place] + unseen + text[place:]) == folded(text)


def test_several_good_answers_are_no_duplicates_and_stay_together() -> None:
    examples = [chat(f"Name a bird, {i}.", f"Answer {k}.") for i in range(40) for k in range(3)]
    found = hold_out([*examples, *examples[:5]], 0.1, 0)
    assert found.duplicates == 5
    assert len(found.train) + len(found.heldout) == 120
    assert len(found.heldout) == 12
    assert set(Counter(i // 3 for i in found.heldout.tolist()).values()) == {3}


def test_equal_pairs_are_dropped_within_a_client_and_kept_with_each_that_has_them() -> None:
    examples = [single(n % 10, client="ab"[n // 10 % 2]) for n in range(40)]
    examples += [single(100 + n, client="ab"[n % 2]) for n in range(20)]
    found = hold_out(examples, 0.2, 0)
    assert (found.duplicates, found.copies, found.shared) == (20, 20, 0)
    assert leaks(examples, found) == 0
    assert (
        "20 examples are held by more than one client" in hold_out_remarks(shared=0, copies=found.copies)[0]
    )


def test_another_spelling_of_the_answer_is_another_answer() -> None:
    """Case and indentation are what a program, or an answer in German, is trained for."""
    asked = "Write the loop."
    answers = ["for x in y:\n    f(X)", "for x in y:\n    f(x)", "for x in y: f(x)", "for x in y: f(x) "]
    found = hold_out([chat(asked, answer, client="a") for answer in answers], 0.0, 0)
    assert found.train.tolist() == [0, 1, 2]
    assert (found.duplicates, found.repeats) == (1, ((3, 2),))


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("pqr"), st.sampled_from("xyz")),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([0.0, 0.3]),
    st.booleans(),
)
def test_duplicates_are_equal_pairs_within_one_client(
    rows: list[tuple[str, str, str]], share: float, keep: bool
) -> None:
    """Against sets: every different (client, question, answer) is there once, or as often as in the data."""
    examples = [chat(f"question {q}", f"answer {a}", client=client) for client, q, a in rows]
    found = hold_out(examples, share, 0, keep_duplicates=keep)
    here = [rows[i] for i in (*found.train, *found.heldout)]
    assert sorted(here) == (sorted(rows) if keep else sorted({*rows}))
    assert found.repeated == len(rows) - len({*rows})
    assert found.duplicates == (0 if keep else found.repeated)
    assert all(rows[index] == rows[first] and first < index for index, first in found.repeats)
    pairs = Counter((q, a) for _, q, a in {*rows})
    assert found.copies == sum(n for n in pairs.values() if n > 1)
    if not found.shared:
        sides = [{rows[i][1:] for i in side} for side in (found.train, found.heldout)]
        assert not sides[0] & sides[1]


def test_many_duplicates_are_warned_of_and_few_are_not() -> None:
    few, more = (duplicate_warning(n, kept=False, size=100) for n in (5, 6))
    assert few == ""
    assert more.startswith("warning: 6.0% of the examples are duplicates")
    assert 'data.duplicates = "keep"' in more
    assert 'data.duplicates = "drop"' in duplicate_warning(6, kept=True, size=100)


# ---- groups that the data name


def grouped(number: int, group: str, client: str = "") -> Example:
    return replace(single(number, client=client), group=group)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from("abc")), min_size=2, max_size=60),
    st.floats(0.05, 0.6),
    st.integers(0, 3),
)
def test_a_group_is_on_one_side_whatever_its_size(rows, share, seed) -> None:
    examples = [grouped(n, f"g{group}", client) for n, (group, client) in enumerate(rows)]
    found = hold_out(examples, share, seed)
    sides = [{examples[i].group for i in side} for side in (found.train, found.heldout)]
    assert not sides[0] & sides[1]
    assert {e.client for e in examples} == {examples[i].client for i in found.train}


def test_groups_stay_whole_where_all_hangs_together() -> None:
    """Ties by text are given up there, and the groups are not."""
    examples = [
        replace(chat(f"q{i}", f"a{i}", "Thanks!", "You are welcome."), group=f"{i // 4}") for i in range(100)
    ]
    found = hold_out(examples, 0.1, 0)
    held = Counter(examples[i].group for i in found.heldout)
    assert 8 <= len(found.heldout) <= 12
    assert set(held.values()) == {4}


def test_eleven_languages_hold_out_the_same_problems() -> None:
    examples = [grouped(25 * lang + n, f"{n}", f"l{lang}") for lang in range(11) for n in range(25)]
    found = hold_out(examples, 0.1, 0)
    held = Counter(examples[i].group for i in found.heldout)
    assert len(held) in (2, 3)
    assert set(held.values()) == {11}


# ---- a test set of one's own


def test_what_the_test_set_holds_is_not_trained_on_and_what_it_shares_is_counted() -> None:
    examples = [single(n, client="ab"[n % 2]) for n in range(20)]
    tested = [
        single(3),  # the same example
        chat("Question  4", "ANSWER 4", system="Be kind."),  # the same to a reader
        chat("Question 5", "Something else"),
        single(100),
    ]
    found = set_apart(examples, tested, 0)
    assert found.train.tolist() == [n for n in range(20) if n not in (3, 4)]
    assert sorted(found.heldout.tolist()) == [20, 21, 22, 23]
    assert (found.tested, found.first_tested, found.shared, found.first_shared) == (2, 3, 1, 22)


def test_a_group_of_the_test_set_is_not_trained_on() -> None:
    examples = [grouped(n, f"{n // 2}") for n in range(10)] + [single(50)]
    found = set_apart(examples, [grouped(100, "3"), single(101)], 0)
    assert found.train.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 10]
    assert found.tested == 2


def test_what_cannot_be_kept_apart_is_counted_and_said() -> None:
    """Every chat holds the same greeting, so all hang together."""
    examples = [chat(f"q{i}", f"a{i}", "Thanks!", "You are welcome.") for i in range(100)]
    found = hold_out(examples, 0.1, 0)
    assert len(found.heldout) == found.shared == leaks(examples, found) == 10
    assert "10 held-out examples share a question" in hold_out_remarks(shared=found.shared, copies=0)[0]
    assert hold_out_remarks(shared=0, copies=0) == []


def remarks(found: HoldOut) -> list[str]:
    return hold_out_remarks(
        shared=found.shared,
        copies=found.copies,
        common=found.common,
        commonest=found.commonest,
        size=len(found.train) + len(found.heldout),
    )


@pytest.mark.parametrize("reply", ["Hi!", "Hi {}!"])
@pytest.mark.parametrize("others", [0, 20, 100, 1000])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_a_greeting_that_all_chats_begin_with_ties_none_of_them(
    reply: str, others: int, share: float
) -> None:
    examples = [chat("Hello", reply.format(i), f"Question {i}", f"Answer {i}") for i in range(400)]
    examples += [single(1000 + i) for i in range(others)]
    found = hold_out(examples, share, 0)
    assert len(found.heldout) == round(share * len(examples))
    assert found.shared + found.common >= leaks(examples, found)


def test_a_common_first_instruction_is_dropped_counted_and_said() -> None:
    examples = [chat("Hello", f"Hi {i}!", f"Question {i}", f"Answer {i}") for i in range(400)]
    examples += [single(1000 + i) for i in range(100)]
    found = hold_out(examples, 0.1, 0)
    greeted = sum(index < 400 for index in found.heldout.tolist())
    assert len(found.heldout) == 50
    assert 25 < greeted < 50  # 40 by its part
    assert (found.shared, found.common, found.commonest) == (0, 400, 400)
    (said,) = remarks(found)
    assert "400 examples share a first instruction that up to 80% have" in said
    assert "divided all the same" in said


def test_the_same_instruction_under_many_system_texts_is_dropped_too() -> None:
    examples = [chat("Sum up.", f"Short {n}.", system=f"Text {n}") for n in range(100)]
    examples += [single(n) for n in range(100)]
    found = hold_out(examples, 0.1, 0)
    assert (len(found.heldout), found.shared, found.common, found.commonest) == (20, 0, 100, 100)


def test_a_tie_that_few_hold_stays_whatever_part_they_are() -> None:
    """Twenty of forty is half, and still no more than a handful."""
    examples = [chat("Hello", f"Hi {i}!", f"Question {i}", f"Answer {i}") for i in range(20)]
    examples += [single(1000 + i) for i in range(20)]
    found = hold_out(examples, 0.2, 0)
    assert (len(found.heldout), found.shared, found.common, leaks(examples, found)) == (8, 0, 0, 0)


def test_what_one_example_in_a_hundred_holds_is_no_common_tie_where_there_are_many() -> None:
    examples = [chat(f"Hello {i % 200}", f"Hi {i}!", f"Question {i}", f"Answer {i}") for i in range(6000)]
    found = hold_out(examples, 0.1, 0)
    assert (len(found.heldout), found.shared, found.common, leaks(examples, found)) == (600, 0, 0, 0)


def test_copies_with_many_clients_are_no_common_tie() -> None:
    examples = [
        chat(f"q{i}", f"a{i}", system=f"You are {c}.", client=f"c{c}") for i in range(40) for c in range(30)
    ]
    found = hold_out(examples, 0.1, 0)
    assert (len(found.heldout), found.shared, found.common) == (120, 0, 0)
    assert set(Counter(i // 30 for i in found.heldout.tolist()).values()) == {30}


def test_many_answers_to_one_question_are_no_common_tie() -> None:
    """Ten questions with fifty answers each: one question is held out with all of them."""
    examples = [chat(f"q{i}", f"answer {k}") for i in range(10) for k in range(50)]
    found = hold_out(examples, 0.1, 0)
    assert (len(found.heldout), found.shared, found.common) == (50, 0, 0)


def test_one_question_that_nearly_all_ask_is_taken_apart_and_what_is_left_is_not_used_up() -> None:
    examples = [chat("Tell me a joke.", f"Joke {i}") for i in range(950)] + [single(i) for i in range(50)]
    found = hold_out(examples, 0.1, 0)
    assert len(found.heldout) == 100
    asked = sum(index < 950 for index in found.heldout.tolist())
    assert 85 <= asked == found.shared
    assert "share a question" in remarks(found)[0]


def test_a_share_of_one_in_a_hundred_holds_out_no_quarter() -> None:
    examples = [chat(f"q{i}", f"answer {k}") for i in range(4) for k in range(250)]
    found = hold_out(examples, 0.01, 0)
    assert len(found.heldout) == found.shared == 10


def test_a_group_that_is_too_large_is_trained_on_where_others_can_be_held_out() -> None:
    examples = [chat("Hi", f"Hello {i}") for i in range(60)] + [single(i) for i in range(40)]
    found = hold_out(examples, 0.2, 0)
    assert (len(found.heldout), found.shared, leaks(examples, found)) == (20, 0, 0)
    assert min(found.heldout) >= 60


def test_where_all_hang_together_the_same_question_still_does_not_cross() -> None:
    examples = [chat(f"q{i}", f"a{i}{k}", "Thanks!", "You are welcome.") for i in range(50) for k in range(2)]
    found = hold_out(examples, 0.1, 0)
    assert set(Counter(i // 2 for i in found.heldout.tolist()).values()) == {2}


@given(st.lists(st.lists(st.integers(0, 12), max_size=4), max_size=30))
def test_groups_are_the_connected_parts(ties: list[list[int]]) -> None:
    """Against reachability by matrices."""
    pairs = np.array([(i, tie) for i, own in enumerate(ties) for tie in own], np.int32).reshape(-1, 2)
    found = joined(np.arange(len(ties)), Edges(*pairs.T.copy()))
    assert [len(group) for group in found] == found.sizes.tolist()
    assert [group[0] for group in found] == sorted(group[0] for group in found)
    assert sorted(i for group in found for i in group) == list(range(len(ties)))
    shares = np.array(
        [[bool(set(a) & set(b)) or i == j for j, b in enumerate(ties)] for i, a in enumerate(ties)]
    )
    reach = np.linalg.matrix_power(shares.astype(float), max(1, len(ties))) > 0 if ties else shares
    for group in found:
        assert np.flatnonzero(reach[group[0]]).tolist() == group


@given(st.lists(st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES), max_size=20), st.randoms())
def test_equal_digests_and_no_others_have_one_number(digests: list[bytes], random) -> None:
    """Also those that differ in their first or in their last byte alone."""
    every = [each for one in digests for each in (one, one, b"\0" + one[1:], one[:-1] + b"\0")]
    random.shuffle(every)
    numbers = _numbers(bytearray(b"".join(every))).tolist()
    assert len(set(zip(every, numbers, strict=True))) == len(set(every)) == len(set(numbers))
    assert set(numbers) == set(range(len(set(every))))


# ---- the share


@settings(max_examples=80, deadline=None)
@given(
    categories=st.lists(st.sampled_from("abcde"), min_size=1, max_size=80),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 3),
)
def test_the_share_is_held_out_and_each_category_gives_its_part(categories, share, seed) -> None:
    examples = [single(number, category) for number, category in enumerate(categories)]
    found = hold_out(examples, share, seed)
    n = len(examples)
    assert sorted([*found.train, *found.heldout]) == list(range(n))
    assert len(found.heldout) == (0 if not share or n < 2 else min(n - 1, max(1, round(share * n))))
    held, sizes = Counter(categories[index] for index in found.heldout), Counter(categories)
    for name, size in sizes.items():
        part = len(found.heldout) * size / n
        assert held[name] <= part + 1
        if len(found.heldout) >= len(sizes) and size > 1:
            assert held[name] >= 1


CHATS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3),
        st.sampled_from(["", "You are kind.", "Text 1", "Text 2"]),
        st.sampled_from(["", "", "Text 1", "Text 2"]),
    ),
    min_size=2,
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(CHATS, st.sampled_from([0.02, 0.1, 0.3, 0.5, 0.85]), st.integers(0, 3))
def test_however_they_hang_together_the_share_is_held_out_and_what_it_costs_is_counted(
    chats, share, seed
) -> None:
    examples = [
        chat(*(f"{'qa'[k % 2]}{n}" for k, n in enumerate(sum(said, ()))), system=system, context=context)
        for said, system, context in chats
    ]
    found = hold_out(examples, share, seed)
    size = len(found.train) + len(found.heldout)
    assert size + found.duplicates == len(examples)
    if size > 1:
        wanted = min(size - 1, max(1, round(share * size)))
        assert wanted <= 2 * len(found.heldout) <= max(4 * wanted, 2 * min(20, size // 4))
    assert leaks(examples, found) <= found.shared + found.common
    assert len(remarks(found)) == bool(found.shared) + bool(found.common)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_thousands_of_tiny_categories_hold_out_no_more_than_the_share(size: int) -> None:
    examples = [single(number, f"c{number // size}") for number in range(6000)]
    assert len(hold_out(examples, 0.1, 0).heldout) == 600


def test_the_share_is_met_to_within_one_group() -> None:
    examples = [chat(f"q{i}", f"answer {k}") for i in range(30) for k in range(1 + i % 7)]
    for seed in range(10):
        found = hold_out(examples, 0.15, seed)
        assert abs(len(found.heldout) - 0.15 * len(examples)) < 7
        assert leaks(examples, found) == 0


def test_five_answers_to_each_question_are_held_out_whole_though_one_was_wanted() -> None:
    examples = [chat(f"q{i}", f"answer {k}") for i in range(10) for k in range(5)]
    found = hold_out(examples, 0.02, 0)
    assert (len(found.heldout), found.shared) == (5, 0)


def test_each_example_is_held_out_as_often_as_any_other() -> None:
    examples = [single(number, "ab"[number % 2]) for number in range(40)]
    times = Counter(int(i) for seed in range(400) for i in hold_out(examples, 0.25, seed).heldout)
    assert len(times) == 40
    assert all(abs(times[i] - 100) < 45 for i in range(40))  # deviation 9


@pytest.mark.parametrize("seed", range(5))
def test_each_client_gives_its_part_where_the_data_name_them(seed: int) -> None:
    """Ten clients with ten examples each in two categories: one of each, and half of either category."""
    examples = [single(n, "ab"[n % 2], f"c{n // 10}") for n in range(100)]
    held = [examples[i] for i in hold_out(examples, 0.1, seed).heldout]
    assert Counter(one.category for one in held) == {"a": 5, "b": 5}
    assert len({one.client for one in held}) >= 9  # the last of a category may be of one client alone


def test_clients_that_are_too_many_for_one_each_take_turns() -> None:
    examples = [single(n, client=f"c{n // 3}") for n in range(900)]
    held = Counter(examples[i].client for i in hold_out(examples, 0.1, 0).heldout)
    assert len(held) == 90


def test_no_client_loses_its_last_example() -> None:
    examples = [single(n, client=f"c{n}") for n in range(4)] + [single(n + 4, client="big") for n in range(4)]
    for seed in range(5):
        found = hold_out(examples, 0.9, seed)
        assert {examples[index].client for index in found.train} == {"c0", "c1", "c2", "c3", "big"}
        assert len(found.heldout) == 3


def test_nothing_is_taken_apart_for_want_of_clients_that_can_spare_it() -> None:
    """Fifty clients whose one example another client has too: less is held out, and nothing leaks."""
    examples = [single(n, client="big") for n in range(60)]
    examples += [single(n, client=f"c{n}") for n in range(50)]
    found = hold_out(examples, 0.3, 0)
    assert sorted(found.heldout.tolist()) == list(range(50, 60))
    assert (found.shared, leaks(examples, found)) == (0, 0)


@pytest.mark.slow
def test_a_hundred_thousand_examples_take_seconds() -> None:
    rng = np.random.default_rng(0)
    text = " ".join(["word"] * 60)
    numbers = rng.integers(0, 80_000, 100_000).tolist()
    examples = [
        chat(f"q{n} {text}", f"a{k % 3} {text}", category=f"c{n % 50}", client=f"u{n % 3000}")
        for k, n in enumerate(numbers)
    ]
    began = time.process_time()
    found = hold_out(examples, 0.1, 0)
    assert time.process_time() - began < 20  # about 4
    assert abs(len(found.heldout) - 0.1 * (100_000 - found.duplicates)) < 10


# ---- the order of scoring


def test_any_number_from_the_front_is_even_over_clients() -> None:
    """Ten ready-made clients with one category, as in a folder with one file a client."""
    examples = [single(1000 * c + i, client=f"client_{c}") for c in range(10) for i in range(300)]
    held = [examples[i] for i in hold_out(examples, 0.1, 0).heldout]
    places = stratified_subset([one.category for one in held], 200)
    assert set(Counter(held[i].client for i in places).values()) == {20}
    assert set(Counter(one.client for one in held[:50]).values()) == {5}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyzw")), min_size=4, max_size=120),
    st.integers(0, 40),
)
def test_the_order_is_even_over_categories_first_and_then_over_clients(kinds, most) -> None:
    examples = [single(n, category, client) for n, (category, client) in enumerate(kinds)]
    found = hold_out(examples, 0.5, 0)
    held = [examples[i] for i in found.heldout]
    front = held[:most]
    there = Counter(one.category for one in front)
    for name, count in Counter(one.category for one in held).items():
        if there[name] < count:
            assert max(there.values(), default=0) <= there[name] + 1
    assert sorted(stratified_subset([one.category for one in held], most)) == list(range(len(front)))


def test_the_order_is_not_the_files_and_goes_by_the_seed() -> None:
    examples = [single(n, "ab"[n // 500]) for n in range(1000)]
    orders = [hold_out(examples, 0.2, seed).heldout.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    first = [index for index in orders[0] if index < 500]
    assert first != sorted(first)
    assert np.mean(first[:40]) == pytest.approx(250, abs=90)  # deviation 23


def test_categories_that_are_more_than_are_scored_are_drawn_too() -> None:
    examples = [single(n, f"c{n // 10}") for n in range(4000)]
    held = [examples[i] for i in hold_out(examples, 0.1, 0).heldout]
    scored = {int(held[i].category[1:]) for i in stratified_subset([one.category for one in held], 50)}
    assert len(scored) == 50
    assert np.mean(list(scored)) == pytest.approx(200, abs=65)  # deviation 16


def test_one_of_a_group_is_scored_before_a_second_of_it() -> None:
    """Answers to one question are no two questions to an interval."""
    examples = [chat(f"q{i}", f"answer {k}") for i in range(100) for k in range(4)]
    held = hold_out(examples, 0.2, 0).heldout
    assert len(held) == 80
    for start in range(0, 80, 20):
        assert len({i // 4 for i in held[start : start + 20].tolist()}) == 20
