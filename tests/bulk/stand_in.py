"""A model that answers at once: it finds the left half of every picture, and reads the picture for that."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import ray
import torch

from sa2va import Answer, Mask, Segment
from sa2va.bulk.worker_pool import ModelSource
from sa2va.inference.replies import Reply, Request
from sa2va.media.open import Picture, open_media


class StandIn:
    """What ``sa2va batch`` needs of a model.

    Attributes:
        asked: all requests, in order.
    """

    def __init__(self) -> None:
        self.model = torch.nn.Linear(1, 1)
        self.model.requires_grad_(False)
        self.model.weight[:], self.model.bias[:] = 0, 0
        self.asked: list[Request] = []

    def answers(self, requests: Iterable[Request], *, ahead: int = 16) -> Iterator[Reply]:
        for request in requests:
            self.asked.append(request)
            try:
                with open_media(request.media) as media:
                    frames = 1 if isinstance(media, Picture) else media.frame_count or 1
                    answers = tuple(found_left(text, media.size, frames) for text in _texts(request))
            except Exception as error:
                yield Reply(request, (), error)
            else:
                yield Reply(request, answers, None)


def _texts(request: Request) -> list[str]:
    return request.phrases or [request.question or "caption"]


def found_left(text: str, size: tuple[int, int], frames: int = 1) -> Answer:
    """The left half, or nothing if that is the word."""
    left = np.zeros(size, bool)
    left[:, : size[1] // 2] = True
    found = (
        () if text == "nothing" else (Segment(1, text, (Mask.from_array(left),) * frames, 0.75, 1.0, color=(9, 8, 7)),)
    )
    return Answer(f"It is {text}.", "", found, None if found else "there is none", size)


class StandInSource(ModelSource):
    """Loads a slow stand-in, which writes a line to the file that is its name for every row: process and node."""

    def load(self, worker: int = 0) -> Any:
        stand_in = StandIn()
        answers = stand_in.answers

        def noted(requests: Iterable[Request], *, ahead: int = 16) -> Iterator[Reply]:
            for reply in answers(requests):
                node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
                with open(self.name, "a") as file:
                    file.write(f"{reply.request.id} {os.getpid()} {node}\n")
                time.sleep(0.02)
                yield reply

        stand_in.answers = noted  # type: ignore[method-assign]
        return stand_in
