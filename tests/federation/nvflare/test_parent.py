from __future__ import annotations

from pathlib import Path

from shepherd.federation.nvflare import parent


def test_a_site_says_who_it_is_and_beats_often(tmp_path: Path) -> None:
    arguments = parent._arguments("site", tmp_path, "north")
    assert arguments[:4] == ["-m", str(tmp_path), "-s", "fed_client.json"]
    assert {"uid=north", "secure_train=true", f"heart_beat_interval={parent.HEARTBEAT}"} <= set(arguments)
    assert "uid" not in " ".join(parent._arguments("server", tmp_path, ""))
