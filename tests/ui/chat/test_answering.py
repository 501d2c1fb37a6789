"""Several arms answer as each does alone; nothing of one question gets into another's answer."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shepherd.data.examples import Turn
from shepherd.errors import AdapterError, BaseError, DataError, FolderError, ShepherdError, TemplateError
from shepherd.model import files
from shepherd.run import folder
from shepherd.run.answerer import generate
from shepherd.ui.chat import answering
from shepherd.ui.chat.answering import Chat, open_chat
from tests.model import bases

ARMS = ["base", "local-client-1", "federated", "centralised", "ffa"]


@pytest.fixture(scope="module")
def chat(compared: Path) -> Chat:
    return open_chat(compared)


def last(chat: Chat, instruction: str, context: str = "", **options: Any) -> dict[str, str]:
    *_, texts = chat.answer(instruction, context, **{"arms": ARMS, **options})
    return texts


def test_every_arm_answers_as_it_does_alone(chat: Chat, compared: Path) -> None:
    texts = last(chat, "w5 w9", "w7")
    assert len(set(texts.values())) >= 4
    assert texts["federated"] == generate(compared, "w5 w9", "w7")
    assert texts["base"] == generate(compared, "w5 w9", "w7", base=True)
    assert texts["ffa"] == generate(compared / "compare" / "seed-0" / "ffa", "w5 w9", "w7", max_new_tokens=12)
    assert texts == {name: last(chat, "w5 w9", "w7", arms=[name])[name] for name in ARMS}


def test_answers_grow(chat: Chat) -> None:
    steps = list(chat.answer("w5 w9", arms=ARMS, max_new_tokens=8))
    assert len(steps) == 8
    for before, after in pairwise(steps):
        assert all(after[name].startswith(before[name]) for name in ARMS)
        assert before != after


def test_template_length_and_sampling_are_as_chosen(chat: Chat) -> None:
    assert chat.templates == ("alpaca", "alpaca-short", "vicuna", "plain")  # this base has no chat template
    assert last(chat, "w5", template="plain") == last(chat, "w5")
    assert last(chat, "w5", template="alpaca-short") != last(chat, "w5")
    assert all(len(text.split()) <= 3 for text in last(chat, "w5", max_new_tokens=3).values())
    sampled = {"temperature": 1.5, "top_p": 0.9}
    assert last(chat, "w5", **sampled, seed=1) == last(chat, "w5", **sampled, seed=1)
    assert last(chat, "w5", **sampled, seed=1) != last(chat, "w5", **sampled, seed=2)
    alone = {name: last(chat, "w5", **sampled, seed=1, arms=[name])[name] for name in ARMS}
    assert alone == last(chat, "w5", **sampled, seed=1)


def test_two_who_ask_at_once_get_their_own_answers(chat: Chat) -> None:
    questions = ["w5 w9", "w30 w31 w32", "w12", "w44 w4"]
    arms = [ARMS, ARMS[:2], ARMS[2:], ["centralised"]]
    alone = [last(chat, each, arms=some) for each, some in zip(questions, arms, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each, some: last(chat, each, arms=some), questions, arms))
    assert together == alone


def test_an_answer_that_was_left_lets_the_next_one_begin(chat: Chat) -> None:
    going = chat.answer("w5 w9", arms=ARMS)
    next(going)
    going.close()
    assert last(chat, "w5 w9") == last(chat, "w5 w9")


def test_only_the_named_arms_are_there(compared: Path) -> None:
    chat = open_chat(compared, ["federated", "local-client-3"])
    assert list(chat.arms) == ["local-client-3", "federated"]
    with pytest.raises(DataError, match="no arm 'base'; it has local-client-3, federated"):
        last(chat, "w5", arms=["base"])
    with pytest.raises(DataError, match="no arm 'local-client-9'; it has base, local-client-1,"):
        open_chat(compared, ["local-client-9"])


# --- what is refused


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"instruction": " "}, DataError, "the instruction is empty"),
        ({"arms": []}, DataError, "no arm is chosen"),
        ({"instruction": "w5 " * 70}, BaseError, "a prompt has 7. tokens .* reads at most 64; shorten"),
        ({"template": "chat"}, TemplateError, "chat template"),
        ({"temperature": -1.0}, BaseError, "0 is greedy"),
        ({"top_p": 0.0}, BaseError, "above 0"),
        ({"max_new_tokens": 0}, BaseError, "at least 1"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_sentence(
    chat: Chat, given: dict[str, Any], error: type[ShepherdError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        last(chat, **{"instruction": "w5", **given})
    assert last(chat, "w5")  # and the next one is answered


def test_a_folder_without_a_run_and_a_run_without_a_round_are_named(tmp_path: Path, bare: Path) -> None:
    with pytest.raises(FolderError, match="holds no run"):
        open_chat(tmp_path)
    with pytest.raises(FolderError, match="has finished no round yet"):
        open_chat(bare)


def test_an_adapter_of_another_base_is_named(compared: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(compared, tmp_path / "run"))
    other = bases.load(bases.save(bases.CONFIGS["llama"], tmp_path / "other", seed=1), rank=2, alpha=16)
    where = copy / "compare" / "seed-0" / "centralised"
    files.write(where, bases.random_adapter(other, 0), other)
    with pytest.raises(AdapterError, match=f"arm centralised: adapter {where} was made for another base"):
        open_chat(copy)
    assert last(open_chat(copy, ["base", "federated"]), "w5", arms=["base", "federated"])


def test_a_local_adapter_is_read_when_it_is_first_asked_for(compared: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(compared, tmp_path / "run"))
    (copy / "compare" / "seed-0" / "local-client-3" / files.WEIGHTS).write_bytes(b"")
    chat = open_chat(copy)
    with pytest.raises(AdapterError, match=r"arm local-client-3: .* cannot be read"):
        last(chat, "w5", arms=["local-client-3"])
    assert last(chat, "w5", arms=["local-client-1"])


def test_a_federated_adapter_of_another_rank_is_named(compared: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(compared, tmp_path / "run"))
    settings = folder.read_settings(copy)
    wider = settings.model_copy(update={"adapter": settings.adapter.model_copy(update={"alpha": 99})})
    (copy / folder.RUN_FILE).write_text(folder.dump(wider))
    with pytest.raises(AdapterError, match=r"arm federated: adapter .* scales by .*leave this arm out"):
        open_chat(copy, ["federated"])


# --- characters of several tokens


def _bytewise() -> PreTrainedTokenizerFast:
    """A token a byte, as GPT-2's kind writes what it has no longer token for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=built)


