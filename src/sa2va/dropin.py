"""The released remote code's ``predict_forward``, argument for argument and mask for mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from sa2va.asking import Asker, View
from sa2va.model.generation import GenerationOptions
from sa2va.processing.media import load_image
from sa2va.processing.regions import region_cells
from sa2va.tracker import VideoTracker

#: The released code shows the language model this many first frames, and prompts the objects on them.
FIRST_FRAMES = 5


@torch.inference_mode()
def predict_forward(
    asker: Asker,
    frames: Sequence[Image.Image],
    *,
    video: bool,
    text: str,
    past_text: str,
    mask_prompts: Sequence[np.ndarray] | None,
    max_new_tokens: int,
) -> dict[str, Any]:
    """See [`Sa2VA.predict_forward`]; ``frames`` are the picture or the video, none for words alone."""
    processor, model = asker.processor, asker.model
    images = [load_image(frame) for frame in frames]
    regions = None
    if mask_prompts is not None and processor.family.visual_prompts and processor.cells:
        masks = [np.asarray(mask).astype(bool) for mask in mask_prompts[0]]
        regions = [region_cells(mask, mask.shape, processor.cells) for mask in masks]
    view = asker.look(images[:FIRST_FRAMES], video=video, regions=regions) if images else View()
    ids = processor.released_prompt_ids(text, vision=view.vision, past_text=past_text, regions=regions)
    options = GenerationOptions(max_new_tokens=max_new_tokens)
    (written,) = model.generate([ids], view.visual, options=options, is_finished=asker.is_finished)
    states = written.seg_states
    if processor.family.prompt_seg_counts:
        states = torch.cat([written.prompt_seg_states, states])
    predicted: list[np.ndarray] = []
    if images and len(states):
        tracker = VideoTracker(model, mode="released")
        tracker.add_prompts(model.projection(states), [""] * len(states), frames=min(FIRST_FRAMES, len(images)))
        # Empty masks are masks too, here.
        size = (images[0].height, images[0].width)
        steps = [tracker.step_encoded(tracker.encode([np.asarray(image)]), size) for image in images]
        predicted = [np.stack([step.segments[row].mask.array for step in steps]) for row in range(len(states))]
    return {"prediction": processor.decode(written.token_ids), "prediction_masks": predicted}
