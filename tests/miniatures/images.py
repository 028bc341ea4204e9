"""Tiny picture data sets in the exact layouts of the published ones, with the truth beside them.

Every writer makes two or three pictures of coloured rectangles under a folder of all data and returns what was written.
Polygons have whole numbers for corners, so that their pixels are known exactly. Letters in shapes: H height, W width.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pycocotools import mask as coco

Box = tuple[int, int, int, int]  # x0, y0, x1, y1, ends exclusive
SIZE = (48, 64)
RED, BLUE, GREEN = (220, 40, 40), (50, 80, 230), (40, 200, 60)


@dataclass(frozen=True)
class Said:
    """Words about a picture. mask: bool (H, W), what they mean; all False for nothing."""

    picture: int | str
    text: str
    mask: np.ndarray


@dataclass(frozen=True)
class PictureSet:
    """What a writer wrote.

    Attributes:
        folder: of the annotations. pictures: uint8 (H, W, 3) by id. said: by id of the expression, or a name.
    """

    folder: Path
    pictures: Mapping[int | str, np.ndarray]
    said: Mapping[str, Said] = field(default_factory=dict)


def area(*boxes: Box, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The union of boxes, bool (H, W)."""
    mask = np.zeros(size, dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def polygon(box: Box) -> list[int]:
    """The corners of a box as COCO writes them."""
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed RLE of a bool (H, W) mask, ready for JSON."""
    encoded: Any = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's RLE of a crowd: run lengths as plain numbers."""
    flat = mask.flatten(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def painted(*parts: tuple[Box, tuple[int, int, int]], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Boxes in their colours on grey, uint8 (H, W, 3); later ones cover earlier ones."""
    picture = np.full((*size, 3), 128, dtype=np.uint8)
    for (x0, y0, x1, y1), color in parts:
        picture[y0:y1, x0:x1] = color
    return picture


def save(picture: np.ndarray, path: Path) -> None:
    """Write a picture file, with its folder. JPEG barely changes flat colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(picture).save(path, **options)


def write_json(value: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


# -- referring expressions ---------------------------------------------------------------------------------------------

#: The left object is two overlapping polygons, the crowd on the right run lengths.
LEFT, LEFT_TOO, MIDDLE, CROWD = (2, 4, 14, 20), (8, 10, 22, 26), (30, 8, 42, 24), (46, 20, 62, 44)
SPLITS = {
    "refcoco": ("train", "val", "testA", "testB"),
    "refcoco+": ("train", "val", "testA", "testB"),
    "refcocog": ("train", "val", "test"),
    "refclef": ("train", "val", "testA", "testB", "testBC"),
    "grefcoco": ("train", "val", "testA", "testB"),
}
_SPLIT_BY = {"refcocog": "umd"}


def write_refer(root: Path, dataset: str = "refcoco") -> dict[str, PictureSet]:
    """RefCOCO and its kin, by split: two pictures each, with three objects and four or more expressions per picture.

    The left object has two references, one of them with two sentences. gRefCOCO also has expressions of two objects, of
    an object beside the crowd, and of nothing.
    """
    folder = root / "ref_seg" / dataset
    sets, references, images, annotations = {}, [], [], []
    for split_number, split in enumerate(SPLITS[dataset]):
        pictures, said = {}, {}
        for number in range(split_number * 2 + 1, split_number * 2 + 3):
            pictures[number] = painted((LEFT, RED), (LEFT_TOO, RED), (MIDDLE, BLUE), (CROWD, GREEN))
            pictures[number][0, 0] = (5 * number, 0, 0)
            name = f"COCO_train2014_{number:012d}.jpg"
            save(pictures[number], _refer_pictures(root, dataset) / name)
            images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            annotations += _refer_annotations(number)
            for reference, told in _references(number, split, generalized=dataset == "grefcoco"):
                references.append(reference)
                said |= told
        sets[split] = PictureSet(folder, pictures, said)
    write_json({"images": images, "annotations": annotations, "categories": []}, folder / "instances.json")
    if dataset == "grefcoco":
        write_json(references, folder / "grefs(unc).json")
    else:
        (folder / f"refs({_SPLIT_BY.get(dataset, 'unc')}).p").write_bytes(pickle.dumps(references, protocol=2))
    return sets


def _refer_pictures(root: Path, dataset: str) -> Path:
    if dataset == "refclef":
        return root / "ref_seg/refclef/saiapr_tc-12"
    return root / ("ref_seg/refcoco" if dataset == "refcoco" else "glamm_data/images") / "coco2014/train2014"


def _refer_annotations(picture: int) -> list[dict[str, Any]]:
    segmentations = [[polygon(LEFT), polygon(LEFT_TOO)], [polygon(MIDDLE)], uncompressed(area(CROWD))]
    return [
        {"id": 10 * picture + k, "image_id": picture, "category_id": 1, "iscrowd": int(k == 2), "segmentation": one}
        for k, one in enumerate(segmentations)
    ]


def _references(picture: int, split: str, *, generalized: bool) -> list[tuple[dict[str, Any], dict[str, Said]]]:
    left, middle, crowd = area(LEFT, LEFT_TOO), area(MIDDLE), area(CROWD)
    table: list[tuple[list[int], list[str], np.ndarray]] = [
        ([0], ["The Red one.", "leftmost thing"], left),
        ([0], ["red thing at the left"], left),
        ([1], ["blue box"], middle),
        ([2], ["the green ones"], crowd),
    ]
    if generalized:
        nothing = np.zeros(SIZE, dtype=bool)
        table += [([0, 1], ["red and blue"], left | middle), ([-1], ["a yellow cat"], nothing)]
        table += [([1, 2], ["blue beside the crowd"], middle)]
    found = []
    for row, (targets, sentences, mask) in enumerate(table):
        ids = [10 * picture + k if k >= 0 else -1 for k in targets]
        numbers = [100 * picture + 10 * row + k for k in range(len(sentences))]
        reference = {
            "ref_id": 10 * picture + row,
            "ann_id": ids if generalized else ids[0],
            "image_id": picture,
            "split": split,
            "file_name": f"COCO_train2014_{picture:012d}_{row}.jpg",
            "sentences": [
                {"sent_id": number, "raw": text, "sent": text.lower().rstrip("."), "tokens": text.split()}
                for number, text in zip(numbers, sentences, strict=True)
            ],
        }
        said = {str(number): Said(picture, text, mask) for number, text in zip(numbers, sentences, strict=True)}
        found.append((reference, said))
    return found


# -- reasoning ---------------------------------------------------------------------------------------------------------


def write_reasonseg(root: Path, split: str = "train") -> PictureSet:
    """ReasonSeg: a phrase about a large area with an ignored hole, and a sentence whose file Windows wrote.

    ``said`` is by name and number of the text; see ``ignored_of_reasonseg`` for what does not count.
    """
    folder = root / "lisa_reasoning" / split
    pictures = {"phrase": painted(((4, 4, 41, 41), RED)), "sentence": painted(((20, 10, 41, 31), BLUE))}
    large, hole, small = (4, 4, 40, 40), (10, 10, 20, 20), (20, 10, 40, 30)
    shapes = {
        # The small polygon covers the large one, although the file has it first.
        "phrase": [("Ignore", hole), ("target", large), ("flag", (0, 0, 60, 44))],
        "sentence": [("target", small)],
    }
    texts = {"phrase": ["the hot thing"], "sentence": ["What warms a caf\u00e9?", "Where is the heat?"]}
    for name, picture in pictures.items():
        save(picture, folder / f"{name}.jpg")
        record = {
            "text": texts[name],
            "is_sentence": name == "sentence",
            "shapes": [
                {"label": label, "points": np.reshape(polygon(box), (-1, 2)).tolist()} for label, box in shapes[name]
            ],
        }
        encoding = "cp1252" if name == "sentence" else "utf-8"
        (folder / f"{name}.json").write_text(json.dumps(record, ensure_ascii=False), encoding=encoding)
    masks = {"phrase": _outlined(large) & ~_outlined(hole), "sentence": _outlined(small)}
    said = {
        f"{name}/{number}": Said(name, text, masks[name])
        for name, own in texts.items()
        for number, text in enumerate(own)
    }
    return PictureSet(folder, pictures, said)


def ignored_of_reasonseg() -> np.ndarray:
    """What does not count in the picture "phrase", bool (H, W)."""
    return _outlined((10, 10, 20, 20))


def _outlined(box: Box) -> np.ndarray:
    """A polygon painted with its outline: the pixels of its corners belong to it."""
    x0, y0, x1, y1 = box
    return area((x0, y0, x1 + 1, y1 + 1))


# -- grounded captions -------------------------------------------------------------------------------------------------


def write_gcg(
    root: Path, dataset: Literal["refcocog", "grandf", "flickr30k", "openpsg"]
) -> dict[str, tuple[str, list]]:
    """GLaMM's grounded captions: by picture, the answer that is to be learnt and its masks, bool (H, W) each.

    Phrases overlap, repeat, stand inside words, and count from a caption with a quote before it.
    """
    annotations = root / "glamm_data/annotations"
    images = root / "glamm_data/images"
    picture = painted((LEFT, RED), (MIDDLE, BLUE), (CROWD, GREEN))
    if dataset == "refcocog":
        save(picture, images / "coco2014/train2014/COCO_train2014_000000000007.jpg")
        write_json(_gcg_refcocog(), annotations / "RefCOCOg_GCG_train.json")
        text = "<p> man in red </p> [SEG] near a woman and <p> a man </p> [SEG] with <p> a man </p> [SEG] on top"
        return {"7": (text, [area(LEFT, LEFT_TOO), area(MIDDLE), area(CROWD)])}
    if dataset == "flickr30k":
        save(picture, images / "flickr30k/Flickr30K/33.jpg")
        write_json(_gcg_flickr(), annotations / "flickr_mergedGT_GCG_train.json")
        text = "<p> Two men </p> [SEG] sit on <p> a bench </p> [SEG] ."
        return {"1": (text, [area(LEFT, MIDDLE), area(CROWD)])}
    folder, file = ("grandf/train", "GranDf_HA") if dataset == "grandf" else ("coco2017/train2017", "OpenPsg")
    save(picture, images / folder / "9.jpg")
    name = "9.jpg" if dataset == "grandf" else "train2017/9.jpg"
    annotation = f"{file}_GCG_train.json" if dataset == "grandf" else f"{file}GCG_train.json"
    write_json(_gcg_generic(name), annotations / annotation)
    return {"9": ("<p> A red sofa </p> [SEG] by <p> two boxes </p> [SEG] .", [area(LEFT), area(MIDDLE, CROWD)])}


def _gcg_refcocog() -> list[dict[str, Any]]:
    references = [
        {"sentence": "A man", "segmentation": [polygon(MIDDLE)]},
        {"sentence": "Man in red", "segmentation": [polygon(LEFT), polygon(LEFT_TOO)]},
        {"sentence": "a man", "segmentation": [polygon(CROWD)]},
        {"sentence": "red near", "segmentation": [polygon(MIDDLE)]},  # overlaps "man in red"
        {"sentence": "a giraffe", "segmentation": [polygon(MIDDLE)]},  # is not said
        {"sentence": "oman", "segmentation": [polygon(MIDDLE)]},  # only inside a word
    ]
    caption = ' "Man in red near a woman and a man with a man on top" '
    return [{"7": {"img_file_name": "COCO_train2014_000000000007.jpg", "caption": caption, "refs": references}}]


def _gcg_generic(name: str) -> list[dict[str, Any]]:
    caption = '" A red sofa by two boxes . '

    def grounding(phrase: str, *boxes: Box, bare: bool = False) -> dict[str, Any]:
        start = (caption.strip('" ') if bare else caption).index(phrase)
        return {"token_positives": [start, start + len(phrase)], "rle_masks": [rle(area(box)) for box in boxes]}

    groundings = {
        "two boxes": grounding("two boxes", MIDDLE, CROWD, bare=True),
        "A red sofa": grounding("A red sofa", LEFT),
        "red sofa": grounding("red sofa", MIDDLE),  # inside of "A red sofa"
    }
    empty = {"file_name": name, "caption": "Nothing is grounded.", "groundings": {}}
    return [{"file_name": name, "caption": caption, "groundings": groundings}, empty]


def _gcg_flickr() -> dict[str, Any]:
    caption = "Two men sit on a bench ."
    image = {"file_name": "33.jpg", "height": SIZE[0], "width": SIZE[1]}

    def annotation(number: int, phrase: str, box: Box, **more: Any) -> dict[str, Any]:
        x0, y0, x1, y1 = box
        start = caption.index(phrase)
        entry = {"id": number, "image_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
        spans = [[start, start + len(phrase)], [0, 3]]
        return entry | {"tokens_positive": spans, "sam_mask": rle(area(box))} | more

    return {
        "images": [{"id": 1, "caption": caption, **image}, {"id": 2, "caption": "Too short", **image}],
        "annotations": [
            annotation(1, "a bench", CROWD),
            annotation(2, "Two men", LEFT),
            annotation(3, "Two men", MIDDLE),  # the same words for another box
            annotation(4, "sit", MIDDLE, ignore=1),
            annotation(5, "on", MIDDLE, bbox=[70, 0, 5, 5]),  # outside of the picture
            annotation(6, "Two men", MIDDLE, image_id=2),
        ],
    }


def write_gcg_truth(root: Path, split: str = "val") -> PictureSet:
    """The GranDf benchmark: two pictures; ``said`` is by picture and number of the label."""
    annotations, images = root / "glamm_data/annotations/gcg_val_test", root / "glamm_data/images/grandf/val_test"
    pictures = {"sa_1": painted((LEFT, RED), (MIDDLE, BLUE)), "sa_2": painted((CROWD, GREEN))}
    table = {"sa_1": [("a red box", LEFT), ("a blue box", MIDDLE)], "sa_2": [("a green box", CROWD)]}
    captions = {"sa_1": "a red box left of a blue box", "sa_2": "a green box"}
    for name, picture in pictures.items():
        save(picture, images / f"{name}.jpg")
    masks = [
        {"id": number, "image_id": name, "category_id": 1, "segmentation": rle(area(box)), "iscrowd": 0}
        | {"area": int(area(box).sum()), "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
        for number, (name, box) in enumerate([(name, box) for name in table for _, box in table[name]], start=1)
    ]
    sizes = [{"id": name, "height": SIZE[0], "width": SIZE[1]} for name in pictures]
    texts = [
        {"id": number, "image_id": name, "caption": captions[name], "labels": [label for label, _ in table[name]]}
        for number, name in enumerate(table)
    ]
    categories = [{"id": 1, "name": "object"}]
    content = {"images": sizes, "annotations": masks, "categories": categories}
    write_json(content, annotations / f"{split}_gcg_coco_mask_gt.json")
    write_json({"images": sizes, "annotations": texts}, annotations / f"{split}_gcg_coco_caption_gt.json")
    said = {
        f"{name}/{number}": Said(name, label, area(box))
        for name, labels in table.items()
        for number, (label, box) in enumerate(labels)
    }
    return PictureSet(annotations, pictures, said)


# -- conversations -----------------------------------------------------------------------------------------------------


def write_llava(root: Path) -> dict[str, list[tuple[str, str]]]:
    """LLaVA's mix: by sample id, the turns to be learnt. Pictures first and last, several turns, text, odd entries."""
    save(painted((LEFT, RED)), root / "llava_data/llava_images/coco/train2017/1.jpg")

    def entry(*texts: str, image: str | None = "coco/train2017/1.jpg", first: int = 0) -> dict[str, Any]:
        speakers = ("human", "gpt")
        messages = [{"from": speakers[(k + first) % 2], "value": text} for k, text in enumerate(texts)]
        return {"id": "000000000001", "conversations": messages} | ({"image": image} if image else {})

    joined = entry("<image>\nWhat is ", image="coco/train2017/1.jpg")
    joined["conversations"] += [{"from": "human", "value": "this?"}, {"from": "gpt", "value": "A box."}]
    entries = [
        entry("<image>\nWhat is red?", " The box.\n", "And blue?", "Nothing."),
        entry("What is left?\n<image>", "A box."),
        entry("Say hello.", "Hello.", image=None),
        entry("I begin.", "Then I ask.", "And I answer.", image=None, first=1),
        entry("What is HTML?", "A language.", "Show some.", "<p>text", "Thanks.", "Welcome.", image=None),
        entry("", "Nothing was asked.", image=None),
        joined,
    ]
    write_json(entries, root / "llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json")
    return {
        "llava/0": [("What is red?", "The box."), ("And blue?", "Nothing.")],
        "llava/1": [("What is left?\n<image>", "A box.")],
        "llava/2": [("Say hello.", "Hello.")],
        "llava/3": [("Then I ask.", "And I answer.")],
        "llava/4": [("What is HTML?", "A language.")],
        "llava/6": [("What is this?", "A box.")],
    }


def write_osprey(root: Path, kind: str = "conversation") -> list[np.ndarray]:
    """Osprey: one picture with two regions, polygons and run lengths. Returns the regions, bool (H, W) each."""
    base = root / "osprey-724k"
    files = {
        "conversation": "osprey_conversation",
        "description": "osprey_detail_description",
        "part": "osprey_part_level",
        "positive_neg": "osprey_lvis_positive_negative",
        "short": "osprey_short_form",
    }
    save(painted((LEFT, RED), (LEFT_TOO, RED), (MIDDLE, BLUE)), base / "coco/val2014/COCO_val2014_000000000003.jpg")
    entry: dict[str, Any] = {
        "file_name": "COCO_val2014_000000000003.jpg",
        "height": SIZE[0],
        "width": SIZE[1],
        "annotation": [
            {"segmentation": [polygon(LEFT), polygon(LEFT_TOO)]},
            {"segmentation": uncompressed(area(MIDDLE))},
        ],
    }
    if kind == "description":
        entry["description"] = ["<region1>: a red corner.", "A blue box."]
    else:
        texts = ["What is <region1>?", "It is <red>.", "And <region2>?", "Blue, unlike <region1>."]
        entry["conversations"] = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]
    write_json([entry], base / "Osprey-724K" / f"{files[kind]}.json")
    return [area(LEFT, LEFT_TOO), area(MIDDLE)]


# -- data of one's own -------------------------------------------------------------------------------------------------


def write_own_coco(root: Path) -> dict[str, dict[str, np.ndarray | None]]:
    """COCO with phrases, categories and captions: by picture, each phrase with its mask, captions with None."""
    for name in ("a.jpg", "b.jpg"):
        save(painted((LEFT, RED), (MIDDLE, BLUE), (CROWD, GREEN)), root / "images" / name)
    shape = {"height": SIZE[0], "width": SIZE[1]}
    content = {
        "images": [
            {"id": 1, "file_name": "a.jpg", **shape},
            {"id": 2, "file_name": "b.jpg", "caption": "Three boxes.", **shape},
            {"id": 3, "file_name": "unlabelled.jpg", **shape},
        ],
        "categories": [{"id": 5, "name": "Box"}],
        "annotations": [
            {"id": 1, "image_id": 1, "segmentation": [polygon(LEFT)], "phrase": ["The red box.", "leftmost"]},
            {"id": 2, "image_id": 1, "segmentation": [polygon(MIDDLE)], "caption": "a blue box"},
            {"id": 3, "image_id": 2, "category_id": 5, "segmentation": [polygon(LEFT)]},
            {"id": 4, "image_id": 2, "category_id": 5, "segmentation": uncompressed(area(CROWD)), "iscrowd": 1},
            {"id": 5, "image_id": 2, "caption": "Boxes stand side by side."},
        ],
    }
    write_json(content, root / "annotations.json")
    return {
        "a.jpg": {"the red box": area(LEFT), "leftmost": area(LEFT), "a blue box": area(MIDDLE)},
        "b.jpg": {"box": area(LEFT, CROWD), "Three boxes.": None, "Boxes stand side by side.": None},
    }


MaskForm = Literal["index", "common", "binary", "folders"]


def write_own_masks(root: Path, form: MaskForm) -> dict[str, dict[str, np.ndarray]]:
    """PNG masks with ``phrases.json``, in one of four forms: by picture, each phrase with its mask."""
    left, middle = area(LEFT), area(MIDDLE)
    for name in ("one", "two"):
        save(painted((LEFT, RED), (MIDDLE, BLUE)), root / "images" / f"{name}.jpg")
    numbers = left * 1 + middle * 7
    phrases: Any
    if form in ("index", "common"):
        for name, kept in (("one", numbers), ("two", numbers * (form == "index"))):
            mask = Image.fromarray(kept.astype(np.uint8))
            mask.putpalette([k % 256 for k in range(768)])  # the index counts, not the colour
            (root / "masks").mkdir(exist_ok=True)
            mask.save(root / "masks" / f"{name}.png")
        own = {"1": ["the red box", "leftmost"], "7": "the blue box"}
        phrases = own if form == "common" else {"one": own, "two": {"7": "blue"}}
        truth = {"the red box": left, "leftmost": left, "the blue box": middle}
        write_json(phrases, root / "phrases.json")
        return {"one": truth, "two": {"blue": middle} if form == "index" else {}}
    if form == "binary":
        save(left.astype(np.uint8) * 255, root / "masks/one.png")
        save(middle.astype(np.uint8), root / "masks/two.png")
        phrases = {"one": "the red box", "two": ["blue", "the blue one"]}
        truths = {"one": {"the red box": left}, "two": {"blue": middle, "the blue one": middle}}
    else:
        save(left.astype(np.uint8) * 255, root / "masks/one/box.png")
        save(middle.astype(np.uint8) * 255, root / "masks/one/2.png")
        phrases = {"one": {"box": "the red box", "2": "the blue box"}}
        truths = {"one": {"the red box": left, "the blue box": middle}}
    write_json(phrases, root / "phrases.json")
    return truths
