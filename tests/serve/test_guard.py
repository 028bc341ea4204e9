"""Who may ask, how much, and what nobody gets: keys, limits, URLs, queues, times."""

from __future__ import annotations

import http.server
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from live_server import PICTURE, Running, about_picture, clip, data_url
from PIL import Image

from sa2va.inference.engine import Pause
from sa2va.inference.scene import Scene
from sa2va.results.answer import Answer
from sa2va.serve.settings import ServerSettings
from sa2va.serve.url_rules import UrlRule

ASK = "What color is the car?"
KEY = "correct horse battery staple"


@pytest.fixture(scope="module")
def small(start: Callable[..., Any]) -> Iterator[Running]:
    """A server with a key and narrow limits."""
    with start(
        api_key=KEY,
        max_body=2**19,
        max_pixels=70_000,
        max_clip_frames=2,
        max_frames=3,
        max_seconds=0.3,
        max_tokens=5,
    ) as here:
        yield here


def error(reply: httpx2.Response) -> str:
    return reply.json()["error"]["message"]


def test_a_key_is_needed(small: Running) -> None:
    with httpx2.Client(base_url=small.url) as client:
        for authorization in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            for path in ("/v1/models", "/metrics", "/v1/jobs/x", "/nowhere"):
                reply = client.get(path, headers=authorization)
                assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").status_code == 200
    with pytest.raises(openai.AuthenticationError):
        small.openai.with_options(api_key="wrong").models.list()
    assert small.openai.models.list().data[0].id == "tiny"


def test_a_host_that_others_reach_needs_a_key(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "example.com"):
        with pytest.raises(ValueError, match="must show a key"):
            ServerSettings(tmp_path, host=host)
        assert not ServerSettings(tmp_path, host=host, api_key=KEY).is_local
    for host in ("127.0.0.1", "::1", "localhost"):
        assert ServerSettings(tmp_path, host=host).is_local
    for key in ("", " ", "ключ"):
        with pytest.raises(ValueError, match="ASCII"):
            ServerSettings(tmp_path, api_key=key)
    with pytest.raises(ValueError, match="max_body must be above 0"):
        ServerSettings(tmp_path, max_body=0)
    assert KEY not in repr(ServerSettings(tmp_path, api_key=KEY))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "attacker.example"}, 403),
        ({"Host": "attacker.example:8000", "Origin": "http://attacker.example:8000"}, 403),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
    ],
)
def test_pages_in_a_browser_do_not_reach_a_server_without_a_key(
    server: Running, headers: dict[str, str], status: int
) -> None:
    with httpx2.Client(base_url=server.url) as client:
        reply = client.get("/v1/models", headers=headers)
    assert reply.status_code == status
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_sizes_are_refused_before_anything_is_decoded(small: Running) -> None:
    bomb = io.BytesIO()
    Image.new("1", (8_000, 8_000)).save(bomb, "PNG")
    wide = io.BytesIO()
    Image.new("RGB", (300, 300)).save(wide, "PNG")
    with small.http as client:
        large = client.post("/v1/segment", files={"image": b"x" * 600_000}, data={"phrases": "x"})
        dripped = client.post(
            "/v1/chat/completions",
            content=(b"[" * 50_000 for _ in range(12)),
            headers={"content-type": "application/json"},
        )
        for reply in (large, dripped):
            assert reply.status_code == 413
            assert "larger than 0.5 MiB" in error(reply)
        for picture in (bomb, wide):
            reply = client.post("/v1/segment", files={"image": picture.getvalue()}, data={"phrases": "x"})
            assert reply.status_code == 400
            assert "more than max_pixels=70000" in error(reply) or "too large" in error(reply)
        reply = client.post("/v1/segment", files={"video": clip(3)}, data={"phrases": "x"})
        assert "3 frames, and this takes at most 2" in error(reply)
        reply = client.post("/v1/track", files={"video": clip(4)}, data={"phrases": "x"})
        assert "4 frames, and this takes at most 3" in error(reply)
        reply = client.post("/v1/track", files={"video": clip(3)}, data={"phrases": "x"})
        assert "at most 0 s are taken" in error(reply)
    said = small.openai.chat.completions.create(model="tiny", messages=about_picture(ASK), max_tokens=10_000)
    assert said.usage.completion_tokens <= 5


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """A site on this machine, which a server must not be led to."""

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "/to/" in self.path:
                self.send_response(302)
                self.send_header("Location", self.path.split("/to/")[1])
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(PICTURE if self.path.endswith(".png") else b"x" * 300_000)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{site.server_address[1]}"
        site.shutdown()


