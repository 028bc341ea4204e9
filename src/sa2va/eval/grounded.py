"""The metrics of grounded captions: mask AP, greedy mIoU, and recall of phrases with their masks.

Each image has predicted masks with phrases, and true masks with labels, in no particular order. Source: GLaMM
(arXiv 2311.03356), whose script set all three definitions. Recall is defined with the mean last hidden state of
bert-base-uncased and the cosine of two of them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sa2va.masks.mask import Mask

if TYPE_CHECKING:
    import torch

#: How alike two phrases are, 0..1.
Similarity = Callable[[str, str], float]
#: A phrase with its mask counts as found when both reach this.
LEAST_IOU = LEAST_SIMILARITY = 0.5
#: Of a phrase that the encoder reads.
MAX_TOKENS = 512
_BATCH = 64


@dataclass(frozen=True)
class Grounded:
    """Masks of one image and what each of them is called.

    Attributes:
        masks, phrases: of equal length; a mask without words has the phrase "".
    """

    masks: tuple[Mask, ...]
    phrases: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.masks) != len(self.phrases):
            raise ValueError(f"expected a phrase per mask, got {len(self.phrases)} phrases and {len(self.masks)} masks")


def iou_matrix(rows: Sequence[Mask], columns: Sequence[Mask]) -> NDArray[np.float64]:
    """IoU of every pair, float64 (R, C); two empty masks have 0. Raises ValueError for masks of different sizes."""
    if not rows or not columns:
        return np.zeros((len(rows), len(columns)))
    sizes = {mask.size for mask in (*rows, *columns)}
    if len(sizes) > 1:
        raise ValueError(f"expected masks of one picture, got sizes (h, w) {sorted(sizes)}")
    # pycocotools gives 0/0 for two empty masks; a picture has no business with either, so it is 0.
    ours, theirs = ([cast(Any, mask.rle) for mask in masks] for masks in (rows, columns))
    return np.nan_to_num(np.asarray(coco_mask.iou(ours, theirs, [0] * len(columns)), dtype=np.float64))


def greedy_miou(predicted: Sequence[Mask], true: Sequence[Mask]) -> float:
    """Mean IoU of the pairs that are matched, best first, each mask once; 0 where no pair overlaps.

    Masks that find no partner do not count against it.
    """
    matched = [iou for _, _, iou in best_pairs(iou_matrix(predicted, true)) if iou > 0]
    return float(np.mean(matched)) if matched else 0.0


def found_phrases(predicted: Grounded, true: Grounded, similarity: Similarity) -> int:
    """How many true phrases are found: masks matched best first, until a pair is too unlike in mask or words.

    The official script stops at the first pair that fails rather than going on to the next; so does this.
    """
    found = 0
    for row, column, iou in best_pairs(iou_matrix(true.masks, predicted.masks)):
        if iou < LEAST_IOU or similarity(predicted.phrases[column], true.phrases[row]) < LEAST_SIMILARITY:
            break
        found += 1
    return found


def phrase_recall(
    predicted: Mapping[str, Grounded], true: Mapping[str, Grounded], similarity: Similarity
) -> tuple[float, dict[str, float]]:
    """Share of all true phrases that are found, and the same per image; 1 where an image has none."""
    found = {name: found_phrases(predicted[name], one, similarity) for name, one in true.items()}
    total = sum(len(one.phrases) for one in true.values())
    each = {name: found[name] / len(one.phrases) if one.phrases else 1.0 for name, one in true.items()}
    return sum(found.values()) / total if total else 1.0, each


def average_precision(
    predicted: Mapping[str, Sequence[Mask]], true: Mapping[str, Sequence[Mask]]
) -> tuple[float, float]:
    """COCO's mask AP and AP50 of one class, every prediction with score 1.

    With equal scores AP depends on the order of the images and, within one, of the masks: it is the order of ``true``
    and of each sequence. At most 100 masks of an image count.

    Returns:
        AP averaged over IoU 0.5 to 0.95, and AP at 0.5; both 0 where nothing is predicted.
    """
    images = {name: number for number, name in enumerate(true, start=1)}
    annotations = [_annotation(images[name], mask) for name, masks in true.items() for mask in masks]
    detections = [_annotation(images[name], mask) for name in true for mask in predicted[name]]
    if not detections or not annotations:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(images, annotations), _coco(images, detections), "segm")
        evaluation.params.catIds = [1]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def best_pairs(ious: NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """(row, column, IoU), the best first, no row and no column twice."""
    ious = ious.copy()
    pairs = []
    for _ in range(min(ious.shape)):
        row, column = np.unravel_index(int(ious.argmax()), ious.shape)
        pairs.append((int(row), int(column), float(ious[row, column])))
        ious[row], ious[:, column] = -1, -1
    return pairs


def _annotation(image: int, mask: Mask) -> dict[str, Any]:
    x0, y0, x1, y1 = mask.box or (0.0, 0.0, 0.0, 0.0)
    return {
        "image_id": image,
        "category_id": 1,
        "segmentation": mask.rle,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": mask.area,
        "iscrowd": 0,
        "score": 1.0,
    }


def _coco(images: Mapping[str, int], annotations: list[dict[str, Any]]) -> COCO:
    sizes = {one["image_id"]: one["segmentation"]["size"] for one in annotations}
    coco: Any = COCO()
    coco.dataset = {
        "images": [
            {"id": number, "height": height, "width": width}
            for number in images.values()
            for height, width in [sizes.get(number, (1, 1))]
        ],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [{**one, "id": number} for number, one in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


class EncoderSimilarity:
    """Cosine of the mean-pooled last hidden states of two phrases, by an encoder in a local folder.

    Args:
        folder: an encoder and its tokenizer as transformers saves them, e.g. a copy of bert-base-uncased.

    Raises:
        ValueError: the folder is not there or holds no encoder.
    """

    def __init__(self, folder: str | Path):
        from transformers import AutoModel, AutoTokenizer

        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"expected a text encoder as transformers saves it in {folder}: there is no config.json")
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self._model = AutoModel.from_pretrained(str(folder), local_files_only=True).float().eval()
        self._known: dict[str, torch.Tensor] = {}

    def prepare(self, phrases: Iterable[str]) -> None:
        """Encode phrases in batches, short ones with short ones; later comparisons look them up."""
        new = sorted(set(phrases) - self._known.keys(), key=lambda phrase: (len(phrase), phrase))
        for start in range(0, len(new), _BATCH):
            part = new[start : start + _BATCH]
            self._known.update(zip(part, self._encode(part), strict=True))

    def __call__(self, one: str, other: str) -> float:
        """Cosine, -1..1."""
        self.prepare((one, other))
        return float(self._known[one] @ self._known[other])

    def _encode(self, phrases: list[str]) -> torch.Tensor:
        """Unit vectors, float32 (N, C)."""
        import torch

        tokens = self._tokenizer(phrases, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            states = self._model(**tokens).last_hidden_state
        kept = tokens["attention_mask"][..., None]
        return torch.nn.functional.normalize((states * kept).sum(1) / kept.sum(1), dim=-1)
