"""ReasonSeg as samples of pictures with a turn for each way to ask for their area."""

from __future__ import annotations

from pathlib import Path

from sa2va.data.annotations.annotated_images import lazy_picture
from sa2va.data.annotations.layout import Problems
from sa2va.data.annotations.reasoning import ReasonPicture, read_reasonseg
from sa2va.data.datasets.conversation_sampling import MOST_PHRASES, Draws, Request, requests_sample
from sa2va.data.sample import Sample
from sa2va.masks.mask import Mask
from sa2va.processing.requests import TRAINING_REQUESTS, TrainingRequests


class ReasonSeg:
    """Pictures with questions that take thought, each answered by a mask.

    Areas that do not count are background here. Sentences keep their words, phrases are put into a request.

    Args:
        root: the folder that holds ``lisa_reasoning/<split>`` or ``ReasonSeg/<split>``.
        split: ``train``, ``val`` or ``test``.
        seed, phrases, views, requests: see [`Draws`].
        skip_broken: leave out pictures of which nothing counts, with a warning, instead of refusing.

    Raises:
        MissingData: files are missing; the message names them. ValueError: annotations are malformed.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: str = "train",
        seed: int = 0,
        phrases: int = MOST_PHRASES,
        views: int = 1,
        requests: TrainingRequests = TRAINING_REQUESTS,
        skip_broken: bool = False,
    ):
        self.draws = Draws(seed, phrases, views, requests)
        problems = Problems(f"ReasonSeg {split} in {root}")
        self.pictures = [picture for picture in read_reasonseg(root, split) if _has_target(picture, problems)]
        problems.settle(len(self.pictures), skip=skip_broken)

    def __len__(self) -> int:
        return len(self.pictures) * self.draws.views

    def __getitem__(self, index: int) -> Sample:
        view = self.draws.view(index, len(self.pictures))
        picture, wording = self.pictures[view.place], self.draws.wording(index)
        target = Mask.from_array(picture.masks()[0])
        templates = self.draws.requests.question if picture.is_sentence else self.draws.requests.reasoning
        requests = [
            Request(text, lambda: target, question=wording.draw(templates, phrase=text.strip()))
            for text in self.draws.choose(picture.texts, view)
        ]
        return requests_sample(
            requests,
            wording,
            name=f"reasonseg/{picture.id}{view.suffix}",
            frame=lazy_picture(picture.image, picture.size),
            source="reasonseg",
        )


def _has_target(picture: ReasonPicture, problems: Problems) -> bool:
    kinds = [label.lower() for label, points in picture.shapes if len(points) > 1]
    if any("flag" not in kind and "ignore" not in kind for kind in kinds):
        return True
    problems.malformed("a picture has no polygon that counts", f"{picture.id}.json")
    return False
