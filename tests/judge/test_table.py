"""The table judge of a run file: a key that strays into it is refused without being repeated."""

from __future__ import annotations

import pytest

from shepherd.errors import SettingsError
from shepherd.overrides import dump, parse
from shepherd.settings import JudgeTable
from tests.judge.conftest import KEY

LEAST = {"model": {"base": "tiny"}, "data": {"source": "world"}}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"key_env": KEY}, "key judge.key_env is not the name of an environment variable"),
        ({"base_url": f"https://me:{KEY}@host/v1"}, "key judge.base_url is not a plain http address"),
        ({"base_url": f"https://host/v1?key={KEY}"}, "key judge.base_url is not a plain http address"),
        ({"base_url": f"https://host/v1#{KEY}"}, "key judge.base_url is not a plain http address"),
        ({"base_url": "host/v1"}, "write it as https://host/v1"),
    ],
)
def test_a_key_in_the_run_file_is_refused_unseen(table: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        parse({**LEAST, "judge": table})
    assert KEY not in str(caught.value)
    assert caught.value.__context__ is None


def test_addresses_and_names_as_people_have_them() -> None:
    for url in (
        "http://127.0.0.1:8000/v1",
        "https://api.example.com/openai/v1/",
        "http://[::1]:80",
        "http://host",
    ):
        assert JudgeTable(base_url=url).base_url == url
    for name in ("OPENAI_API_KEY", "_key2", ""):
        assert JudgeTable(key_env=name).key_env == name


def test_what_is_dumped_never_holds_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", KEY)
    settings = parse({**LEAST, "judge": {"model": "m", "key_env": "MINE"}})
    assert KEY not in dump(settings)
    assert 'key_env = "MINE"' in dump(settings)
