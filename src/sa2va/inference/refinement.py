"""A found mask's second look: its box, a point and its logits given to SAM 2's original decoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from sa2va.inference.point_prompts import BOX_CORNERS, INSIDE
from sa2va.inference.work import DecodeMarks
from sa2va.masks.mask_ops import innermost
from sa2va.model.mask_decoder import FrameFeatures, MaskPrediction


async def refined(features: FrameFeatures, prediction: MaskPrediction, side: int) -> MaskPrediction:
    """A picture's masks as SAM 2's original decoder draws them, with its scores; empty masks stay as they are.

    Whether an object is there is for the decoder that has heard of it to say: ``presence`` stays.

    Args:
        side: of the grounding image.
    """
    logits = prediction.logits
    inside = (logits > 0).cpu().numpy()
    rows = [row for row, mask in enumerate(inside) if mask.any()]
    if not rows:
        return prediction
    cell = side / inside.shape[1]
    points = torch.tensor(np.stack([_box_and_point(inside[row]) for row in rows]) * cell, dtype=torch.float32)
    labels = torch.tensor([[*BOX_CORNERS, INSIDE]] * len(rows))
    again = await DecodeMarks(features, points, labels, logits_KHW=logits[rows], original=True)
    masks, scores = logits.clone(), prediction.iou.clone()
    masks[rows], scores[rows] = again.logits, again.iou
    return replace(prediction, candidates=masks[:, None], ious=scores[:, None], best=torch.zeros_like(prediction.best))


def _box_and_point(mask: np.ndarray) -> np.ndarray:
    """Corners of a mask's box and a pixel inside it, (3, 2) in (x, y)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = innermost(mask)
    return np.array([(columns[0], rows[0]), (columns[-1] + 1, rows[-1] + 1), (x + 0.5, y + 0.5)])
