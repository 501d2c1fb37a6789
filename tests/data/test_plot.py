"""The picture of who holds what."""

import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from shepherd import drawing
from shepherd.data.examples import Example, Turn
from shepherd.data.plot import draw, holdings
from shepherd.errors import DataError
from shepherd.ui.cli.main import main
from tests import runs


def many(*categories):
    turns = (Turn(role="user", text="x"), Turn(role="assistant", text="y"))
    return [Example(turns=turns, category=category) for category in categories]


def test_holdings_are_counted_by_hand():
    names, table = holdings(many(*"aabbb"), {"one": [0, 2], "two": [1, 3, 4]})
    assert names == ["a", "b"]
    assert table.tolist() == [[1, 1], [1, 2]]


@pytest.mark.parametrize("clients", [1, 10, 100])
def test_a_png_of_a_size_that_can_be_read(tmp_path, clients):
    examples = many(*["雨", "", "x" * 50, "open_qa"] * clients)
    shares = {f"client-{k:02d}": np.arange(4 * k, 4 * k + 4) for k in range(clients)}
    raw = draw(examples, shares, tmp_path / "deep" / "p.png").read_bytes()
    assert raw.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", raw[16:24])
    assert 300 < width < 2000
    assert height > 14 * clients  # pixels a client
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["p.png"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "p.png"):
        with pytest.raises(DataError, match=r"picture .* cannot be written \(.*\); name another file"):
            draw(many("a"), {"one": [0]}, path)


def test_only_a_picture_of_ours_is_replaced(tmp_path):
    path, shares = tmp_path / "p.png", {"one": [0]}
    draw(many("a"), shares, path)
    draw(many("b"), shares, path)
    path.write_bytes(b"a photograph")
    with pytest.raises(DataError, match=r"p\.png exists and is not a picture that Shepherd drew"):
        draw(many("a"), shares, path)
    assert path.read_bytes() == b"a photograph"
    draw(many("a"), shares, path, overwrite=True)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_font_is_found_for_other_scripts_and_missing_glyphs_are_named(
    tmp_path, caplog, monkeypatch
) -> None:
    draw(many("要約"), {"東京": [0]}, tmp_path / "a.png")
    if caplog.messages:  # where no font for Japanese is installed
        assert "no installed font has the glyphs of " in caplog.text
        assert "東" in caplog.text
    caplog.clear()
    draw(many("é"), {"Ω": [0]}, tmp_path / "b.png")
    assert not caplog.messages
    monkeypatch.setattr(drawing, "_installed", lambda: iter([("Thai", {"ก"})]))
    draw(many("要約"), {"東京ก": [0]}, tmp_path / "c.png")
    assert "glyphs of 京東約要, which are drawn as boxes" in caplog.text


def test_a_category_with_dollar_signs_is_a_picture(tmp_path) -> None:
    rows = [{**row, "category": "a $_$ b"} for row in runs.rows(12)]
    runs.written(tmp_path / "rows.jsonl", rows)
    (tmp_path / "run.toml").write_text(
        '[model]\nbase = "tiny"\n[data]\nsource = "rows.jsonl"\n[split]\nclients = 2\n'
    )
    picture = str(tmp_path / "split.png")
    told = CliRunner().invoke(main, ["data", "split", str(tmp_path / "run.toml"), "--plot", picture])
    assert told.exit_code == 0, told.output
    assert Path(picture).is_file()
