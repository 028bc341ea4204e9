"""The clients on the page about serving run as they are written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from live_server import EXAMPLES, Running

from sa2va.media.image import load_image
from sa2va.serve.settings import ServerSettings

PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")


def test_python_blocks_run(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_image(EXAMPLES / "shapes.png").save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in re.findall(r"^```py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(block.replace("http://127.0.0.1:8000", server.url), namespace)
    namespace["client"].close()
    said = capsys.readouterr().out
    assert "'counts'" in said
    assert "the yellow cloud [0." in said


def test_every_limit_of_the_page_is_the_default(tmp_path: Path) -> None:
    defaults = ServerSettings(tmp_path)
    told = {name: bool(re.search(text, PAGE)) for name, text in {
        "max_body": f"{defaults.max_body >> 20} MiB", "max_held": f"{defaults.max_held >> 30} GiB",
        "max_pixels": f"{defaults.max_pixels // 10**6} million", "max_clip_frames": f"{defaults.max_clip_frames} ",
        "max_frames": f"{defaults.max_frames:,}", "max_seconds": f"{defaults.max_seconds / 60:.0f} min",
        "max_tokens": f"{defaults.max_tokens:,}", "max_phrases": f"{defaults.max_phrases}; {defaults.max_characters:,}",
        "at_once": f"{defaults.at_once} .*; {defaults.max_waiting} ", "seconds": f"{defaults.seconds:.0f} s",
        "max_jobs": f"jobs that wait . {defaults.max_jobs} ", "scene_bytes": f"{defaults.scene_bytes >> 30} GiB",
        "keep_hours": f"keep-hours` .{defaults.keep_hours:.0f}.", "grace": f"for {defaults.grace:.0f} seconds",
    }.items()}  # fmt: skip
    assert all(told.values()), told
