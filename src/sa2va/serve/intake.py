"""Media that clients send, from text or bytes to something opened, within the server's limits."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from sa2va.media.download import download
from sa2va.media.frames import FrameSource
from sa2va.media.image import load_image
from sa2va.media.open import Picture, open_media
from sa2va.serve.settings import ServerSettings
from sa2va.serve.url_rules import allowed_by

Kind = Literal["image", "video"]

_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


@dataclass(frozen=True, repr=False)
class SentMedium:
    """A picture or video file as it was sent: bytes, and what the client called them."""

    kind: Kind
    content: bytes

    @cached_property
    def key(self) -> str:
        """Equal for equal content of the same kind."""
        return f"{self.kind}-{hashlib.sha256(self.content).hexdigest()}"


class Intake:
    """Reads and opens what clients send.

    Args:
        folder: where videos lie while they are open; FFmpeg reads files only.
    """

    def __init__(self, settings: ServerSettings, folder: Path):
        self._settings = settings
        self._folder = folder

    def read(self, kind: Kind, source: str | bytes) -> SentMedium:
        """A medium from the bytes of a file, base64 text, a data URL, or a URL that the server may fetch.

        Raises:
            ValueError: it is none of these, too large, or cannot be fetched.
        """
        if isinstance(source, bytes):
            return SentMedium(kind, source)
        if not (data := _DATA_URL.match(source)) and _SCHEME.match(source):
            return SentMedium(kind, self._fetch(kind, source))
        try:
            return SentMedium(kind, base64.b64decode(source[data.end() if data else 0 :], validate=True))
        except (binascii.Error, ValueError):
            raise ValueError(
                f"the {kind} is neither base64 text, a data URL (data:{kind}/...;base64,...), nor an https URL"
            ) from None

    def chosen(self, files: Mapping[str, bytes], *, image: str | None = None, video: str | None = None) -> SentMedium:
        """The one medium of a request, from a file of a form or from a field of that name.

        Raises:
            ValueError: there is none or more than one, or as [`read`].
        """
        fields: dict[Kind, str | None] = {"image": image, "video": video}
        given: list[tuple[Kind, str | bytes]] = [(kind, files[kind]) for kind in fields if kind in files]
        given.extend((kind, text) for kind, text in fields.items() if text is not None)
        if len(given) != 1:
            raise ValueError(f"send one picture as image, or where videos are taken one video; got {len(given)}")
        return self.read(*given[0])

    def _fetch(self, kind: Kind, url: str) -> bytes:
        rules = self._settings.allow_urls
        if not allowed_by(rules, url):
            raise ValueError(
                f"this server does not fetch this {kind} URL; send the {kind} as a data URL, or have the server "
                "started with --allow-url and a pattern for it"
            )
        return download(url, max_bytes=self._settings.max_body, allowed=partial(allowed_by, rules))

    def open(self, medium: SentMedium, *, limit: int) -> FrameSource:
        """Open a medium; whoever does so calls [`discard`] when done.

        Args:
            limit: of the frames of a video.

        Raises:
            ValueError: it cannot be decoded, or exceeds a limit.
        """
        if not medium.content:
            raise ValueError(f"the {medium.kind} is empty")
        if medium.kind == "image":
            return Picture(load_image(medium.content, max_pixels=self._settings.max_pixels))
        path = self._folder / f"video-{secrets.token_hex(8)}"
        path.write_bytes(medium.content)
        try:
            return self.open_file(path, limit=limit)
        except BaseException:
            path.unlink()
            raise

    def open_file(self, path: Path, *, limit: int, **sampling: Any) -> FrameSource:
        """Open a video file of the server's own; errors do not tell where it lies.

        Args:
            limit: of the frames that are taken from it. sampling: as for [`open_media`].
        """
        with nameless(path):
            video = open_media(path, max_pixels=self._settings.max_pixels, **sampling)
            frames = video.frame_count or 0
            if frames > limit:
                raise ValueError(
                    f"the video has {frames} frames, and this takes at most {limit}; cut it, take fewer frames a "
                    "second, or track it as a job (POST /v1/track)"
                )
            length = frames / float(video.fps) if video.fps else 0.0
            if length > self._settings.max_seconds:
                raise ValueError(
                    f"the video is {length:.0f} s long; at most {self._settings.max_seconds:.0f} s are taken"
                )
            return video

    def discard(self, source: FrameSource | None) -> None:
        """Close a medium that [`open`] opened, and remove its file."""
        if source is not None:
            source.close()
            if source.path is not None and source.path.parent == self._folder:
                source.path.unlink(missing_ok=True)


@contextmanager
def nameless(path: Path | None) -> Iterator[None]:
    """Errors for clients name "the video" and not where the server keeps it."""
    try:
        yield
    except ValueError as error:
        if path is None or str(path) not in str(error):
            raise
        raise ValueError(str(error).replace(str(path), "the video")) from error
