"""What a video costs beside the model: drawing, resizing, run lengths, files. See ``video.py --around``.

The old way of each part is here as it was: logits resized over the whole picture, run lengths of whole columns by
pycocotools, and every object pasted over the picture with Pillow. Its masks must equal ours to the bit.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar, cast

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from sa2va.inference.postprocess import foreground
from sa2va.inference.propagation import propagate_video
from sa2va.inference.tracker import VideoTracker
from sa2va.inference.video_result import Track
from sa2va.masks.mask import Mask, Segment, Size
from sa2va.media.open import open_media
from sa2va.media.video_file import to_rgb
from sa2va.model.mask_decoder import FrameFeatures, upsample_logits
from sa2va.processing.processor import squashed_frames
from sa2va.results.answer import Frame
from sa2va.visualization.overlay import ClipOverlay
from sa2va.writers import VideoEncoder

SIZE: Size = (1080, 1920)
CELLS, SIDE = 256, 1024  # low-resolution masks and the grounding picture of SAM 2 at full size
Bools = NDArray[np.bool_]
T = TypeVar("T")


def logits(objects: int, moment: int) -> torch.Tensor:
    """Low-resolution logits (objects, 256, 256) of moving things with rough edges, about 60 to 140 cells^2 each."""
    rows, columns = np.mgrid[:CELLS, :CELLS].astype(np.float32)
    made = []
    for number in range(objects):
        rng = np.random.default_rng(number)
        (x, y), radius, phase = rng.uniform(40, 216, 2), rng.uniform(18, 36), rng.uniform(0, 6, 3)
        x, y = x + 12 * np.sin(moment / 15 + phase[0]), y + 8 * np.cos(moment / 12 + phase[1])
        angle = np.arctan2(rows - y, (columns - x) * 16 / 9)
        edge = radius * (1 + 0.15 * np.sin(5 * angle + phase[2]) + 0.07 * np.sin(11 * angle))
        noise = np.random.default_rng((number, moment)).normal(0, 0.3, rows.shape)
        made.append((edge - np.hypot(rows - y, (columns - x) * 16 / 9)) / 2 + noise)
    return torch.from_numpy(np.stack(made).astype(np.float32))


def picture(moment: int) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    waves = (np.sin(columns / 90 + moment / 9), np.sin(rows / 70), np.sin((rows + columns) / 130 - moment / 14))
    return np.stack([127 + 90 * wave + 30 * waves[2] for wave in waves], axis=2).clip(0, 255).astype(np.uint8)


# --- the old way ------------------------------------------------------------------------------------------------------


def old_resize(one: torch.Tensor) -> Bools:
    return (upsample_logits(one[None], SIDE, SIZE)[0] > 0).numpy()


def old_counts(mask: Bools) -> str:
    columns = np.flatnonzero(mask.any(axis=0))
    part = np.asfortranarray(mask[:, columns[0] : columns[-1] + 1]).view(np.uint8)
    return cast(bytes, coco.encode(part)["counts"]).decode("ascii")


def old_draw(overlay: ClipOverlay, pixels: NDArray[np.uint8], segments: Sequence[Segment]) -> NDArray[np.uint8]:
    """The fill and the outlines of each object pasted with Pillow; labels as now."""
    canvas = Image.fromarray(pixels).copy()
    unit = min(canvas.size) / 300
    layers = []
    for segment in segments:
        if segment.mask.box is None or segment.color is None:
            continue
        x0, y0, x1, y1 = map(int, segment.mask.box)
        box = max(x0 - 1, 0), max(y0 - 1, 0), min(x1 + 1, SIZE[1]), min(y1 + 1, SIZE[0])
        layers.append((segment.color, box[:2], np.ascontiguousarray(segment.mask.crop(box))))
    for color, corner, mask in layers:
        canvas.paste(color, corner, Image.fromarray(mask.view(np.uint8) * np.uint8(76)))
    for color, corner, mask in layers:
        core = ~_grown(~mask, max(1, round(unit * 0.5)))
        thin = mask & ~_grown(core, max(1, round(unit * 0.5)) + 1)
        bright = (core & _grown(~core, max(1, round(unit * 0.75)))) | thin
        for line, drawn in (((16, 16, 16), mask & ~core & ~thin), (color, bright)):
            canvas.paste(line, corner, Image.fromarray(drawn.view(np.uint8) * np.uint8(255)))
    drawn = np.array(canvas)
    labels_only = ClipOverlay(alpha=0.0, contour=False)
    labels_only.paint(drawn, segments)
    return drawn


def _grown(mask: Bools, steps: int) -> Bools:
    for step in range(steps):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        rows = grown.copy() if step % 2 else mask
        grown[:, 1:] |= rows[:, :-1]
        grown[:, :-1] |= rows[:, 1:]
        mask = grown
    return mask


# --- measuring --------------------------------------------------------------------------------------------------------


def milliseconds(run: Callable[[], Any], repeats: int) -> float:
    """CPU time of this thread, the least of some runs: others on the machine do not count."""
    best = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        run()
        best = min(best, time.thread_time() - start)
    return 1000 * best


class FreeTracker:
    """Follows objects whose logits are there already: everything but the model."""

    def __init__(self, moments: Sequence[torch.Tensor]):
        self.ids = list(range(1, len(moments[0]) + 1))
        self._moments, self._index = moments, 0

    def squash(self, frames: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        return squashed_frames([Image.fromarray(frame) for frame in frames], SIDE)

    def encode_squashed(self, frames: torch.Tensor) -> FrameFeatures:
        none = torch.zeros(len(frames), 1, 1, 1)
        return FrameFeatures(none, none, none)

    def encode(self, frames: Sequence[NDArray[np.uint8]]) -> FrameFeatures:
        return self.encode_squashed(self.squash(frames))

    def prompt_frame(self, *_: object) -> None:
        """The first frame is no other than the rest."""

    def is_ready(self, _: int) -> bool:
        return False

    def step_encoded(self, _: FrameFeatures, size: Size, *, time: float | None = None) -> Frame:
        index, self._index = self._index, self._index + 1
        return Frame(index, time, size, tuple(found(self._moments[index % len(self._moments)], size)))


def found(logits: torch.Tensor, size: Size) -> list[Segment]:
    """Objects whose logits (objects, 256, 256) are these, in a frame of a size."""
    masks = [Mask.from_crop(*foreground(one, SIDE, size, 0.0), size) for one in logits]
    return [Segment(number, f"object {number}", (mask,), 0.9, 0.9) for number, mask in enumerate(masks, 1)]


def parts(objects: int, repeats: int) -> None:
    pixels, low = picture(0), logits(objects, 0)
    masks = [old_resize(one) for one in low]
    crops = [foreground(one, SIDE, SIZE, 0.0) for one in low]
    encoded = [Mask.from_crop(*crop, SIZE) for crop in crops]
    assert encoded == [Mask.from_array(mask) for mask in masks]
    plain = [Segment(n, f"object {n}", (mask,), 0.9, 0.9) for n, mask in enumerate(encoded, 1)]
    overlay = ClipOverlay()
    segments = overlay._colors.apply(pixels, plain)
    ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "resize logits": (
            lambda: [old_resize(one) for one in low],
            lambda: [foreground(one, SIDE, SIZE, 0.0) for one in low],
        ),
        "run lengths": (
            lambda: [old_counts(mask) for mask in masks],
            lambda: [Mask.from_crop(*crop, SIZE) for crop in crops],
        ),
        "draw": (
            lambda: old_draw(overlay, pixels, segments),
            lambda: overlay.paint(pixels.copy(), segments),
        ),
    }
    print(f"\n{objects} objects in {SIZE[1]} x {SIZE[0]}, one thread, ms of CPU a frame (least of {repeats}):")
    print("\n| part | the old way | now | ratio |\n|---|--:|--:|--:|")
    sums = [0.0, 0.0]
    for name, pair in ways.items():
        old, new = (milliseconds(run, repeats) for run in pair)
        sums[0], sums[1] = sums[0] + old, sums[1] + new
        print(f"| {name} | {old:.1f} | {new:.1f} | {old / new:.1f}x |", flush=True)
    print(f"| together | {sums[0]:.1f} | {sums[1]:.1f} | {sums[0] / sums[1]:.1f}x |")


def file_to_file(objects: int, count: int) -> None:
    moments = [logits(objects, moment) for moment in range(count)]
    with tempfile.TemporaryDirectory() as scratch:
        clip, out = Path(scratch) / "clip.mp4", Path(scratch) / "out.mp4"
        video = VideoEncoder(clip, size=SIZE, fps=Fraction(25))
        for moment in range(count):
            video.write(picture(moment))
        video.close()
        spent = stages(clip, moments)
        start, cpu = time.perf_counter(), time.process_time()
        source = open_media(clip)
        frames = propagate_video(cast(VideoTracker, FreeTracker(moments)), source, [0])
        Track(frames, size=SIZE, fps=25).save(out)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        weight = out.stat().st_size
    each = 1000 * cpu / count
    spent["everything else: queues, copies, records"] = each - sum(spent.values())
    print(f"\nmp4 to mp4, a model that costs nothing, {count} frames, ms of CPU a frame in all threads:")
    print("\n| part | ms | share |\n|---|--:|--:|")
    for name, value in spent.items():
        print(f"| {name} | {value:.1f} | {value / each:.0%} |")
    print(f"| together | {each:.1f} | |")
    print(
        f"\n{count / wall:.1f} frames/s with {cpu / wall:.2f} cores busy, {2000 / each:.1f} with two free ones;",
        end=" ",
    )
    print(f"{weight / count / 1000:.0f} kB a frame")
    print(floor())


def stages(clip: Path, moments: Sequence[torch.Tensor]) -> dict[str, float]:
    """Milliseconds of CPU a frame of the parts, one after another over a clip."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, run: Callable[..., T], *given: Any) -> T:
        start = time.thread_time()
        result = run(*given)
        spent[name] += 1000 * (time.thread_time() - start) / len(moments)
        return result

    start = time.process_time()
    for _ in pictures(clip):
        pass
    spent["decode"] = 1000 * (time.process_time() - start) / len(moments)
    overlay, tracker, start = ClipOverlay(), FreeTracker(moments), time.process_time()
    decoder, encoder = VideoReformatter(), VideoEncoder(clip.with_name("parts.mp4"), size=SIZE, fps=Fraction(25))
    for moment, decoded in zip(moments, pictures(clip), strict=True):
        pixels = timed("yuv420p to RGB", to_rgb, decoder, decoded, SIZE[::-1])
        timed("squash to 1024 x 1024", tracker.squash, [pixels])
        segments = timed("resize logits, run lengths", found, moment, SIZE)
        timed("draw", overlay.paint, pixels, segments)
        encoder.write(pixels)
    encoder.close()
    # FFmpeg and x264 have threads of their own.
    spent["RGB to yuv420p, x264"] = 1000 * (time.process_time() - start) / len(moments) - sum(spent.values())
    return spent


def pictures(clip: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        yield from container.decode(video=0)


def floor() -> str:
    """What moving a frame's bytes alone would take: each part reads what it gets and writes what it makes, once."""
    rgb, square = SIZE[0] * SIZE[1] * 3, SIDE * SIDE * 3
    moved = {
        "decode": rgb // 2,
        "to RGB": rgb // 2 + rgb,
        "squash": rgb + square,
        "copy": 2 * rgb,
        "to yuv420p": rgb + rgb // 2,
        "encode": rgb // 2,
    }
    source, target = np.ones((2, rgb), np.uint8)
    rate = 2 * rgb / milliseconds(lambda: np.copyto(target, source), 20)  # bytes a millisecond
    total = sum(moved.values())
    return (
        f"Floor: {total / 1e6:.0f} MB a frame, {total / rate:.1f} ms at {rate / 1e6:.0f} GB/s; the rest is arithmetic"
    )


def around(objects: int = 8, count: int = 60, repeats: int = 15) -> None:
    torch.set_num_threads(1)
    parts(objects, repeats)
    file_to_file(objects, count)
