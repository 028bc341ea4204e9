"""Frames as image encoders see them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch

from sa2va.model.mask_decoder import FrameFeatures


class EncodedFrames:
    """Frames as the model that finds objects sees them, and as the one that carries their masks does.

    Each image encoder runs when its features are first read, once for all of the frames. So where a propagator carries
    masks, most frames pass its encoder only.

    Args:
        find: encodes the frames for the model that finds objects; None for frames that are only followed.
        carry: the same for the one that carries masks; None if that is the same.
    """

    def __init__(self, find: Callable[[], FrameFeatures] | None, carry: Callable[[], FrameFeatures] | None = None):
        self._find, self._carry = find, carry

    @cached_property
    def found(self) -> FrameFeatures:
        """What objects are found in."""
        assert self._find is not None, "nothing is looked for in these frames"
        with torch.inference_mode():
            return self._find()

    @cached_property
    def carried(self) -> FrameFeatures:
        """What masks are carried through."""
        if self._carry is None:
            return self.found
        with torch.inference_mode():
            return self._carry()

    def __getitem__(self, row: int) -> EncodedFrames:
        """One of the frames."""
        return EncodedFrames(
            None if self._find is None else lambda: self.found[row],
            None if self._carry is None else lambda: self.carried[row],
        )
