"""Draws the sentences that turn annotations into conversations; the sentences are in ``sa2va.processing.requests``."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sa2va.processing.requests import SEG_ANSWERS, TrainingRequests


@dataclass(frozen=True)
class Wording:
    """Draws the sentences of one sample. requests: the templates of each task. rng: draws them, in turn."""

    requests: TrainingRequests
    rng: random.Random

    def draw(self, templates: Sequence[str], **placeholders: str) -> str:
        """One of a task's templates, filled in. Of one alone nothing is drawn, so that what follows stays the same."""
        template = templates[0] if len(templates) == 1 else self.rng.choice(templates)
        return template.format(**placeholders)

    def referring(self, text: str, *, video: bool = False) -> str:
        """A request for the mask of a phrase; a question keeps its own words."""
        if "?" in text:
            return self.draw(self.requests.question, phrase=text.strip())
        templates = self.requests.video_referring if video else self.requests.referring
        return self.draw(templates, phrase=phrase_of(text))

    def answer(self, *, found: bool = True) -> str:
        """What answers a request for a mask, if anything is meant by it, and if not."""
        return self.draw(SEG_ANSWERS if found else self.requests.no_target)


def phrase_of(text: str) -> str:
    """A phrase as it is put into a request: in lower case, without space around it and without one final full stop."""
    return text.lower().strip().removesuffix(".").rstrip()