def test_urls_that_are_fetched_and_that_are_not(
    start: Callable[..., Any], web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = web.split(":")[1]
    rules = tuple(map(UrlRule.parse, (f"http://{web}/ok/*", f"http://localhost:{port}/*", "https://*.example.com")))

    def refusal(server: Running, url: str) -> str:
        with server.http as client:
            reply = client.post("/v1/segment", json={"image": url, "phrases": ["the yellow cloud"]})
        return error(reply) if reply.status_code == 400 else str(reply.status_code)

    with start(allow_urls=rules, max_body=200_000) as server:
        for url in (
            f"http://{web}/else/a.png",
            f"https://{web}/ok/a.png",
            f"http://{web}/ok/../else/a.png",
            f"http://user@{web}/ok/a.png",
            f"http://{web}\\@x/ok/a.png",
            f"http://evil.example/{web}/ok/a.png",
            "https://example.com.evil.example/a.png",
            "file:///etc/passwd",
            "ftp://images.example.com/a.png",
            "http://[::1",
        ):
            assert "does not fetch this image URL" in refusal(server, url), url
        # Allowed by name, but this machine's own: by address, by name.
        for url in (f"http://{web}/ok/a.png", f"http://localhost:{port}/a.png"):
            assert "is a private address" in refusal(server, url)
        # As if this machine were somewhere in the world.
        monkeypatch.setattr("sa2va.media.download._is_public", lambda _: True)
        assert refusal(server, f"http://{web}/ok/a.png") == "200"
        assert refusal(server, f"http://{web}/ok/to//ok/b.png") == "200"
        assert "may not be fetched" in refusal(server, f"http://{web}/ok/to//else/b.png")
        assert "is not allowed" in refusal(server, f"http://{web}/ok/to/file:///etc/passwd")
        assert "larger than 0 MiB" in refusal(server, f"http://{web}/ok/endless")
        # A public page that leads inside.
        public = iter([True])
        monkeypatch.setattr("sa2va.media.download._is_public", lambda _: next(public, False))
        assert "private address" in refusal(server, f"http://{web}/ok/to/http://localhost:{port}/a.png")
    with start() as closed:
        assert "does not fetch" in refusal(closed, "https://images.example.com/a.png")


def test_patterns_of_urls() -> None:
    assert UrlRule.parse("images.example.com") == UrlRule("https", "images.example.com", 443, "/*")
    for pattern, url, allowed in (
        ("https://a.example", "https://a.example/x?y=1", True),
        ("https://a.example", "https://A.EXAMPLE./x", True),
        ("https://a.example", "http://a.example/x", False),
        ("https://a.example", "https://a.example:444/x", False),
        ("http://a.example:8080/x/*.png", "http://a.example:8080/x/1.png", True),
        ("http://a.example:8080/x/*.png", "http://a.example:8080/x/%2e%2e/1.png", False),
        ("http://a.example/[a]", "http://a.example/a", False),
        ("https://*.example", "https://a.b.example", True),
        ("https://*.example", "https://example", False),
        ("https://*.example", "https://notexample", False),
        ("https://*", "https://anything.at/all", True),
        ("https://[2606:4700::1]", "https://[2606:4700::1]/a", True),
    ):
        assert UrlRule.parse(pattern).allows(url) is allowed, (pattern, url)
    for pattern in ("", "ftp://a", "https://", "https://a*b", "https://u:p@a", "https://a?b", "https://a:x"):
        with pytest.raises(ValueError, match="an allowed URL is"):
            UrlRule.parse(pattern)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A model whose passes take a hundredth of a second each, and which writes a word in each, until this is set."""
    end = threading.Event()

    def answer(self: Scene, *_: Any, on_text: Any = lambda _: None, **__: Any) -> Answer:
        async def steps() -> Answer:
            while not end.is_set():
                on_text("word ")
                time.sleep(0.01)
                await Pause()
            return Answer("words", "words")

        return self._engine.run(steps())

    for name in ("chat", "segment", "describe"):
        monkeypatch.setattr(Scene, name, answer)
    return end


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_full_queue_says_when_to_come_again(start: Callable[..., Any], slow: threading.Event) -> None:
    request = {"model": "tiny", "messages": about_picture(ASK)}
    replies: list[httpx2.Response] = []
    with start(at_once=2, max_waiting=1) as server:

        def ask() -> None:
            with server.http as client:
                replies.append(client.post("/v1/chat/completions", json=request))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        eventually(lambda: server.metric("sa2va_queue") == 3)
        assert server.metric("sa2va_rows") == 2
        with pytest.raises(openai.RateLimitError) as caught:
            server.openai.chat.completions.create(**request)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        assert caught.value.type == "rate_limit_error"
        slow.set()
        for thread in threads:
            thread.join()
    assert [reply.status_code for reply in replies] == [200] * 3


def test_what_takes_too_long_is_ended(start: Callable[..., Any], slow: threading.Event) -> None:
    request = {"model": "tiny", "messages": about_picture(ASK)}
    with start(seconds=0.3) as server, server.http as client:
        for stream in (False, True):
            reply = client.post("/v1/chat/completions", json={**request, "stream": stream})
            assert reply.status_code == 504 or (stream and "took too long" in reply.text)
        eventually(lambda: server.metric("sa2va_queue") == 0)  # the threads have ended too
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as half:
            head = "POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            half.sendall(f"{head}Content-Length: 99\r\n\r\n{{".encode())
            half.settimeout(20)
            assert b" 408 " in half.recv(4096)  # for a body that never comes


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_row(server: Running, slow: threading.Event, stream: bool) -> None:
    request = {"model": "tiny", "messages": about_picture(ASK), "stream": stream}
    with server.http as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=request) as reply:
                lines = reply.iter_lines()
                assert next(lines)
                assert server.metric("sa2va_rows") == 1
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.post("/v1/chat/completions", json=request, timeout=0.5)
    eventually(lambda: server.metric("sa2va_rows") == 0 and server.metric("sa2va_queue") == 0)


@pytest.mark.parametrize("asked", [("segment", {"phrases": ["a", "b"]}), ("describe", {"regions": [[0, 0, 9, 9]]})])
def test_a_client_that_goes_frees_all_its_rows(server: Running, slow: threading.Event, asked: Any) -> None:
    path, body = asked
    with server.http as client, pytest.raises(httpx2.ReadTimeout):
        client.post(f"/v1/{path}", json={"image": data_url(PICTURE), **body}, timeout=0.5)
    eventually(lambda: server.metric("sa2va_rows") == 0 and server.metric("sa2va_queue") == 0)


def test_an_error_of_ours_tells_its_number_and_nothing_else(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Answer:
        raise RuntimeError("secret")

    monkeypatch.setattr(Scene, "chat", broken)
    with pytest.raises(openai.InternalServerError) as caught:
        server.openai.chat.completions.create(model="tiny", messages=about_picture(ASK))
    assert caught.value.request_id in caught.value.response.text
    assert "secret" not in caught.value.response.text
    assert caught.value.request_id in caplog.text
    with server.http as client:
        assert client.request("BREW", "/nowhere").status_code == 404
        assert "BREW" not in client.get("/metrics").text
        long = client.post("/v1/segment", json={"image": "", "phrases": ["x"], "return": "y", "video": "z" * 9999})
        assert len(long.text) < 2000
        assert client.get("/nowhere").json()["error"]["type"] == "not_found_error"
        assert client.put("/v1/models").status_code == 405


def test_an_error_in_a_stream_is_told_in_it(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Scene, question: str, *, history: Any = (), on_text: Any, **_: Any) -> Answer:
        on_text("It ")
        on_text("is ")
        raise RuntimeError("secret")

    monkeypatch.setattr(Scene, "chat", broken)
    with pytest.raises(openai.APIError, match="internal error") as caught:
        list(server.openai.chat.completions.create(model="tiny", messages=about_picture(ASK), stream=True))
    assert "secret" not in str(caught.value)


def test_a_server_that_ends_lets_answers_finish_or_tells_them(start: Callable[..., Any], slow: threading.Event) -> None:
    request = {"model": "tiny", "messages": about_picture(ASK)}
    replies: list[Any] = []
    with start(grace=0.5) as server:

        def ask(stream: bool) -> None:
            with server.http as client:
                replies.append(client.post("/v1/chat/completions", json={**request, "stream": stream}))

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for thread in threads:
            thread.start()
        eventually(lambda: server.metric("sa2va_rows") == 2)
    for thread in threads:
        thread.join()
    assert sorted(reply.status_code for reply in replies) == [200, 503]
    assert all("shutting down" in reply.text for reply in replies)


def test_bodies_together_are_bounded(start: Callable[..., Any]) -> None:
    with start(max_held=len(data_url(PICTURE)) // 2) as server, server.http as client:
        request = {"model": "tiny", "messages": about_picture(ASK)}
        for path, body in (("segment", {"image": data_url(PICTURE), "phrases": ["x"]}), ("chat/completions", request)):
            reply = client.post(f"/v1/{path}", json=body)
            assert (reply.status_code, reply.headers["retry-after"]) == (429, "5")
        assert client.post("/v1/segment", json={"phrases": ["x"]}).status_code == 400  # nothing is held any more
