"""SaSaSa2VA's view of a video: a hundred frames as twenty pictures, and one ``[SEG]`` for each tenth of it.

A video is cut into ten clips of ten frames. The first frame of a clip is shown whole, the other nine as one 3 x 3
picture, so the language model sees a hundred frames at the price of twenty. It answers with ten ``[SEG]`` tokens, and
each decodes the frames of its clip. Only checkpoints trained this way answer so.

Source: SaSaSa2VA (arXiv 2509.16972). Two divergences from its code: frames that ``q_frame`` did not choose follow the
nearest chosen one (the code prompts frames 0..99 whatever was chosen), and averaging over selection modes, which the
paper reports and the code lacks, is the mean of mask probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sa2va.inference.engine import Engine
from sa2va.inference.options import MaskPostprocessing
from sa2va.inference.propagation import frame_count
from sa2va.inference.video_result import Track
from sa2va.inference.vlm import EncodedMedia, segmentation_request, unfound
from sa2va.masks.mask import Segment, Size
from sa2va.media.frames import FrameSource
from sa2va.media.open import Origin
from sa2va.model.finite import not_finite
from sa2va.model.generation import GenerationOptions
from sa2va.model.mask_decoder import (
    FrameFeatures,
    MaskPrediction,
    decode_masks,
    grounding_side,
    language_tokens,
    upsample_logits,
)
from sa2va.model.memory import MemoryBank, encode_memory, remember, track_frame
from sa2va.model.network import Sa2VANetwork
from sa2va.processing.processor import squashed_frames
from sa2va.results.answer import Frame

Selection = Literal["uniform", "uniform_plus", "wrap_around", "wrap_around_plus", "q_frame"]
SELECTIONS: tuple[Selection, ...] = ("uniform", "uniform_plus", "wrap_around", "wrap_around_plus", "q_frame")
CLIPS = 10
GRID = 3
CLIP_FRAMES = GRID * GRID + 1
SHOWN = CLIPS * CLIP_FRAMES
#: Logit of every pixel of an object that is thought to be absent.
ABSENT_LOGIT = -1024.0


def select_frames(selection: Selection, count: int, chosen: Sequence[int] | None = None) -> list[int]:
    """The hundred frames that are shown, in order; short videos repeat some.

    Args:
        count: frames of the video. chosen: the hundred of ``"q_frame"``, sorted.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {SELECTIONS}; got {selection!r}")
    if selection == "q_frame":
        frames = sorted(int(index) for index in chosen or ())
        if len(frames) != SHOWN or frames[0] < 0 or frames[-1] >= count:
            raise ValueError(f"q_frame needs {SHOWN} frame indices below {count}; got {len(frames)}")
        return frames
    wraps = selection == "wrap_around" or (selection == "wrap_around_plus" and count <= SHOWN)
    if wraps:
        return sorted(index % count for index in range(SHOWN))
    return [index * count // SHOWN for index in range(SHOWN)]


def clips_of_frames(selection: Selection, count: int, shown: Sequence[int]) -> list[tuple[int, ...]]:
    """For every frame of the video, the clips whose prompts decode it; none means it is carried there by memory."""
    by_frame: dict[int, list[int]] = {}
    for position, index in enumerate(shown):
        by_frame.setdefault(index, []).append(position // CLIP_FRAMES)
    tenths = [(index * CLIPS // count,) for index in range(count)]
    if selection == "q_frame":
        order = sorted(by_frame)
        return [tuple(by_frame[_nearest(order, index)]) for index in range(count)]
    if selection == "uniform_plus" and count < SHOWN:
        return [tuple(by_frame[index]) for index in range(count)]
    if selection in ("wrap_around", "wrap_around_plus") and count <= SHOWN:
        return [(by_frame[index][0],) for index in range(count)]
    if selection == "wrap_around":
        return [(index // CLIP_FRAMES,) if index < SHOWN else () for index in range(count)]
    return tenths


def clip_pictures(frames: Sequence[np.ndarray]) -> list[Image.Image]:
    """Twenty pictures of a hundred frames (uint8 (H, W, 3)): per clip its first frame, then the others as a grid."""
    if len(frames) != SHOWN or len({frame.shape for frame in frames}) != 1:
        raise ValueError(
            f"expected {SHOWN} frames of one size; got {len(frames)} of {len({f.shape for f in frames})} sizes"
        )
    pictures = []
    for first in range(0, SHOWN, CLIP_FRAMES):
        key, *rest = frames[first : first + CLIP_FRAMES]
        rows = [np.concatenate(rest[row : row + GRID], axis=1) for row in range(0, GRID * GRID, GRID)]
        pictures += [Image.fromarray(key), Image.fromarray(np.concatenate(rows))]
    return pictures


def ten_prompts(prompts_NC: Tensor) -> Tensor:
    """Exactly ten mask prompts (10, C) from the ``[SEG]`` tokens of an answer: cut, or the last repeated."""
    if not len(prompts_NC):
        raise ValueError("an answer without [SEG] has no prompts")
    rows = torch.arange(CLIPS, device=prompts_NC.device).clamp(max=len(prompts_NC) - 1)
    return prompts_NC[rows]


@dataclass
class _View:
    """One selection mode's prompts, and the memory it needs where frames are carried."""

    prompts_KTC: Tensor  # (objects, ten clips, C)
    clips: list[tuple[int, ...]]
    bank: MemoryBank


def track(
    engine: Engine,
    source: FrameSource,
    phrases: Sequence[str],
    selections: Sequence[Selection],
    options: GenerationOptions,
    output: MaskPostprocessing,
    origin: Origin | None = None,
) -> Track:
    """Follow phrases with one ``[SEG]`` per clip, averaged over one or several ways to select the frames.

    A phrase is followed where every selection found it.
    """
    count = frame_count(source)
    requests = [segmentation_request(phrase, video=True) for phrase in phrases]
    outputs, plans, reasons = [], [], {}
    for selection in selections:
        shown = select_frames(selection, count)
        media = EncodedMedia.of(engine.processor, clip_pictures(source.read(shown)), video=True)
        outputs.append(engine.run(media.ask(engine, requests, options)))
        plans.append(clips_of_frames(selection, count, shown))
        reasons |= unfound(engine.processor, phrases, outputs[-1])
    rows = [row for row, phrase in enumerate(phrases) if phrase not in reasons]
    frames: Iterator[tuple[Frame, np.ndarray]]
    if rows:
        prompts = [torch.stack([ten_prompts(view[row].prompts_KC) for row in rows]) for view in outputs]
        named = [phrases[row] for row in rows]
        frames = follow_clips(engine.model, source, named, prompts, plans, output=output)
    else:
        frames = ((Frame(decoded.index, decoded.time, source.size), decoded.pixels) for decoded in source)
    return Track(
        frames,
        source=source.path,
        fps=source.fps,
        size=source.size,
        total=count,
        reasons=reasons,
        pixels=lambda: (decoded.pixels for decoded in source),
        origin=origin,
    )


def follow_clips(
    model: Sa2VANetwork,
    source: FrameSource,
    phrases: Sequence[str],
    prompts: Sequence[Tensor],
    clips: Sequence[list[tuple[int, ...]]],
    *,
    output: MaskPostprocessing,
) -> Iterator[tuple[Frame, np.ndarray]]:
    """Every frame of a source with its pixels, decoded from the prompts of its clips.

    Args:
        phrases: of K objects.
        prompts: per selection mode (K, 10, C). clips: per selection mode the clips of every frame.
        output: how probabilities, averaged over the modes, become masks.
    """
    views = [_View(own, plan, MemoryBank()) for own, plan in zip(prompts, clips, strict=True)]
    for decoded in source:
        pixels, size = decoded.pixels, source.size
        with torch.inference_mode():
            images = [Image.fromarray(np.ascontiguousarray(pixels))]
            features = model.encode_frames(squashed_frames(images, grounding_side(model.sam2)))
            predictions = [_predict(model, view, features, decoded.index) for view in views]
            segments = _averaged(model, predictions, phrases, size, output)
        yield Frame(decoded.index, decoded.time, size, segments), pixels


def _predict(model: Sa2VANetwork, view: _View, features: FrameFeatures, index: int) -> MaskPrediction:
    """The K objects on one frame under one selection mode."""
    sam2, decoder = model.sam2, model.sam2.mask_decoder
    if not view.clips[index]:
        prediction = track_frame(sam2, decoder, view.bank, features, index)
        view.bank = remember(sam2, view.bank, features, prediction, index)
        return _blanked(prediction)
    per_clip = [
        _blanked(decode_masks(sam2, decoder, features, language_tokens(sam2, view.prompts_KTC[:, clip])))
        for clip in view.clips[index]
    ]
    prediction = per_clip[0] if len(per_clip) == 1 else _mean(per_clip)
    if not all(view.clips):
        view.bank = view.bank.add_prompted(encode_memory(sam2, features, prediction, index))
    return prediction


def _blanked(prediction: MaskPrediction) -> MaskPrediction:
    """These checkpoints were trained with the mask of an absent object blanked, unlike Sa2VA's."""
    present = (prediction.presence > 0)[:, None, None, None]
    candidates = torch.where(present, prediction.candidates, ABSENT_LOGIT)
    return MaskPrediction(candidates, prediction.ious, prediction.best, prediction.presence, prediction.pointer)


def _mean(predictions: Sequence[MaskPrediction]) -> MaskPrediction:
    """The mean logits of one frame that several clips show."""
    first = predictions[0]
    logits = torch.stack([prediction.logits for prediction in predictions]).mean(dim=0)
    iou = torch.stack([prediction.iou for prediction in predictions]).mean(dim=0)
    presence = torch.stack([prediction.presence for prediction in predictions]).mean(dim=0)
    return MaskPrediction(logits[:, None], iou[:, None], torch.zeros_like(first.best), presence, first.pointer)


def _averaged(
    model: Sa2VANetwork,
    predictions: Sequence[MaskPrediction],
    phrases: Sequence[str],
    size: Size,
    output: MaskPostprocessing,
) -> tuple[Segment, ...]:
    """Segments from the mean probability over the selection modes. FloatingPointError for NaN or infinity."""
    if not all(bool(prediction.is_finite.all()) for prediction in predictions):
        raise not_finite("SAM 2", predictions[0].candidates.dtype)
    segments = []
    for row, phrase in enumerate(phrases):
        views = [
            upsample_logits(p.logits[row : row + 1], grounding_side(model.sam2), size)[0].sigmoid() for p in predictions
        ]
        mean = torch.stack(views).mean(dim=0)
        score = float(torch.stack([p.iou[row] for p in predictions]).mean())
        presence = float(torch.stack([p.presence[row] for p in predictions]).sigmoid().mean())
        mask = output.mask((mean > output.threshold).cpu().numpy())
        kept = mean[None].cpu().numpy() if output.probabilities else None
        segments.append(Segment(row + 1, phrase, (mask,), score, presence, probabilities=kept))
    return tuple(segments)


def _nearest(order: Sequence[int], index: int) -> int:
    return min(order, key=lambda candidate: abs(candidate - index))
