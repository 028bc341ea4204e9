"""Which media URLs a server fetches for its clients: patterns of ``--allow-url``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import SplitResult, urlsplit

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\*|\[[0-9a-f:.]+\]")


@dataclass(frozen=True)
class UrlRule:
    """A pattern such as ``https://images.example.com/*`` or ``https://*.example.com``.

    Scheme, host and port are compared as such, and only the path as a pattern, so that no URL smuggles an allowed host
    into its path or name. ``*.`` before a host stands for any names below it, ``*`` alone for any host.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> UrlRule:
        """Read a pattern; without a scheme it means https, without a path any.

        Raises:
            ValueError: it is none.
        """
        try:
            parts = urlsplit(text if "://" in text else f"https://{text}")
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host, port, parts = "", None, SplitResult("", "", "", "", "")
        host = f"[{host}]" if ":" in host else host
        plain = not (parts.username or parts.password or parts.query or parts.fragment)
        if parts.scheme not in _PORTS or not _HOST.fullmatch(host) or not plain:
            raise ValueError(
                f"an allowed URL is https://HOST/PATH, where HOST may begin with *. and PATH may hold *; got {text!r}"
            )
        return cls(parts.scheme, host.rstrip("."), port or _PORTS[parts.scheme], parts.path or "/*")

    def allows(self, url: str) -> bool:
        """Whether a URL is of this pattern. One with a user name in it never is."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port or _PORTS.get(parts.scheme)
        except ValueError:
            return False
        if "@" in parts.netloc or "\\" in url:
            return False
        host = f"[{host}]" if ":" in host else host
        if self.host == "*":
            named = bool(host)
        elif self.host.startswith("*."):
            named = host.endswith(self.host[1:])
        else:
            named = host == self.host
        return named and (parts.scheme, port) == (self.scheme, self.port) and self._leads_to(parts.path or "/")

    def _leads_to(self, path: str) -> bool:
        # Whoever serves the path may resolve dots in it.
        dotted = re.search(r"/(\.|%2e){1,2}(/|$)", path, re.IGNORECASE)
        return not dotted and fnmatchcase(path, self.path.replace("[", "[[]").replace("?", "[?]"))


def allowed_by(rules: Iterable[UrlRule], url: str) -> bool:
    """Whether any rule allows a URL."""
    return any(rule.allows(url) for rule in rules)
