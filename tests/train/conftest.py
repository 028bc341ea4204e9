"""Where the runs of these tests start: at small checkpoints, of which each is read once."""

from __future__ import annotations

from copy import deepcopy

import pytest

from sa2va import Sa2VAModel, Sa2VAProcessor
from sa2va.train.config import TrainConfig
from sa2va.train.initial_model import load_start


@pytest.fixture(scope="session")
def started() -> dict[tuple[str, str], tuple[Sa2VAModel, Sa2VAProcessor]]:
    """Models and processors by checkpoint and precision, as they were read."""
    return {}


@pytest.fixture
def read_once(
    started: dict[tuple[str, str], tuple[Sa2VAModel, Sa2VAProcessor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs get a copy of what another has read: half of their time would be for reading."""

    def start(config: TrainConfig) -> tuple[Sa2VAModel, Sa2VAProcessor]:
        place = (config.model, config.precision)
        if place not in started:
            started[place] = load_start(config)
        model, processor = started[place]
        return deepcopy(model), processor

    monkeypatch.setattr("sa2va.train.run.load_start", start)
