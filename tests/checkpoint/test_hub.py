"""What is said when the hub does not give a checkpoint: the id and the cure, whatever part of it was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from sa2va import Sa2VA, Sa2VAModel, Sa2VAProcessor
from sa2va.cli.commands import app

LOADERS: list[Any] = [Sa2VA.from_pretrained, Sa2VAModel.from_pretrained, Sa2VAProcessor.from_pretrained]


@pytest.mark.parametrize("load", LOADERS)
def test_offline_the_id_and_the_way_around_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: Any):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"ByteDance/Sa2VA-4B is not.*hf download ByteDance/Sa2VA-4B --local-dir"):
        load("ByteDance/Sa2VA-4B", cache_dir=tmp_path)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("name", ["ByteDance/Sa2VA-4C", "Sa2VA4B"])
def test_a_name_that_is_nearly_one_of_the_zoo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: Any, name: str):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"did you mean ByteDance/Sa2VA-"):
        load(name, cache_dir=tmp_path)


@pytest.mark.parametrize("words", [["convert", "Sa2VA-4B", "out"], ["chat", "-", "hello", "-m", "Sa2VA-4B"]])
def test_commands_say_it_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "hf download ByteDance/Sa2VA-4B --local-dir" in result.output
