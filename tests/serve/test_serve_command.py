"""``sa2va serve``: what it refuses before it loads a model, and what it says."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from sa2va.atomic import sole_writer
from sa2va.cli import main
from sa2va.serve.server import serve
from sa2va.serve.settings import ServerSettings


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SA2VA_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "can be reached from elsewhere, so clients must show a key"),
        (["--api-key", " "], "the API key is ASCII text that is not blank"),
        (["--allow-url", "ftp://x"], "an allowed URL is https://HOST/PATH"),
        (["--timeout", "-1"], "seconds must be above 0"),
    ],
)
def test_mistakes_are_told_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], message: str
) -> None:
    assert main(["serve", "--model", "tiny", "--folder", str(tmp_path), *options]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "loading" not in said.err


def test_a_missing_package_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["serve", "--model", "tiny"]) == 2
    assert "pip install 'sa2va[serve]'" in capsys.readouterr().err


def test_a_folder_or_port_that_is_taken(tmp_path: Path, tiny: object) -> None:
    with sole_writer(tmp_path), pytest.raises(ValueError, match="another process is writing"):
        serve(tiny, "tiny", ServerSettings(tmp_path, port=0), print)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        serve(tiny, "tiny", ServerSettings(tmp_path, port=taken.getsockname()[1]), print)  # type: ignore[arg-type]
