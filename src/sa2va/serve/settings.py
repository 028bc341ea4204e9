"""What a server is told at its start: where it listens, who may ask, and how much it takes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from sa2va.serve.url_rules import UrlRule

_LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server. The limits hold before anything is decoded.

    Attributes:
        folder: where jobs, their results and temporary files lie; one server at a time uses it.
        host, port: where to listen.
        api_key: what clients must show; None for no key, which only a local host allows.
        allow_urls: media URLs that may be fetched; none by default.
        label_studio: URL of the Label Studio whose projects are answered; None for none.
        label_studio_key: of a user of it, to read the media of tasks.
        max_body: bytes of a request, and of a medium that is fetched.
        max_held: bytes of all requests that are being read or answered.
        max_pixels: of a picture or a frame (height * width).
        max_clip_frames: of a video that is answered at once, whose masks are kept in memory.
        max_frames, max_seconds: of a video that is tracked as a job.
        max_tokens: of an answer.
        max_phrases: of a request, regions too. max_characters: of the text of a request.
        at_once: requests that are answered at the same time. max_waiting: further ones that may wait.
        max_jobs: tracking jobs that may wait.
        seconds: for a request, its waiting included. grace: seconds that running answers get at the end.
        scene_bytes: memory of the scenes that are kept open.
        keep_hours: how long results of jobs are kept.

    Raises:
        ValueError: a limit is not positive, or the host is reachable from elsewhere and there is no key.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    allow_urls: tuple[UrlRule, ...] = ()
    label_studio: str | None = None
    label_studio_key: str | None = field(default=None, repr=False)
    max_body: int = 64 << 20
    max_held: int = 1 << 30
    max_pixels: int = 50_000_000
    max_clip_frames: int = 256
    max_frames: int = 20_000
    max_seconds: float = 1800.0
    max_tokens: int = 2048
    max_phrases: int = 64
    max_characters: int = 32_000
    at_once: int = 64
    max_waiting: int = 256
    max_jobs: int = 32
    seconds: float = 120.0
    grace: float = 10.0
    scene_bytes: int = 1 << 30
    keep_hours: float = 24.0

    def __post_init__(self) -> None:
        if self.api_key is not None and (not self.api_key.strip() or not self.api_key.isascii()):
            raise ValueError("the API key is ASCII text that is not blank; leave it out for none")
        if not self.is_local and self.api_key is None:
            raise ValueError(
                f"{self.host} can be reached from elsewhere, so clients must show a key: set SA2VA_API_KEY or "
                "--api-key, or listen on 127.0.0.1"
            )
        for name, value in vars(self).items():
            may_be_zero = name in ("port", "max_waiting", "grace", "scene_bytes")
            if isinstance(value, int | float) and (value < 0 or (value == 0 and not may_be_zero)):
                raise ValueError(f"{name} must be above 0; got {value}")

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine reach the host."""
        return is_local(self.host)


def is_local(host: str) -> bool:
    """Whether a host, by name or address, is this machine's loopback."""
    if host.lower() in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
