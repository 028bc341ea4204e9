"""SIGINT and SIGTERM during training: the current step is finished and saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):
    """Ends a run after the step in which a signal came, with a checkpoint; a second signal ends it at once.

    Only in runs of one process: several would stop at different steps and wait for each other.

    Attributes:
        received: whether a signal came.
    """

    def __init__(self) -> None:
        self.received = False
        self._earlier: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Signal handlers belong to the main thread; elsewhere, a signal does what it did before.
        if args.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.received:
            control.should_training_stop = control.should_save = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            self.restore()
            raise KeyboardInterrupt
        self.received = True
