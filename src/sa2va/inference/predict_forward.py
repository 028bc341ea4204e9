"""The released remote code's ``predict_forward``, argument for argument and mask for mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from sa2va.inference.engine import Engine, Pause, Write
from sa2va.inference.tracker import VideoTracker
from sa2va.inference.vlm import EncodedMedia
from sa2va.media.open import ImageSource, MediaSource, load_image, open_media
from sa2va.model.generation import GenerationOptions
from sa2va.processing.conversation import check_text
from sa2va.processing.regions import sampled_cells
from sa2va.processing.requests import IMAGE_MARK
from sa2va.runtime import logger

#: The released code shows the language model this many first frames, and prompts the objects on them.
FIRST_FRAMES = 5


async def predict_forward(
    engine: Engine,
    *,
    image: ImageSource | None,
    video: MediaSource | None,
    text: Any,
    past_text: str | None,
    mask_prompts: Any,
    max_new_tokens: int,
) -> dict[str, Any]:
    """See [`Sa2VA.predict_forward`]."""
    processor, model = engine.processor, engine.model
    check_text(text, "text=")
    past_text = past_text or ""
    if image is None and video is None and IMAGE_MARK in text:
        logger.warning("the text has %s but no picture came with it; the answer is about words alone", IMAGE_MARK)
    first = list(islice(_pictures(image, video), FIRST_FRAMES))
    regions = None
    if first and mask_prompts is not None and processor.cells:
        regions = [sampled_cells(mask, processor.cells) for mask in _masks(mask_prompts)]
    media = EncodedMedia.of(processor, first, video=video is not None) if first else EncodedMedia()
    if regions:
        media = await media.with_regions(regions)
    prompt = processor.released_prompt(text, vision=media.vision, past_text=past_text, regions=regions)
    ids = processor.released_prompt_ids(text, vision=media.vision, past_text=past_text, regions=regions)
    options = GenerationOptions(max_new_tokens=max_new_tokens)
    (written,) = await Write([ids], options, visual=await media.encoded(), cache=media.cache)
    states = written.seg_states
    if processor.family.prompt_seg_counts:
        states = torch.cat([written.prompt_seg_states, states])
    predicted: list[np.ndarray] = []
    if first and len(states):
        tracker = VideoTracker(model, mode="released")
        tracker.add_prompts(model.projection(states), [""] * len(states), frames=len(first))
        # Empty masks are masks too, here.
        size = (first[0].height, first[0].width)
        frames = (tracker.encode([np.asarray(picture)]) for picture in _pictures(image, video))
        steps = []
        for frame in frames:
            steps.append(tracker.step_encoded(frame, size))
            await Pause()
        predicted = [np.stack([step.segments[row].mask.array for step in steps]) for row in range(len(states))]
    prediction = processor.decode(written.token_ids)
    return {
        "prediction": prediction,
        "prediction_masks": predicted,
        "past_text": processor.released_past_text(prompt, prediction),
    }


def _pictures(image: ImageSource | None, video: MediaSource | None) -> Iterator[Image.Image]:
    """The frames of the video, else the picture, else nothing. Frames of a list may differ in size."""
    if video is None:
        yield from [] if image is None else [load_image(image)]
    elif isinstance(video, list | tuple):
        if not video:
            raise ValueError("video= needs at least one frame; the list is empty (a pattern without matches?)")
        yield from map(load_image, video)
    else:
        yield from (Image.fromarray(frame.pixels) for frame in open_media(video))


def _masks(mask_prompts: Any) -> Sequence[np.ndarray]:
    """bool masks (H, W): of the one list of them that the released code reads, or of an array (N, H, W)."""
    try:
        masks = np.asarray(mask_prompts if np.ndim(mask_prompts) == 3 else mask_prompts[0])
        if masks.ndim != 3 or not masks.size:
            raise ValueError(f"an array of shape {masks.shape}")
    except (TypeError, KeyError, IndexError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"mask_prompts is a list that holds one array (N, H, W), or that array; got {type(mask_prompts)}: {error}"
        ) from error
    return list(masks.astype(bool))
