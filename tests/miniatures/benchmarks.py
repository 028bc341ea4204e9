"""Predictions for benchmarks, and the tiny benchmarks that are no training sets: RefCOCOg regions, DAVIS's label maps.

Objects are boxes, so that scores can be worked out by hand. Letters in shapes: F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from miniatures.images import CROWD, LEFT, MIDDLE, RED, SIZE, area, painted, polygon, save, write_json
from miniatures.videos import FRAMES, Film, film
from sa2va.eval.benchmark import Benchmark, Explains, Prediction
from sa2va.masks.mask import Mask

# -- predictions -------------------------------------------------------------------------------------------------------


def prediction(query_id: str, *masks: np.ndarray, text: str = "", phrases: Sequence[str] = ()) -> Prediction:
    """One prediction. masks: per ``[SEG]``, bool (H, W) or (F, H, W)."""
    frames = [mask if mask.ndim == 3 else mask[None] for mask in masks]
    found = tuple(tuple(map(Mask.from_array, one)) for one in frames)
    return Prediction(query_id, text, text, found, tuple(phrases) or ("",) * len(masks))


def perfect(benchmark: Benchmark) -> dict[str, Prediction]:
    """What a model that knows the truth would say: all masks as one ``[SEG]`` each, and the text."""
    assert isinstance(benchmark, Explains)
    found = {}
    for query in (query for item in benchmark.items() for query in item.queries):
        truth = benchmark.expected(query.id)
        found[query.id] = Prediction(query.id, truth.text, truth.text, truth.masks, ("",) * len(truth.masks))
    return found


def silent(benchmark: Benchmark) -> dict[str, Prediction]:
    """What a model says that never points at anything."""
    ids = [query.id for item in benchmark.items() for query in item.queries]
    return {one: Prediction(one, "", "") for one in ids}


# -- pictures ----------------------------------------------------------------------------------------------------------


def write_region_captions(root: Path) -> dict[int, np.ndarray]:
    """RefCOCOg regions, by their number: an image entry per region, of two pictures; the first has two captions."""
    folder = root / "region_caption"
    regions = {11: (1, LEFT), 12: (1, MIDDLE), 13: (2, CROWD)}
    images, annotations = [], []
    for number, (picture, box) in regions.items():
        name = f"COCO_train2014_{picture:012d}.jpg"
        save(painted((box, RED)), root / "glamm_data/images/coco2014/train2014" / name)
        images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": [polygon(box)]})
    captions = [(11, "a red box"), (11, "the box on the left"), (12, "a blue box"), (13, "a small box")]
    texts = [{"id": place, "image_id": number, "caption": caption} for place, (number, caption) in enumerate(captions)]
    write_json(
        {"images": images, "annotations": annotations},
        folder / "refcocog/finetune_refcocog_val_with_mask.json",
    )
    write_json(
        {"images": [{"id": number} for number in regions], "annotations": texts},
        folder / "mdetr_annotations/finetune_refcocog_val_captions.json",
    )
    return {number: area(box) for number, (_, box) in regions.items()}


# -- Ref-DAVIS17 -------------------------------------------------------------------------------------------------------


def write_davis_labels(root: Path) -> dict[str, Film]:
    """Ref-DAVIS17 with label maps: two objects with four descriptions each; the upper left corner is void.

    The second object is there from the first frame on, unlike in other miniatures, or DAVIS would not look for it.
    """
    folder = root / "video_datas/davis17"
    films = {
        name: _both_from_the_start(film(name, size))
        for name, size in (("soapbox", (40, 56)), ("bike-packing", (44, 60)))
    }
    videos: dict[str, Any] = {}
    for name, one in films.items():
        labels = (one.objects[1] + 2 * one.objects[2]).astype(np.uint8)
        labels[:, :2, :2] = 255
        for frame in range(FRAMES):
            save(one.pictures[frame], folder / f"valid/JPEGImages/{name}/{frame:05d}.jpg")
            path = folder / f"Annotations_unsupervised/480p/{name}/{frame:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(labels[frame])
            picture.putpalette([level for level in range(256) for _ in range(3)])  # fewer colours would cut 255 short
            picture.save(path)
        texts = {
            str(4 * k + n): {"exp": f"object {k} in words {n}", "obj_id": str(k + 1)} for k in (0, 1) for n in range(4)
        }
        videos[name] = {"frames": [f"{frame:05d}" for frame in range(FRAMES)], "expressions": texts}
    write_json({"videos": videos}, folder / "meta_expressions/valid/meta_expressions.json")
    return films


def described(
    films: Mapping[str, Film], name: str, drawn: Callable[[str, int, int], np.ndarray]
) -> dict[str, Prediction]:
    """Predictions for them. drawn: (video, object from 1, set of descriptions) to bool (F, H, W)."""
    ids = [(f"{name}/{video}/{4 * k + n}", video, k + 1, n) for video in films for k in (0, 1) for n in range(4)]
    return {one: prediction(one, drawn(video, number, words)) for one, video, number, words in ids}


def _both_from_the_start(one: Film) -> Film:
    objects = {1: one.objects[1], 2: np.broadcast_to(one.objects[2][-1], one.objects[2].shape).copy()}
    return Film(one.name, one.pictures, objects)
