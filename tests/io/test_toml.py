"""Run files as people save them: marks, UTF-16, other encodings, and Windows paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from shepherd import overrides
from shepherd.errors import SettingsError
from shepherd.io import toml
from shepherd.silos.site import site_settings

RUN = '# für Ulm\n[model]\nbase = "tiny"\n[data]\nsource = {source}\nsystem = "Größe 東京"\n'
SITE = '# für Ulm\n[data]\nsource = {source}\ncategory = "Größe 東京"\n'
READERS = {
    "run": (RUN, lambda path: overrides.read(path).data.system),
    "site": (SITE, lambda path: site_settings.read(path).data.category),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "\ufeffutf-8-sig"]
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_file_of_any_editor_is_read(kind: str, encoding: str, ends: str, tmp_path: Path) -> None:
    text, read = READERS[kind]
    text = text.format(source='"world"').replace("\n", ends)
    doubled = encoding.startswith("\ufeff")  # a mark, and one more by the next program
    (tmp_path / "a.toml").write_bytes(("\ufeff" * doubled + text).encode(encoding.lstrip("\ufeff")))
    assert read(tmp_path / "a.toml") == "Größe 東京"


@pytest.mark.parametrize("kind", READERS)
def test_another_encoding_is_named_with_its_line(kind: str, tmp_path: Path) -> None:
    text, read = READERS[kind]
    path = tmp_path / "a.toml"
    path.write_bytes(text.format(source='"a"').replace("東京", "").encode("cp1252"))
    with pytest.raises(SettingsError, match=r"a\.toml, line 1 is not UTF-8; save the file as UTF-8"):
        read(path)
    path.write_bytes(b"\xff\xfea")
    with pytest.raises(SettingsError, match="is not UTF-8"):
        read(path)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    "path",
    [
        r"C:\Users\me\rows.jsonl",  # no escape
        r"C:\new\rows.jsonl",  # a line break
        r"data\train.jsonl",  # a tab
        r"D:\best\form.csv",
        r"\\server\share\rows.csv",
        r"\\server\new\rows.csv",
        "C:\\data\\",  # the last one escapes the quotation mark
        r"C:\äöü\rows.csv",
    ],
)
def test_a_windows_path_in_double_quotes_gets_a_hint(kind: str, path: str, tmp_path: Path) -> None:
    text, read = READERS[kind]
    (tmp_path / "a.toml").write_text(text.format(source=f'"{path}"  # ours'))
    with pytest.raises(SettingsError, match="write the path in single quotes, '") as caught:
        read(tmp_path / "a.toml")
    assert "\n" not in str(caught.value)
    if not path.startswith("\\\\"):
        assert f"'{path}'" in str(caught.value)


def test_so_do_overrides_outputs_and_bases(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(RUN.format(source='"world"'))
    for override in (r'data.source="C:\Users\me"', r'data.source="data\new"', r'output="runs\new"'):
        with pytest.raises(SettingsError, match="single quotes, '"):
            overrides.read(tmp_path / "a.toml", [override])
    assert overrides.read(tmp_path / "a.toml", [r"output=C:\Users\me"]).output == r"C:\Users\me"
    (tmp_path / "b.toml").write_text('[data]\nsource = "world"\n[[bases]]\nname = "b"\nfolder = "b\\tiny"\n')
    with pytest.raises(SettingsError, match=r"key bases\.folder: .*'b\\tiny'"):
        site_settings.read(tmp_path / "b.toml")


def test_a_path_that_is_there_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "a\tb.jsonl").write_text("{}")
    (tmp_path / "a.toml").write_text(RUN.format(source='"a\\tb.jsonl"'))
    assert overrides.read(tmp_path / "a.toml").data.source == str(tmp_path / "a\tb.jsonl")


def test_quotation_marks_of_a_word_processor_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[model]\nbase = “tiny”\n")
    with pytest.raises(SettingsError, match=r"line 2.*typographic quotation marks"):
        toml.read(tmp_path / "a.toml", "run file")


def test_a_line_that_is_wrong_otherwise_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[model]\nbase = \n")
    with pytest.raises(SettingsError, match=r"run file .*a\.toml is not TOML: .*line 2.*; fix that line"):
        toml.read(tmp_path / "a.toml", "run file")
    with pytest.raises(SettingsError, match="cannot be read"):
        toml.read(tmp_path / "b.toml", "run file")


def test_a_folder_is_answered_with_the_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"is a folder; name the file$"):
        toml.read(tmp_path, "run file")
    (tmp_path / "run.toml").write_text("")
    with pytest.raises(SettingsError, match=r"is a folder; name a file in it, such as .*run\.toml$"):
        toml.read(tmp_path, "run file")
