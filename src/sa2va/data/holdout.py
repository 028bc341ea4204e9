"""Hold-out split of own data, for validation on samples that training never sees.

Whether a picture or clip is held out depends on its name alone: training and evaluation agree without a file that says
so, and data that are added later move nothing.
"""

from __future__ import annotations

import hashlib
from typing import Protocol, runtime_checkable

from sa2va.data.mixture import Source
from sa2va.data.sample import Sample


@runtime_checkable
class NamedSource(Protocol):
    """A source that can name the image or clip of a sample without decoding it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def key(self, index: int) -> str:
        """Name of the image or clip of a sample; all its views share it."""
        ...


def is_held_out(key: str, share: float) -> bool:
    """Whether an image or clip is in the held-out fraction (0..1), by its name."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


class HoldOut:
    """The held-out samples of a source, or all others.

    Args:
        source: the samples. share: of its pictures or clips that is held out, above 0 and below 1.
        held_out: which side this is.

    Raises:
        ValueError: the share is out of range, the source cannot tell its pictures apart, or this side is empty.
    """

    def __init__(self, source: Source, share: float, *, held_out: bool):
        if not 0 < share < 1:
            raise ValueError(f"the share that is held out must be above 0 and below 1, e.g. 0.2; got {share:g}")
        if not isinstance(source, NamedSource):
            raise ValueError(f"{type(source).__name__} does not say which picture a sample shows, so none is held out")
        self.source = source
        keys = [source.key(index) for index in range(len(source))]
        chosen = {key for key in set(keys) if is_held_out(key, share) == held_out}
        self._indices = [index for index, key in enumerate(keys) if key in chosen]
        if not chosen:
            kept = "held out" if held_out else "left to train on"
            raise ValueError(
                f"of {len(set(keys))} pictures or clips none is {kept} at a share of {share:g}; take another share"
            )

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[self._indices[index]]

    def key(self, index: int) -> str:
        """See [`NamedSource`]."""
        return self.source.key(self._indices[index])


class OneView:
    """The first view of every picture or clip of a source: enough to look at what it shows once."""

    def __init__(self, source: NamedSource):
        self.source = source
        first: dict[str, int] = {}
        for index in range(len(source)):
            first.setdefault(source.key(index), index)
        self._indices = list(first.values())

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[self._indices[index]]
