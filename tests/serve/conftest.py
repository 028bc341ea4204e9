"""One server for all of these tests: `tiny` behind a real port, in a thread of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from live_server import Running

from sa2va import Sa2VA
from sa2va.serve.server import Server, build_app
from sa2va.serve.settings import ServerSettings


@pytest.fixture(scope="session")
def start(tiny: Sa2VA, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A context with a server of given settings."""

    @contextmanager
    def running(**settings: Any) -> Iterator[Running]:
        given = {"folder": tmp_path_factory.mktemp("serve"), "grace": 1.0, **settings}
        chosen = ServerSettings(**given)
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
            here = Running(f"http://127.0.0.1:{listening.getsockname()[1]}", chosen.folder)
            here.key = chosen.api_key or "none"
            server = Server(build_app(tiny, "tiny", chosen, here.notes.append), chosen)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            try:
                yield here
            finally:
                here.openai.close()
                server.should_exit = True
                thread.join(30)
                assert not thread.is_alive()

    return running


@pytest.fixture(scope="session")
def server(start: Callable[..., Any]) -> Iterator[Running]:
    with start() as here:
        yield here
