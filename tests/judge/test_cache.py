"""Replies survive whatever stops the process; keys hold all that a reply depends on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shepherd.errors import FolderError
from shepherd.judge import cache
from shepherd.judge.cache import Reply

ABOUT = {"question": "1", "repeat": 0}


def kept(folder: Path, *keys: str) -> None:
    with cache.opened(folder) as verdicts:
        for key in keys:
            verdicts.add(key, Reply(text=f"said of {key}\n", cut=True, prompt_tokens=3), ABOUT)


def test_what_is_added_is_there_for_the_next_process(tmp_path: Path) -> None:
    folder = tmp_path / "compare" / "verdicts"
    assert cache.read(folder) == {}
    assert not folder.exists()  # looking makes nothing
    kept(folder, "a", "b")
    kept(folder, "c")
    assert list(cache.read(folder)) == ["a", "b", "c"]
    assert cache.read(folder)["a"] == Reply(text="said of a\n", cut=True, prompt_tokens=3)


def test_a_folder_knows_which_arms_its_replies_are_about(tmp_path: Path) -> None:
    assert not cache.has_pair(tmp_path / "none", "a", "b")
    kept(tmp_path, "of an earlier version")
    with cache.opened(tmp_path) as verdicts:
        verdicts.add("k", Reply(text="So."), {**ABOUT, "first": "a", "second": "b"})
    with (tmp_path / cache.FILE).open("a") as file:
        file.write('[]\n{"about": 3}\n{"about": {"first"')
    assert cache.has_pair(tmp_path, "a", "b")
    assert not cache.has_pair(tmp_path, "a", "c")


def test_a_line_torn_anywhere_costs_that_line_alone(tmp_path: Path) -> None:
    kept(tmp_path, "a", "b")
    whole = (tmp_path / cache.FILE).read_bytes()
    second = whole.index(b"\n") + 1
    for end in (second + 1, len(whole) - 20, len(whole) - 1):
        (tmp_path / cache.FILE).write_bytes(whole[:end])
        kept(tmp_path, "c")
        assert sorted(cache.read(tmp_path)) in (["a", "c"], ["a", "b", "c"])  # only the newline was lost
        assert ("b" in cache.read(tmp_path)) == (end == len(whole) - 1)


def test_what_is_no_reply_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / cache.FILE).write_bytes(b'\n[]\n{"key": "a"}\n\xff\n{"key": "a", "text": "x", "cut": 0, ')
    assert cache.read(tmp_path) == {}


def test_a_reply_that_was_spent_before_its_first_word_is_not_final(tmp_path: Path) -> None:
    """Earlier versions kept them."""
    with cache.opened(tmp_path) as verdicts:
        verdicts.add("spent", Reply(text="\n", cut=True), ABOUT)
        verdicts.add("empty", Reply(text=""), ABOUT)
        verdicts.add("own", Reply(text="x", own_temperature=True), ABOUT)
    assert cache.read(tmp_path) == {"empty": Reply(text=""), "own": Reply(text="x", own_temperature=True)}


def test_a_row_of_before_can_be_read(tmp_path: Path) -> None:
    row = '{"key": "a", "text": "x", "cut": false, "prompt_tokens": 1, "completion_tokens": 2, "about": {}}'
    (tmp_path / cache.FILE).write_text(row + "\n")
    assert cache.read(tmp_path) == {"a": Reply(text="x", prompt_tokens=1, completion_tokens=2)}


def test_a_reply_is_in_the_file_before_the_next_is_asked(tmp_path: Path) -> None:
    with cache.opened(tmp_path) as verdicts:
        for number in range(3):
            verdicts.add(str(number), Reply(text="x"), ABOUT)
            assert len(cache.read(tmp_path)) == number + 1


def test_keys_tell_all_apart_that_a_reply_depends_on() -> None:
    one = ("m", "http://h/v1", "p", 0.0, 9, 0)
    others = ("n", "http://h/v2", "q", 0.5, 8, 1)
    changed = [(*one[:place], other, *one[place + 1 :]) for place, other in enumerate(others)]
    assert len({cache.key(*parts) for parts in (one, *changed)}) == 7
    assert cache.key("m", "http://h/v1/", "p", 0, 9, 0) == cache.key(*one)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FolderError, match="cannot be used"), cache.opened(tmp_path / "v"):
        pass


def test_a_file_in_the_folders_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "v").write_text("")
    with (
        pytest.raises(FolderError, match=r"the file of verdicts .* cannot be used"),
        cache.opened(tmp_path / "v"),
    ):
        pass


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        verdicts = cache.Cache(tmp_path / cache.FILE, {}, full)
        with pytest.raises(FolderError, match=r"No space left on device\); free some space"):
            verdicts.add("a", Reply(text="x"), ABOUT)
        assert verdicts.replies == {}
    finally:
        os.close(full)
