"""What the routes of one server share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from sa2va.predictor import Sa2VA
from sa2va.results.answer import Answer
from sa2va.serve.dispatch import Dispatcher
from sa2va.serve.intake import Intake
from sa2va.serve.monitoring import Monitoring
from sa2va.serve.scene_pool import ScenePool
from sa2va.serve.settings import ServerSettings


@dataclass(frozen=True)
class ServerContext:
    """The parts of one server.

    Attributes:
        name: what clients call the model.
        leaving: set as soon as the server begins to shut down.
    """

    settings: ServerSettings
    name: str
    model: Sa2VA
    intake: Intake
    scenes: ScenePool
    dispatcher: Dispatcher
    monitoring: Monitoring
    leaving: asyncio.Event = field(default_factory=asyncio.Event)

    def check_amount(self, phrases: int, characters: int) -> None:
        """Refuse a request of too many phrases or regions, or of too long a text. Raises ValueError."""
        if phrases > self.settings.max_phrases:
            raise ValueError(f"at most {self.settings.max_phrases} phrases or regions are taken; got {phrases}")
        if characters > self.settings.max_characters:
            raise ValueError(f"at most {self.settings.max_characters} characters are taken; got {characters}")

    def longest(self, wanted: int | None) -> int:
        """The limit of an answer's tokens: what the client wants, if the server allows it."""
        return min(wanted or self.settings.max_tokens, self.settings.max_tokens)

    def count_tokens(self, answer: Answer) -> int:
        """Tokens of an answer, which are added to those that the server has written."""
        count = len(self.model.processor.tokenizer(answer.raw_text, add_special_tokens=False)["input_ids"])
        self.monitoring.tokens.inc(count)
        return count
