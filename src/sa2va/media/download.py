"""Download a picture or video, bounded in size and time whatever the server does."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

_MAX_BYTES = 64 << 20
_MAX_SECONDS = 30.0
_STALL_SECONDS = 10.0
#: IPv6 addresses that a gateway translates: the last four bytes are the IPv4 address that they lead to.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def download(
    url: str,
    *,
    max_bytes: int = _MAX_BYTES,
    allowed: Callable[[str], bool] | None = None,
    authorization: str | None = None,
) -> bytes:
    """The body of an http(s) URL. One deadline covers names, connecting, headers, redirects and the body.

    Redirects stay within http(s), and none leads from a public address to a private one (this machine, its network).

    Args:
        max_bytes: refuse a longer body.
        allowed: for URLs of others than the user: says of each URL on the way, redirects included, whether it may be
            fetched. Names are then resolved once, all their addresses must be public, and no proxy is used.
        authorization: the header of that name, for the host of the URL and none that it redirects to.

    Raises:
        ValueError: another scheme, no answer, an error status, a forbidden URL or address, or too large or too slow.
    """
    scheme = url.split(":", 1)[0].lower()
    if scheme not in ("http", "https"):
        raise ValueError(f"only http and https URLs are read, not {scheme!r}: {url[:80]}")
    fetch = _Fetch(url, max_bytes, allowed, authorization)
    # In a thread, because a server that sends a byte now and then never lets a socket's own timeout run out.
    worker = threading.Thread(target=fetch.run, daemon=True, name="sa2va-download")
    worker.start()
    worker.join(_MAX_SECONDS)
    if worker.is_alive():
        fetch.stop()
        raise ValueError(f"cannot fetch {url}: it takes longer than {_MAX_SECONDS:.0f} s")
    if fetch.error is not None:
        raise ValueError(f"cannot fetch {url}: {fetch.error}") from fetch.error
    return bytes(fetch.body)


class _Fetch:
    """One download, which another thread may stop."""

    def __init__(
        self, url: str, max_bytes: int, allowed: Callable[[str], bool] | None, authorization: str | None
    ) -> None:
        self.body = bytearray()
        self.error: Exception | None = None
        self.allowed = allowed
        self._url = url
        self._max_bytes = max_bytes
        self._authorization = authorization
        self._stopped = False
        self._public: bool | None = None
        self._socket: socket.socket | None = None

    def run(self) -> None:
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(None if self.allowed is None else {}),
            _Connections(self),
            _Redirects(self),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            opener.add_handler(handler)
        request = urllib.request.Request(self._url, headers={"User-Agent": "sa2va"})
        if self._authorization is not None:
            request.add_unredirected_header("Authorization", self._authorization)
        try:
            self.check(self._url)
            with opener.open(request, timeout=_STALL_SECONDS) as reply:
                while not self._stopped and (chunk := reply.read1(1 << 16)):
                    self.body += chunk
                    if len(self.body) > self._max_bytes:
                        raise ValueError(f"larger than {self._max_bytes >> 20} MiB")
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.error = error
            if isinstance(error, urllib.error.HTTPError):
                error.close()
        finally:
            self._socket = None

    def check(self, url: str) -> None:
        """Refuse a URL that whoever asked for it may not have fetched."""
        if self.allowed is not None and not self.allowed(url):
            raise ConnectionRefusedError(f"{url} may not be fetched")

    def connected(self, connection: http.client.HTTPConnection) -> None:
        """Look at where a connection leads, before anything is sent."""
        self._socket = connection.sock
        if self._stopped:
            self.stop()
        public = _is_public(connection.sock.getpeername()[0])
        if self._public and not public:
            connection.close()
            raise ConnectionRefusedError(f"it redirects to {connection.host}, a private address")
        self._public = public

    def stop(self) -> None:
        """Make the thread end soon, wherever it waits."""
        self._stopped = True
        if (connected := self._socket) is not None:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)


class _Watched(http.client.HTTPConnection):
    """A connection that shows its download where it leads, before anything is sent."""

    def __init__(self, fetch: _Fetch, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._fetch = fetch
        if fetch.allowed is not None:
            self._create_connection = _connect_to_public

    def connect(self) -> None:
        super().connect()
        self._fetch.connected(self)


class _SecureWatched(_Watched, http.client.HTTPSConnection):
    """The same over TLS."""


class _Connections(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens both kinds of connection for one download."""

    def __init__(self, fetch: _Fetch) -> None:
        super().__init__()
        self._fetch = fetch

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_Watched, self._fetch), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_SecureWatched, self._fetch), req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, fetch: _Fetch) -> None:
        self._fetch = fetch

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()  # the body of a redirect would be read to its end, however long it is
        self._fetch.check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _connect_to_public(address: tuple[str, int], *rest: Any) -> socket.socket:
    """Connect to a host whose addresses are all public: to one of those that were looked at, not to its name again."""
    host, port = address
    found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not all(_is_public(str(one)) for one in found):
        raise ConnectionRefusedError(f"{host} is a private address, or has one")
    failed: OSError = ConnectionRefusedError(f"{host} has no address")
    for one in found:
        try:
            return socket.create_connection((str(one), port), *rest)
        except OSError as error:
            failed = error
    raise failed


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(ip.packed[-4:]) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or translated or ip
    return ip.is_global and not ip.is_multicast
