"""Chat messages of lmms-eval as what a Sa2VA model takes: one picture or clip, a question, earlier turns.

The policy where the two differ: system prompts are dropped, since the released models have none; pictures and clips
stand before the first question, wherever the messages have them; several pictures are shown as the frames of a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sa2va.eval.qa.tsv import as_clip
from sa2va.inference.propagation import frame_count, key_frame_indices
from sa2va.media.open import load_image, open_media
from sa2va.processing.requests import IMAGE_MARK
from sa2va.results.history import Turn


@dataclass(frozen=True)
class MediaSampling:
    """What of a clip, or of many pictures, a model is shown.

    Attributes:
        key_frames: which frames of a clip: ``"uniform"`` or ``"first"``. num_frames: how many.
        num_pictures: most pictures of one question; of more, so many are taken evenly.
    """

    key_frames: Literal["uniform", "first"] = "uniform"
    num_frames: int = 5
    num_pictures: int = 8


@dataclass(frozen=True)
class ChatRequest:
    """One request.

    Attributes:
        question: the last one, without media placeholder. history: turns before it.
        media: makes the picture, or the list of frames (uint8 RGB (H, W, 3), all of them to be shown); None for words
            alone.
        source: equal for requests about the same file and the same part of it; "" where that is not known.
        system: whether a system prompt was dropped.
    """

    question: str
    history: tuple[Turn, ...]
    media: Callable[[], Any] | None
    source: str
    system: bool


def read_messages(messages: Sequence[Mapping[str, Any]], sampling: MediaSampling = MediaSampling()) -> ChatRequest:
    """Read the messages of one document.

    Args:
        messages: ``{"role": "user" | "assistant" | "system", "content": text or list of {"type": ...}}``, where
            parts are ``{"type": "text", "text"}``, ``{"type": "image", "url"}`` or ``{"type": "video", "url"}`` with
            ``start_time`` and ``end_time`` in seconds; a url is a path or the picture or frames themselves.

    Raises:
        ValueError: audio, a clip beside other media, or messages that do not end in a question.
    """
    pictures: list[Any] = []
    clips: list[Mapping[str, Any]] = []
    turns: list[tuple[str, list[str]]] = []
    for message in messages:
        if message["role"] == "system":
            continue
        words = [_read_part(part, pictures, clips) for part in _parts(message["content"])]
        if turns and turns[-1][0] == message["role"]:
            turns[-1][1].extend(words)
        else:
            turns.append((message["role"], words))
    said = [(role, "\n".join(word for word in words if word).strip()) for role, words in turns]
    roles = [role for role, _ in said]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise ValueError(f"expected messages of user and assistant in turns that end with the user's, got {roles}")
    texts = [text for _, text in said]
    media, source = _media(pictures, clips, sampling)
    return ChatRequest(
        question=texts[-1],
        history=tuple(Turn(question, answer) for question, answer in zip(texts[:-1:2], texts[1::2], strict=True)),
        media=media,
        source=source,
        system=any(message["role"] == "system" for message in messages),
    )


def _parts(content: str | Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _read_part(part: Mapping[str, Any], pictures: list[Any], clips: list[Mapping[str, Any]]) -> str:
    """The words of a part; media are put on their lists."""
    if part["type"] == "text":
        return part["text"].replace(IMAGE_MARK, "").strip()
    if part["type"] == "image":
        pictures.append(part["url"])
    elif part["type"] == "video":
        clips.append(part)
    else:
        raise ValueError(f"the model takes text, pictures and clips; got {part['type']!r}")
    return ""


def _media(
    pictures: Sequence[Any], clips: Sequence[Mapping[str, Any]], sampling: MediaSampling
) -> tuple[Callable[[], Any] | None, str]:
    """What makes the media, and their name when they are a file."""
    if len(clips) > 1 or (clips and pictures):
        raise ValueError(
            f"the model takes pictures or one clip; got {len(clips)} clips and {len(pictures)} pictures in one request"
        )
    if clips:
        clip = clips[0]
        span = clip.get("start_time"), clip.get("end_time")
        return partial(clip_frames, clip["url"], *span, sampling), _source(clip["url"], *span)
    if len(pictures) > 1:
        return partial(_shown, pictures, sampling), ""
    return (partial(load_image, pictures[0]), _source(pictures[0])) if pictures else (None, "")


def clip_frames(clip: Any, start: float | None, end: float | None, sampling: MediaSampling) -> list[np.ndarray]:
    """The frames of a clip that the model is shown, uint8 RGB (H, W, 3); only they are decoded.

    The model gets them and nothing else, so that an answer with a ``[SEG]`` does not set it to segment an hour of film.

    Args:
        clip: path or ``file://`` URL of a video file or a folder of frames, a list of pictures, or uint8 (T, H, W, 3).
        start, end: the part of it, in seconds.
    """
    if isinstance(clip, str | Path):
        source = open_media(str(clip).removeprefix("file://"), start=_seconds(start), end=_seconds(end))
    elif start is None and end is None:
        source = open_media(clip if isinstance(clip, np.ndarray) else as_clip([_pixels(one) for one in clip]))
    else:
        raise ValueError("start_time and end_time need a clip in a file; these are frames without times")
    with source:
        return source.read(key_frame_indices(sampling.key_frames, sampling.num_frames, frame_count(source)))


def _shown(pictures: Sequence[Any], sampling: MediaSampling) -> list[np.ndarray]:
    """Pictures as frames of one size, evenly thinned where there are too many."""
    kept = key_frame_indices("uniform", sampling.num_pictures, len(pictures))
    return as_clip([_pixels(pictures[index]) for index in kept])


def _seconds(at: float | None) -> float | None:
    """A time; whole numbers too, which would otherwise count frames."""
    return None if at is None else float(at)


def _pixels(picture: Any) -> np.ndarray:
    return np.asarray(load_image(picture))


def _source(media: Any, *span: float | None) -> str:
    return repr((str(media), span)) if isinstance(media, str | Path) else ""
