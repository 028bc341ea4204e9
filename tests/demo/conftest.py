"""The packaged model as the demo sees it, and a page with it, served by the command once for all tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sa2va import Sa2VA
from sa2va.demo.local_backend import LocalBackend


@pytest.fixture(scope="session")
def backend(tiny: Sa2VA) -> LocalBackend:
    """The packaged model."""
    return LocalBackend(tiny, "tiny", tiny=True)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page's temporary files."""
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="session")
def address(files: Path) -> Iterator[str]:
    """Where the page is served. In a process of its own: warnings of the libraries under it are no errors of ours."""
    command = [sys.executable, "-m", "sa2va.cli", "demo", "--model", "tiny", "--device", "cpu", "--port", "0", "--mcp"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(files)}) as page:
        assert page.stderr is not None
        said = []
        for line in page.stderr:
            said.append(line)
            if found := re.search(r"open (http://127\.0\.0\.1:\d+/)", line):
                break
        else:
            pytest.fail("the page did not start: " + "".join(said))
        yield found[1]
        page.terminate()
        page.communicate(timeout=30)
    assert page.returncode == 0
    assert list(files.iterdir()) == []  # it leaves nothing behind