def _falling_back() -> PreTrainedTokenizerFast:
    """A token a byte, as Llama's kind writes what it has no piece for."""
    vocabulary = {"<unk>": 256, **{f"<0x{byte:02X}>": byte for byte in range(256)}}
    built = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    built.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=built)


@pytest.mark.parametrize("tokenizer", [_bytewise(), _falling_back()], ids=["bytes", "fallback"])
@given(text=st.text(st.sampled_from("aé ü€漢😀\n"), max_size=8))
@how(max_examples=40)
def test_no_half_character_is_ever_shown(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    steps = ([ids[: n + 1]] for n in range(len(ids)))
    base: Any = SimpleNamespace(tokenizer=tokenizer)
    shown = [texts["arm"] for texts in answering._texts(["arm"], steps, base)]
    assert len(ids) == len(text.encode())
    assert (shown[-1] if shown else "") == text.strip()
    assert not any(answering.REPLACEMENT in each for each in shown)
    assert all(after.startswith(before) for before, after in pairwise(shown))


def test_an_answer_that_ends_within_a_character_ends_as_generate_has_it() -> None:
    tokenizer = _bytewise()
    base: Any = SimpleNamespace(tokenizer=tokenizer)
    ids = tokenizer.encode("a€", add_special_tokens=False)[:-1]
    *_, before, end = answering._texts(["arm"], iter([[ids[:2]], [ids]]), base)
    assert (before["arm"], end["arm"]) == ("a", tokenizer.decode(ids))
    assert json.dumps(end["arm"]) == '"a\\ufffd"'


def test_a_conversation_goes_on_from_each_arms_own_answer(chat: Chat) -> None:
    first = last(chat, "w5 w9", max_new_tokens=4)
    earlier = {
        name: [Turn(role="user", text="w5 w9"), Turn(role="assistant", text=text)]
        for name, text in first.items()
    }
    steps = list(chat.answer("w7", arms=ARMS, earlier=earlier, max_new_tokens=4))
    assert list(steps[-1]) == ARMS
    for name in ARMS:
        alone = last(chat, "w7", arms=[name], earlier={name: earlier[name]}, max_new_tokens=4)
        assert steps[-1][name] == alone[name]
    assert steps[-1] != last(chat, "w7", max_new_tokens=4)
    other = {**earlier, "base": [Turn(role="user", text="w5 w9"), Turn(role="assistant", text="w44")]}
    changed = last(chat, "w7", earlier=other, max_new_tokens=4)
    assert {name for name in ARMS if changed[name] != steps[-1][name]} <= {"base"}


def test_a_system_prompt_is_in_front_of_the_question(chat: Chat, compared: Path) -> None:
    plain = last(chat, "w5 w9")
    assert last(chat, "w5 w9", system=None) == plain  # the run has none
    told = last(chat, "w5 w9", system="w30 w31 w32")
    assert told != plain
    system = [Turn(role="system", text="w30 w31 w32")]
    assert told == last(chat, "w5 w9", earlier=dict.fromkeys(ARMS, system))


def test_the_arms_of_another_seed_of_training_answer(compared: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(compared, tmp_path / "run"))
    below = run / "compare" / "seed-1"
    shutil.copytree(run / "compare" / "seed-0" / "ffa", below / "federated")
    shutil.copytree(run / "compare" / "seed-0" / "centralised", below / "local-client-1")
    chat = open_chat(run)
    first, second = chat.trainings
    assert second == first + 1
    assert list(chat.trainings[second]) == ["base", "local-client-1", "federated"]
    mine = last(chat, "w5 w9")
    found = last(chat, "w5 w9", arms=["base", "local-client-1", "federated"], training=second)
    assert found == {
        "base": mine["base"],
        "local-client-1": mine["centralised"],
        "federated": last(chat, "w5 w9", arms=["ffa"])["ffa"],
    }
    with pytest.raises(DataError, match="no arm 'ffa'; it has base, local-client-1, federated"):
        last(chat, "w5", arms=["ffa"], training=second)
    with pytest.raises(DataError, match=f"no training with seed 7; it has {first}, {second}"):
        last(chat, "w5", training=7)
