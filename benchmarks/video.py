"""Video: our tracker against the reference's schedule, built from the same modules and run in the same process.

    python benchmarks/video.py                       # small sizes, CPU
    python benchmarks/video.py --around              # drawing, resizing, run lengths and files, without a model
    python benchmarks/video.py --size large --device cuda --dtype bfloat16 --compile

The reference segments each object in a session of its own: it encodes every frame again for every object, encodes
each key frame a second time for its memory, keeps every frame's output, and resizes all frames' logits at once.
Weights are random: speed and memory do not depend on them. Prints frames/s, ratios, encoder calls, peak memory, where
the time goes, and the floor that the arithmetic alone would need.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import sa2va.inference.tracker as tracker_module
import sa2va.model.memory as memory_module
import sa2va.modeling_sa2va as sa2va_module
from around import around
from sa2va.inference.propagation import propagate_video
from sa2va.inference.tracker import VideoTracker
from sa2va.inference.video_result import Track
from sa2va.media.frames import DecodedFrame, FrameSource
from sa2va.media.open import open_media
from sa2va.model.configuration import Sa2VAConfig, sam2_config
from sa2va.model.mask_decoder import decode_masks, encode_frames, language_tokens
from sa2va.model.memory import MemoryBank, encode_memory, remember, track_frame
from sa2va.model.network import normalized_frames
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import squashed_frames
from sa2va.writers import OverlayWriter, VideoEncoder

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"image_size": 128, "embed_dim": 16, "num_heads": 1, "blocks": (1, 1, 2, 1), "global_blocks": (3,)}
    | {"windows": (8, 4, 4, 2), "width": 128, "memory_layers": 2, "memory_mlp": 256},
    "small": {"image_size": 256, "embed_dim": 48, "num_heads": 1, "blocks": (1, 2, 7, 2), "global_blocks": (5, 7, 9)}
    | {"windows": (8, 4, 14, 7), "width": 256},
    "large": {"image_size": 1024, "embed_dim": 144, "num_heads": 2, "blocks": (2, 6, 36, 4)}
    | {"global_blocks": (23, 33, 43), "windows": (8, 4, 16, 8), "width": 256},
}
VLM = {  # the language half is not measured here
    "model_type": "internvl",
    "tie_word_embeddings": False,
    "text_config": {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    | {"num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 32},
    "vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32},
}
KEYS = 5
BESIDE = ("decode", "pixels")  # parts with a thread of their own
FRAME = (270, 480)


def build(size: str, device: str, dtype: torch.dtype) -> Sa2VAModel:
    torch.manual_seed(0)
    config = Sa2VAConfig(vlm_config=VLM, sam2_config=sam2_config(**SIZES[size]), seg_token_id=1)
    return Sa2VAModel(config).to(device, dtype).eval()


class Clip:
    """A made-up clip of any length that is drawn frame by frame."""

    def __init__(self, count: int):
        self._base = np.random.default_rng(0).integers(0, 256, (*FRAME, 3), dtype=np.uint8)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:
        if index >= self._count:
            raise IndexError(index)
        return np.roll(self._base, index, axis=1)


class Source(FrameSource):
    """The clip as a frame source, without files."""

    fps = path = None
    size = FRAME

    def __init__(self, count: int):
        self._clip = Clip(count)

    @property
    def frame_count(self) -> int:
        return len(self._clip)

    def pick(self, indices: Iterable[int]) -> Iterator[DecodedFrame]:
        for index in takewhile(lambda index: index < len(self._clip), indices):
            yield DecodedFrame(index, None, self._clip[index], source_index=index)


@torch.inference_mode()
def ours(model: Sa2VAModel, prompts: torch.Tensor, count: int) -> int:
    """Every frame once, all objects as one batch; returns the number of masks."""
    tracker = VideoTracker(model, mode="released")
    tracker.add_prompts(prompts, [""] * len(prompts))
    keys = list(range(min(KEYS, count)))
    return sum(len(frame.segments) for frame, _ in propagate_video(tracker, Source(count), keys))


@torch.inference_mode()
def reference_schedule(model: Sa2VAModel, prompts: torch.Tensor, count: int) -> int:
    """What the reference does with the same modules."""
    sam2, clip, masks = model.sam2, Clip(count), []
    frames = [_pixels(model, clip[index]) for index in range(count)]  # the whole video as float32, as it keeps it
    for row in range(len(prompts)):
        tokens, bank, outputs = language_tokens(sam2, prompts[row : row + 1]), MemoryBank(), {}
        for index in range(min(KEYS, count)):
            outputs[index] = decode_masks(sam2, sam2.mask_decoder, encode_frames(sam2, frames[index]), tokens)
        for index, prediction in list(outputs.items()):
            features = encode_frames(sam2, frames[index])  # its cache holds one frame: the last
            bank = bank.add_prompted(encode_memory(sam2, features, prediction, index))
        for index in range(len(outputs), count):
            features = encode_frames(sam2, frames[index])
            outputs[index] = track_frame(sam2, sam2.mask_decoder, bank, features, index)
            bank = remember(sam2, bank, features, outputs[index], index)
        logits = torch.cat([outputs[index].logits[:, None].float() for index in range(count)])
        logits = F.interpolate(logits, size=(sam2.image_size, sam2.image_size), mode="bilinear")
        masks.append((F.interpolate(logits, size=FRAME, mode="bilinear").sigmoid() > 0.5).cpu().numpy())
    return sum(len(mask) for mask in masks)


def _pixels(model: Sa2VAModel, frame: np.ndarray) -> torch.Tensor:
    from PIL import Image

    squashed = squashed_frames([Image.fromarray(frame)], model.sam2.image_size)
    return normalized_frames(squashed.to(model.sam2.device))


# --- measuring --------------------------------------------------------------------------------------------------------


@contextmanager
def counted(model: Sa2VAModel) -> Iterator[list[int]]:
    """Number of frames that pass the image encoder."""
    calls = [0]
    handle = model.sam2.vision_encoder.backbone.register_forward_hook(
        lambda _, args, output: calls.__setitem__(0, calls[0] + len(args[0]))
    )
    yield calls
    handle.remove()


@contextmanager
def timed_parts(model: Sa2VAModel) -> Iterator[dict[str, float]]:
    """Seconds spent in each part, by wrapping the functions that are the parts."""
    places = {
        "pixels": (tracker_module, "squashed_frames"),
        "pixels, normalised": (sa2va_module, "normalized_frames"),
        "image encoder": (sa2va_module, "encode_frames"),
        "memory attention": (memory_module, "read_memory"),
        "decode masks (tracked)": (memory_module, "decode_masks"),
        "decode masks (prompted)": (tracker_module, "decode_masks"),
        "memory encoder": (tracker_module, "encode_memory"),
        "memory encoder (tracked)": (memory_module, "encode_memory"),
        "resize and run lengths": (tracker_module, "frame_segments"),
        "draw and write": (OverlayWriter, "write"),
    }
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            _synchronize(model.sam2.device)
            start = time.perf_counter()
            result = function(*args, **kwargs)
            _synchronize(model.sam2.device)
            spent[name] += time.perf_counter() - start
            return result

        return run

    originals = {name: getattr(module, attribute) for name, (module, attribute) in places.items()}
    for name, (module, attribute) in places.items():
        setattr(module, attribute, timed(name, originals[name]))
    try:
        yield spent
    finally:
        for name, (module, attribute) in places.items():
            setattr(module, attribute, originals[name])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """The fastest of a few runs, fewer where one takes long."""
    best, begun = float("inf"), time.perf_counter()
    for _ in range(repeats):
        if best < float("inf") and time.perf_counter() - begun > 5:
            break
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def peak_growth(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes of memory that a run takes on top of what is there: of the device, or of the process on CPU (Linux)."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    before, peak, done = _resident(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _resident())

    sampler = threading.Thread(target=sample)
    sampler.start()
    run()
    done.set()
    sampler.join()
    return max(0, peak[0] - before)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def compare(model: Sa2VAModel, clips: list[int], objects: list[int]) -> None:
    print(
        "\n| objects | frames | ours frames/s | reference | ratio | encoder passes | reference | memory | reference |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    width = model.config.sam2_config.mask_decoder_config.hidden_size
    for count in clips:
        for number in objects:
            prompts = torch.randn(number, width, device=model.sam2.device, dtype=model.dtype)
            with counted(model) as passes:
                ours(model, prompts, count)
            with counted(model) as reference_passes:
                reference_schedule(model, prompts, count)
            runs = [partial(schedule, model, prompts, count) for schedule in (ours, reference_schedule)]
            fast, slow = (seconds(run, model.sam2.device) for run in runs)
            grown, reference_grown = (peak_growth(run, model.sam2.device) for run in runs)
            print(
                f"| {number} | {count} | {count / fast:.1f} | {count / slow:.1f} | {slow / fast:.2f}x "
                f"| {passes[0]} | {reference_passes[0]} "
                f"| +{grown / 2**20:.0f} MiB | +{reference_grown / 2**20:.0f} MiB |",
                flush=True,
            )


def shares(model: Sa2VAModel, number: int, count: int) -> None:
    """Where the time goes from a video file to a video file with masks drawn over it."""
    width = model.config.sam2_config.mask_decoder_config.hidden_size
    prompts = torch.randn(number, width, device=model.sam2.device, dtype=model.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        clip = Path(scratch) / "clip.mp4"
        video = VideoEncoder(clip, size=FRAME, fps=25)
        for frame in Source(count):
            video.write(frame.pixels)
        video.close()

        decoding = [0.0]

        def timed_frames(pick: Callable[..., Iterator[DecodedFrame]]) -> Callable[..., Iterator[DecodedFrame]]:
            def run(indices: Iterable[int]) -> Iterator[DecodedFrame]:
                frames = pick(indices)
                while True:
                    start = time.perf_counter()
                    frame = next(frames, None)
                    decoding[0] += time.perf_counter() - start
                    if frame is None:
                        return
                    yield frame

            return run

        def file_to_file() -> None:
            tracker = VideoTracker(model, mode="released")
            tracker.add_prompts(prompts, [""] * number)
            source = open_media(clip)
            source.pick = timed_frames(source.pick)
            frames = propagate_video(tracker, source, list(range(min(KEYS, count))))
            Track(frames, size=FRAME, fps=25).save(Path(scratch) / "out.mp4")

        file_to_file()
        decoding[0] = 0.0
        with timed_parts(model) as spent:
            start = time.perf_counter()
            file_to_file()
            _synchronize(model.sam2.device)
            total = time.perf_counter() - start
        spent["decode"] = decoding[0]
    with FlopCounterMode(display=False) as counter:  # it sees its own thread only
        ours(model, prompts, count)
    print(f"\nWhere the time goes, file to file ({number} objects, {count} frames, {total:.2f} s):")
    for name, value in sorted(spent.items(), key=lambda pair: -pair[1]):
        beside = "  (in a thread beside)" if name in BESIDE else ""
        print(f"  {name:24} {value:7.2f} s  {value / total:5.1%}{beside}")
    rest = total - sum(value for name, value in spent.items() if name not in BESIDE)
    print(f"  {'everything else':24} {rest:7.2f} s  {rest / total:5.1%}")
    rate = _matmul_rate(model.sam2.device, model.dtype)
    floor = counter.get_total_flops() / rate
    print(f"  floor: {counter.get_total_flops() / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s of a plain matrix product")
    print(f"         = {floor:.2f} s; measured {total / floor:.1f}x the floor")


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    a, b = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
    return 2 * 2048**3 / seconds(lambda: a @ b, device, repeats=10)


def memory(arguments: argparse.Namespace) -> None:
    """Peak memory at two lengths, each in a process of its own."""
    print("\n| frames | peak memory, ours | reference-style growth, computed |")
    print("|---|---|---|")
    peaks = {}
    for count in (50, 2000):
        command = [sys.executable, __file__, "--size", "tiny", "--peak-of", str(count)]
        peaks[count] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        # float32 and bfloat16 pixels, S x S float32 logits and their full-resolution copy, for one object
        side = SIZES["tiny"]["image_size"]
        kept = count * (3 * side * side * 6 + side * side * 4 + FRAME[0] * FRAME[1] * 4)
        print(f"| {count} | {peaks[count] / 2**20:.1f} MiB | +{kept / 2**20:.1f} MiB |", flush=True)
    print(f"2000 frames peak {peaks[2000] / peaks[50] - 1:+.2%} of 50 frames")


def peak_of(count: int) -> None:
    torch.set_num_threads(1)
    model = build("tiny", "cpu", torch.float32)
    width = model.config.sam2_config.mask_decoder_config.hidden_size
    ours(model, torch.randn(2, width), count)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["tiny", "small"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile the image encoder")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 3, 8])
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--around", action="store_true", help="only what is done beside the model, at 1080p")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        return peak_of(arguments.peak_of)
    if arguments.around:
        return around(arguments.objects[-1])
    for size in arguments.size:
        model = build(size, arguments.device, getattr(torch, arguments.dtype))
        if arguments.compile:
            model.sam2.vision_encoder.backbone.compile()
        print(f"\n## {size}: {SIZES[size]['image_size']} px, {arguments.device}, {arguments.dtype}")
        compare(model, arguments.frames, arguments.objects)
        shares(model, arguments.objects[-1], arguments.frames[-1])
    if not arguments.skip_memory:
        memory(arguments)
    return None


if __name__ == "__main__":
    main()
