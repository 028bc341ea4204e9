"""Progress on standard error: a line per log, and a bar in a terminal, instead of Trainer's dictionaries."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Progress(TrainerCallback):
    """Shows the step, the losses, the learning rate, samples per second and the time left, in the first process only.

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
                disable=None,  # in a file it would be a line per step
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
