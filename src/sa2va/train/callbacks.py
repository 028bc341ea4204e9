"""What happens around the steps of a run: progress that a person reads, and an end that loses nothing on a signal."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sa2va.runtime import in_notebook

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Progress(TrainerCallback):
    """Shows the step, the losses, the learning rate, samples per second and the time left, in the first process only.

    One line per log on standard error, and a bar where it is a terminal, instead of Trainer's dictionaries.

    Attributes:
        samples_per_step: of all processes together.
    """

    def __init__(self, samples_per_step: int):
        self.samples_per_step = samples_per_step
        self._bar: tqdm | None = None
        self._since = (0, time.perf_counter())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._since = (state.global_step, time.perf_counter())
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                file=sys.stderr,
                dynamic_ncols=True,
                disable=False if in_notebook() else None,  # in a file it would be a line per step
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._bar is None or not logs:
            return
        if "eval_loss" in logs:
            held_out = [f"{name.removeprefix('eval_')} {value:.4g}" for name, value in logs.items() if "eval_" in name]
            self._bar.write(f"step {state.global_step}, held out: {', '.join(held_out)}", file=sys.stderr)
        if "loss" not in logs:
            return
        step, start = self._since
        self._since = (state.global_step, time.perf_counter())
        seconds = max(time.perf_counter() - start, 1e-9) / max(1, state.global_step - step)
        left = tqdm.format_interval((state.max_steps - state.global_step) * seconds)
        numbers = [f"{name} {value:.4g}" for name, value in logs.items() if name != "epoch"]
        numbers += [f"{self.samples_per_step / seconds:.1f} samples/s", f"{left} left"]
        self._bar.write(f"step {state.global_step} of {state.max_steps}: {', '.join(numbers)}", file=sys.stderr)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


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
