"""RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and gRefCOCO as samples of pictures with a turn per expression."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sa2va.data.annotations.annotated_images import lazy_picture
from sa2va.data.annotations.coco import is_segmentation
from sa2va.data.annotations.layout import Problems
from sa2va.data.annotations.referring import ReferPicture, read_refer, refer_files
from sa2va.data.datasets.conversation_sampling import MOST_PHRASES, Draws, Request, requests_sample
from sa2va.data.sample import Sample
from sa2va.processing.requests import TRAINING_REQUESTS, TrainingRequests


class Refer:
    """Pictures with everything that people said about their objects.

    All sentences of all references to an object are shown, each as a turn of its own, in a random order that is the
    same whenever a sample is asked for. Masks are unions. An expression without target is answered in words.

    Args:
        root: the folder that holds ``ref_seg``, see [`read_refer`].
        dataset: ``refcoco``, ``refcoco+``, ``refcocog``, ``refclef`` or ``grefcoco``. split: e.g. ``train``.
        split_by: who made the splits; the customary one when None.
        seed, phrases, views, requests: see [`Draws`].
        skip_broken: leave out pictures that are missing or wrongly annotated, with a warning, instead of refusing.

    Raises:
        MissingData: files are missing; the message names them. ValueError: annotations are malformed.
    """

    def __init__(
        self,
        root: str | Path,
        dataset: str = "refcoco",
        *,
        split: str = "train",
        split_by: str | None = None,
        seed: int = 0,
        phrases: int = MOST_PHRASES,
        views: int = 1,
        requests: TrainingRequests = TRAINING_REQUESTS,
        skip_broken: bool = False,
    ):
        self.dataset, self.draws = dataset, Draws(seed, phrases, views, requests)
        pictures = read_refer(root, dataset, split, split_by=split_by)
        *_, origin = refer_files(root, dataset, split_by=split_by).values()
        problems = Problems(f"{dataset} {split} in {root}")
        there = [picture for picture in pictures if problems.present(picture.image, origin)]
        self.pictures = [picture for picture in there if _well_annotated(picture, problems)]
        problems.settle(len(self.pictures), skip=skip_broken)

    def __len__(self) -> int:
        return len(self.pictures) * self.draws.views

    def __getitem__(self, index: int) -> Sample:
        view = self.draws.view(index, len(self.pictures))
        picture = self.pictures[view.place]
        requests = [
            Request(expression.raw, partial(picture.mask, expression) if expression.targets else None)
            for expression in self.draws.choose(picture.expressions, view)
        ]
        return requests_sample(
            requests,
            self.draws.wording(index),
            name=f"{self.dataset}/{picture.id}{view.suffix}",
            frame=lazy_picture(picture.image, picture.size),
            source=self.dataset,
        )


def _well_annotated(picture: ReferPicture, problems: Problems) -> bool:
    targets = sorted({target for expression in picture.expressions for target in expression.targets})
    wrong = [n for n in targets if not is_segmentation(picture.instances.annotations[n].get("segmentation"))]
    silent = [expression.id for expression in picture.expressions if not expression.raw.strip(" .")]
    for number in wrong:
        problems.malformed("an annotation has no polygon of three points and no RLE", f"annotation {number}")
    for name in silent:
        problems.malformed("an expression has no words", f"expression {name}")
    return not wrong and not silent
