"""A page with the packaged model, served once for all tests of the demo."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sa2va import Sa2VA
from sa2va.demo.local_backend import LocalBackend
from sa2va.demo.page import serving


@pytest.fixture(scope="session")
def backend() -> LocalBackend:
    """The packaged model, as the page sees it."""
    return LocalBackend(Sa2VA.from_pretrained("tiny", device="cpu"), "tiny", tiny=True)


@pytest.fixture(scope="session")
def address(backend: LocalBackend) -> Iterator[str]:
    """Where the page is served. Tests that use it ignore warnings: those of the libraries under it are no errors."""
    with serving(backend, port=None, mcp=True) as url:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        yield url
    assert not folder.exists(), "it left files behind"
