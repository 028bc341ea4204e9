"""What looking again gives on pictures: small objects with ``zoom=True``, look-alikes with ``instances=True``.

    python benchmarks/pictures.py                   # tiny, 24 pictures of each kind, one thread

Small objects: drawn pictures of 1280 x 960 with five objects of 6 to 12 pixels radius (and others of up to 120), one of
which is asked for by colour and kind. Look-alikes: drawn pictures of 512 x 512 with two to six objects that one plural
phrase means, and three others. Prints IoU, how many counts are right, and passes of the models and CPU time a picture.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import hypot
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from sa2va import Answer, Sa2VA
from sa2va.eval.metrics import Overlap, ciou, giou, overlap
from sa2va.tiny.synthetic.background import background
from sa2va.tiny.synthetic.drawn_scene import random_style
from sa2va.tiny.synthetic.lexicon import KIND_NOUNS
from sa2va.tiny.synthetic.paint import draw, lay, silhouettes
from sa2va.tiny.synthetic.shapes import KINDS
from sa2va.tiny.synthetic.splits import LOOKS, Look


@dataclass(frozen=True)
class Drawn:
    """A picture, a phrase about it, and the masks bool (N, H, W) of the objects that it means."""

    image: Image.Image
    phrase: str
    masks: np.ndarray


def paint(
    rng: random.Random, looks: list[Look], radii: list[float], size: tuple[int, int]
) -> tuple[Image.Image, np.ndarray]:
    """Objects apart from each other on a background of flat colour, gradient, noise or texture; and their masks."""
    canvas = background(rng, np.random.default_rng(rng.getrandbits(63)), size)
    spots: list[tuple[float, float, float]] = []
    for look, radius in zip(looks, radii, strict=True):
        reach = radius * KINDS[look.kind].reach
        while True:
            y, x = (rng.uniform(reach + 2, side - reach - 2) for side in size)
            if all(hypot(y - v, x - u) > reach + other + 4 for v, u, other in spots):
                spots.append((y, x, reach))
                break
    centers = [(int(y), int(x)) for y, x, _ in spots]
    sprites = [
        draw(random_style(look, rng), radius, 0.6 * radius, (y % 1, x % 1))
        for look, radius, (y, x, _) in zip(looks, radii, spots, strict=True)
    ]
    for sprite, center in zip(sprites, centers, strict=True):
        lay(canvas, sprite, center)
    return Image.fromarray(canvas), silhouettes(sprites, centers, size)


def casting(rng: random.Random, count: int) -> list[Look]:
    """Plain looks that differ in kind and in colour."""
    looks: list[Look] = []
    plain = [look for (_, split), many in LOOKS.items() if split == "train" for look in many if look.texture == "plain"]
    while len(looks) < count:
        look = rng.choice(plain)
        if all(look.kind != other.kind and look.color != other.color for other in looks):
            looks.append(look)
    return looks


def small_object(index: int, least: float = 6, most: float = 12) -> Drawn:
    """Five objects of some radii in pixels, one of them asked for."""
    rng = random.Random(f"small/{index}")
    looks = casting(rng, 5)
    image, masks = paint(rng, looks, [rng.uniform(least, most) for _ in looks], (960, 1280))
    return Drawn(image, f"the {looks[0].color} {KIND_NOUNS[looks[0].kind].one}", masks[:1])


def look_alikes(index: int) -> Drawn:
    """Two to six objects that look alike and three others."""
    rng = random.Random(f"alike/{index}")
    count = rng.randint(2, 6)
    first, *others = casting(rng, 4)
    while not (noun := KIND_NOUNS[first.kind].many):
        first, *others = casting(rng, 4)
    looks = [first] * count + others
    image, masks = paint(rng, looks, [rng.uniform(26, 46) for _ in looks], (512, 512))
    return Drawn(image, f"all the {first.color} {noun}", masks[:count])


@contextmanager
def counting(sa2va: Sa2VA) -> Iterator[Counter[str]]:
    """Pictures that pass the vision tower and SAM 2's image encoder, and prompts that pass its mask decoder."""
    counts: Counter[str] = Counter()

    def note(name: str, size: Any) -> Any:
        return lambda _, args, given: counts.update({name: len(size(args, given))})

    vlm, sam2 = sa2va.model.vlm.model, sa2va.model.sam2
    tower = vlm.visual if hasattr(vlm, "visual") else vlm.vision_tower
    hooks = [
        tower.register_forward_pre_hook(
            note("vision tower", lambda args, given: args[0] if args else given["pixel_values"]), with_kwargs=True
        ),
        sam2.vision_encoder.backbone.register_forward_pre_hook(
            note("image encoder", lambda args, _: args[0]), with_kwargs=True
        ),
        sam2.mask_decoder.register_forward_pre_hook(
            note("mask decoder", lambda _, given: given["sparse_prompt_embeddings"]), with_kwargs=True
        ),
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def measure(sa2va: Sa2VA, drawings: list[Drawn], **options: Any) -> str:
    """A row of the table that [`main`] prints."""
    overlaps, own, right, wrong = list[Overlap](), list[float](), 0, 0
    started = time.process_time()
    with counting(sa2va) as counts:
        answers = [cast("Answer", sa2va.segment(one.image, one.phrase, **options)) for one in drawings]
    seconds = time.process_time() - started
    for answer, one in zip(answers, drawings, strict=True):
        overlaps.append(overlap(answer.masks.any(axis=0), one.masks.any(axis=0)))
        own += [max([overlap(mask, truth).iou for mask in answer.masks], default=0.0) for truth in one.masks]
        right += len(answer.segments) == len(one.masks)
        wrong += abs(len(answer.segments) - len(one.masks))
    number = len(drawings)
    found = sum(bool(answer.segments) for answer in answers)
    passes = " / ".join(f"{counts[name] / number:.1f}" for name in ("vision tower", "image encoder", "mask decoder"))
    quality = f"{ciou(overlaps):.3f} | {giou(overlaps):.3f} | {np.mean(own):.3f}"
    return f"{found} | {quality} | {right} | {wrong / number:.2f} | {passes} | {seconds / number:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sa2va = Sa2VA.from_pretrained(options.model, device=options.device)
    rows: list[tuple[str, Callable[[int], Drawn], list[dict[str, Any]]]] = [
        ("objects of 6 to 12 pixels", small_object, [{}, {"zoom": True}]),
        ("objects of 24 to 60 pixels", partial(small_object, least=24, most=60), [{}, {"zoom": True}]),
        ("objects of 60 to 120 pixels", partial(small_object, least=60, most=120), [{}, {"zoom": True}]),
        ("look-alikes", look_alikes, [{}, {"instances": True}, {"instances": True, "zoom": True}]),
    ]
    print(f"{options.pictures} pictures each")
    print("| pictures | options | found | cIoU | gIoU | IoU of an object | counts right | off by | passes | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, draw_one, settings in rows:
        drawings = [draw_one(index) for index in range(options.pictures)]
        for chosen in settings:
            print(f"| {name} | {', '.join(chosen) or 'none'} | {measure(sa2va, drawings, **chosen)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
