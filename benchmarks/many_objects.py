"""Many objects in a video: what a tracked frame costs with 1, 4 and 16 of them, by what is read of memory.

    python benchmarks/many_objects.py

Floating-point operations are counted at full size (SAM 2 large, 1024 px) on torch's meta device, which computes
nothing; CPU time is measured with the packaged ``tiny``, encoder included. Objects are small enough for their windows,
and memory is full: five prompted frames, six tracked ones, fifteen pointers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Sam2VideoModel

from sa2va import Sa2VA
from sa2va.inference.local_memory import NEAR, WHOLE_EVERY, LocalMemory, Places
from sa2va.inference.memory_policies import ObjectMemory, RecentMemory
from sa2va.model.mask_decoder import FrameFeatures, MaskPrediction, decode_masks, encode_frames, no_prompt_tokens
from sa2va.model.memory import FrameMemory, MemoryBank, attend, encode_memory
from video import build

OBJECTS = (1, 4, 16)
PROMPTED, TRACKED = 5, 15
NEXT = PROMPTED + TRACKED
#: How many objects that were looked for around their places were looked for again, on drawn clips (docs/video.md).
LOOKED_AGAIN = 0.09


def full_bank(make: Callable[[int], FrameMemory]) -> MemoryBank:
    bank = MemoryBank()
    for index in range(PROMPTED):
        bank = bank.add_prompted(make(index))
    for index in range(PROMPTED, NEXT):
        bank = bank.add_tracked(make(index), slots=6, pointers=15)
    return bank


def gigaflops(run: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def counted() -> None:
    with torch.device("meta"), torch.inference_mode():
        sam2 = build("large", "meta", torch.float32).sam2
        cells, top = 64 * 64, torch.empty(1, 256, 64, 64)
        features = FrameFeatures(torch.empty(1, 256, 256, 256), torch.empty(1, 256, 128, 128), top)
        encoder = gigaflops(lambda: encode_frames(sam2, torch.empty(1, 3, 1024, 1024)))
        bank = full_bank(lambda index: FrameMemory(index, torch.empty(1, cells, 64), torch.empty(1, 256)))
        near = bank.near(NEXT, **NEAR)
        corners = torch.zeros(1, 2, dtype=torch.long)
        decoder = gigaflops(
            lambda: decode_masks(
                sam2, sam2.mask_decoder, features, no_prompt_tokens(sam2, 1), conditioned_NChw=torch.empty_like(top)
            )
        )
        prediction = MaskPrediction(
            torch.empty(1, 3, 256, 256),
            torch.empty(1, 3),
            torch.zeros(1, dtype=torch.long),
            torch.empty(1),
            torch.empty(1, 256),
        )
        written = gigaflops(lambda: encode_memory(sam2, features, prediction, 0))
        whole, nearest, around = (
            gigaflops(lambda bank=bank, windows=windows: attend(sam2, bank, top, NEXT, windows_K2=windows))
            for bank, windows in ((bank, None), (near, None), (near, corners))
        )
    # Now and then in the whole picture, else around the object, and some of these again.
    again = LOOKED_AGAIN * (nearest + decoder)
    local = ((WHOLE_EVERY - 1) * (around + again) + nearest) / WHOLE_EVERY
    beside = decoder + written
    print(f"encoder {encoder:.0f}, mask decoder {decoder:.0f}, memory encoder {written:.0f};")
    print(f"read of memory: recent {whole:.0f}, near {nearest:.0f}, around the object {around:.0f} GFLOP an object\n")
    print("| `memory` | " + " | ".join(f"{number} objects" for number in OBJECTS) + " | 16 to one | to one, recent |")
    print("|---|" + "--:|" * (len(OBJECTS) + 2))
    exact = encoder + beside + whole
    for name, read in (("recent", whole), ("near", nearest), ("local", local)):
        costs = [encoder + number * (read + beside) for number in OBJECTS]
        cells_of_row = " | ".join(f"{cost:,.0f}" for cost in costs)
        print(f"| `{name}` | {cells_of_row} | {costs[0] / costs[-1]:.2f} | {exact / costs[-1]:.2f} |")


def measured(repeats: int = 5) -> None:
    torch.set_num_threads(1)
    sam2 = Sa2VA.from_pretrained("tiny").model.sam2
    print("\n`tiny`, CPU ms a frame, one thread, least of some:\n")
    print("| `memory` | " + " | ".join(f"{number} objects" for number in OBJECTS) + " | 16 to one |")
    print("|---|" + "--:|" * (len(OBJECTS) + 1))
    rows: dict[str, list[float]] = {"recent": [], "near": [], "local": []}
    for number in OBJECTS:
        cost = {name: milliseconds(sam2, memory, repeats) for name, memory in memories(sam2, number).items()}
        cost["local"] += (cost["near"] - cost["local"]) / WHOLE_EVERY  # one frame of eight is looked at whole
        for name, value in cost.items():
            rows[name].append(value)
    for name, costs in rows.items():
        print(f"| `{name}` | {' | '.join(f'{cost:.0f}' for cost in costs)} | {costs[0] / costs[-1]:.2f} |")


@torch.inference_mode()
def memories(sam2: Sam2VideoModel, number: int) -> dict[str, ObjectMemory]:
    features = encode_frames(sam2, picture(sam2))
    low = features.fine.shape[-1]
    candidates = torch.full((number, 3, low, low), -5.0)
    candidates[:, :, : low // 8, : low // 8] = 5.0
    pointer = torch.zeros(number, sam2.hidden_dim)
    prediction = MaskPrediction(
        candidates, torch.ones(number, 3), torch.zeros(number, dtype=torch.long), torch.ones(number), pointer
    )
    bank = full_bank(lambda index: encode_memory(sam2, features, prediction, index))
    places = tuple(Places.of(index, prediction, features.top.shape[-1]) for index in range(NEXT))
    return {"recent": RecentMemory(bank), "near": RecentMemory(bank, near=True), "local": LocalMemory(bank, places)}


def picture(sam2: Sam2VideoModel) -> Tensor:
    assert isinstance(sam2.image_size, int)
    return torch.zeros(1, 3, sam2.image_size, sam2.image_size)


@torch.inference_mode()
def milliseconds(sam2: Sam2VideoModel, memory: ObjectMemory, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        memory.track(sam2, sam2.mask_decoder, encode_frames(sam2, picture(sam2)), NEXT)
        best = min(best, time.process_time() - start)
    return 1000 * best


if __name__ == "__main__":
    counted()
    measured()
