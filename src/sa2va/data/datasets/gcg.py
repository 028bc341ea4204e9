"""Grounded captions as samples: a request for a description, and a caption whose phrases carry ``[SEG]``."""

from __future__ import annotations

from pathlib import Path

from sa2va.data.annotations.annotated_images import lazy_picture
from sa2va.data.annotations.grounded_captions import GroundedPicture, read_gcg
from sa2va.data.datasets.conversation_sampling import Draws
from sa2va.data.sample import Sample
from sa2va.processing.requests import GROUNDED_PHRASE, TRAINING_REQUESTS, TrainingRequests
from sa2va.results.history import Turn


class Gcg:
    """Pictures with one grounded caption each; every ``<p> phrase </p> [SEG]`` has the union of the phrase's masks.

    Args:
        root: the folder that holds ``glamm_data``. dataset: ``refcocog``, ``grandf``, ``flickr30k`` or ``openpsg``.
        seed: of the wordings. requests: their templates. views: samples per picture, each with a request of its own.
        skip_broken: leave out pictures that are missing or wrongly annotated, with a warning, instead of refusing.

    Raises:
        MissingData: files are missing; the message names them. ValueError: annotations are malformed.
    """

    def __init__(
        self,
        root: str | Path,
        dataset: str = "refcocog",
        *,
        seed: int = 0,
        views: int = 1,
        requests: TrainingRequests = TRAINING_REQUESTS,
        skip_broken: bool = False,
    ):
        self.dataset, self.draws = dataset, Draws(seed, views=views, requests=requests)
        self.pictures = read_gcg(root, dataset, skip_broken=skip_broken)

    def __len__(self) -> int:
        return len(self.pictures) * self.draws.views

    def __getitem__(self, index: int) -> Sample:
        view = self.draws.view(index, len(self.pictures))
        picture, request = self.pictures[view.place], self.draws.wording(index).draw(self.draws.requests.gcg)
        return Sample(
            id=f"gcg-{self.dataset}/{picture.id}{view.suffix}",
            frames=(lazy_picture(picture.image, picture.size()),),
            turns=(Turn(request, _marked(picture)),),
            masks=tuple(picture.mask(grounding).array[None] for grounding in picture.groundings),
            source=f"gcg-{self.dataset}",
        )


def _marked(picture: GroundedPicture) -> str:
    """The caption with its grounded phrases marked."""
    pieces, done = [], 0
    for span in picture.groundings:
        phrase = picture.caption[span.start : span.end]
        pieces += [picture.caption[done : span.start], GROUNDED_PHRASE.format(phrase=phrase)]
        done = span.end
    return "".join([*pieces, picture.caption[done:]])
