"""Where the medium of a result can be had again when the result is shown, without keeping any pixels."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from sa2va.media.camera import CAMERA_PREFIX
from sa2va.media.frames import FrameSource
from sa2va.media.image import is_url
from sa2va.media.open import MediaSource, open_media


class Origin:
    """A medium that may be opened again: a local file by its path, an object of the caller as long as they hold it.

    It costs a few hundred bytes. Neither downloads nor cameras are opened again, and a copy (or a pickle) only knows
    files. What was changed since is opened as it is now.

    Args:
        media: as for [`open_media`]. sampling: its keywords.
    """

    def __init__(self, media: MediaSource | None, sampling: Mapping[str, Any]) -> None:
        self._sampling = dict(sampling)
        self._path = os.path.abspath(str(media)) if _is_local(media) else None
        self._object: weakref.ref[Any] | None = None
        if self._path is None:
            try:
                self._object = weakref.ref(media)
            except TypeError:  # bytes, lists and strings
                return

    def pictures(self, indices: list[int], size: tuple[int, int]) -> list[np.ndarray] | None:
        """Frames as uint8 RGB (H, W, 3); None where the medium is gone, or is another than it was.

        Args:
            indices: of the frames; 0 is a picture. size: (height, width) that they had.
        """
        try:
            source = self._open()
            return source.read(indices) if source.size == size else None
        except (ValueError, OSError):
            return None

    def _open(self) -> FrameSource:
        media = self._path if self._object is None else self._object()
        if media is None:
            raise ValueError("the medium is gone")
        return open_media(media, **self._sampling)

    def __reduce__(self) -> tuple[Any, ...]:
        return Origin, (self._path, self._sampling)


def _is_local(media: Any) -> bool:
    if isinstance(media, str):
        return not (is_url(media) or media.startswith(CAMERA_PREFIX))
    return isinstance(media, os.PathLike)
