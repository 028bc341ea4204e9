"""Which of the objects that are followed a new mask prompt shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: IoU from which two masks are of one object.
SAME_IOU = 0.3
#: Share of an object's largest mask from which a mask is no mere speck.
_SPECK = 0.1
#: Weight of looking alike where nothing else tells: all of it counts less than any overlap.
_ALIKE = 1e-4


@dataclass(frozen=True)
class Sighting:
    """N objects on the F key frames of a window.

    Attributes:
        phrases: of each object. masks: bool (N, F, s, s). pointers: (N, C), SAM 2's, for what they look like.
    """

    phrases: Sequence[str]
    masks: Tensor
    pointers: Tensor


def same_objects(new: Sighting, old: Sighting) -> dict[int, int]:
    """Row of the known object that each new one is, for those that are one.

    Objects of one phrase are the same if their masks overlap where both are in sight. If the old one is out of sight on
    most frames that show the new one, it has left, and come back as the new one. Those that are in sight in two places
    are two. Of all ways to pair them the one with the largest sum of overlaps is taken, and of these the one whose
    pointers agree best.
    """
    import networkx  # takes long to import

    mine, theirs = new.masks.flatten(2).float(), old.masks.flatten(2).float()
    shared = torch.einsum("nfp,ofp->nof", mine, theirs)
    union = mine.sum(2)[:, None] + theirs.sum(2)[None] - shared
    seen, known_seen = _in_sight(mine), _in_sight(theirs)
    both = seen[:, None] & known_seen[None]
    overlap = ((shared / union.clamp(min=1) * both).sum(2) / both.sum(2).clamp(min=1)).tolist()
    gone = (2 * both.sum(2) < seen.sum(1)[:, None]).tolist()
    alike = F.cosine_similarity(new.pointers[:, None].float(), old.pointers[None].float(), dim=2).tolist()
    pairs = networkx.Graph()
    for row, phrase in enumerate(new.phrases):
        for known, other in enumerate(old.phrases):
            if phrase == other and (gone[row][known] or overlap[row][known] >= SAME_IOU):
                weight = overlap[row][known] + _ALIKE * (2 + alike[row][known])
                pairs.add_edge(("new", row), ("old", known), weight=weight)
    chosen = (dict(pair) for pair in networkx.max_weight_matching(pairs))
    return {pair["new"]: pair["old"] for pair in chosen}


def _in_sight(masks_NFP: Tensor) -> Tensor:
    """On which frames objects are seen, bool (N, F): specks that are left of one that is gone do not count."""
    areas = masks_NFP.sum(2)
    return areas > _SPECK * areas.amax(1, keepdim=True)
