"""Summary of a run before it starts: what is trained, the data, and the memory."""

from __future__ import annotations

import shlex
from statistics import median
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sa2va.data.mixture import epochs_to_samples
from sa2va.train.config import SOURCES, TrainConfig
from sa2va.train.estimate import estimate_memory
from sa2va.train.parsing import plain
from sa2va.train.run import TrainingRun
from sa2va.train.trainable import LoraOptions, lora_share


def overview(run: TrainingRun, processes: int = 1) -> list[RenderableType]:
    """Tables and lines, in reading order."""
    return [_plan(run), _data(run), _schedule(run, processes), _memory(run)]


def changes(recipe: TrainConfig, config: TrainConfig, name: str) -> list[RenderableType]:
    """What a configuration overrides of the recipe it came from, setting by setting; nothing where it is the recipe.

    Where a run reads and writes is no part of a recipe.
    """
    then, now = (_settings(plain(each)) for each in (recipe, config))
    different = [key for key in {**then, **now} if then.get(key) != now.get(key) and key not in ("model", "output")]
    if not different:
        return []
    table = Table("setting", name, "this run", title="Different from the recipe", title_justify="left")
    for key in different:
        table.add_row(key, str(then.get(key, "-")), str(now.get(key, "-")))
    return [table]


def _settings(values: Any, key: str = "") -> dict[str, Any]:
    """Nested settings as one level, keys joined by points."""
    if isinstance(values, list) and any(isinstance(value, dict) for value in values):
        values = dict(enumerate(values))
    if not isinstance(values, dict) or not values:
        return {key: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _settings(value, f"{key}.{name}" if key else str(name))
    return flat


def _plan(run: TrainingRun) -> Table:
    table = Table("part", "trained", title="What is trained", title_justify="left")
    for column in ("parameters", "of these trained"):
        table.add_column(column, justify="right")
    for row in run.plan:
        style = "dim" if row.how == "frozen" else "bold" if row.how == "full" else ""
        table.add_row(row.part, row.how, f"{row.total:,}", f"{row.trained:,}", style=style)
    total, trained = (sum(getattr(row, name) for row in run.plan) for name in ("total", "trained"))
    table.add_section()
    table.add_row("all", f"{trained / max(total, 1):.1%}", f"{total:,}", f"{trained:,}")
    table.caption = _reason(run)
    return table


def _reason(run: TrainingRun) -> str | None:
    """Why LoRA, or why not; nothing where it would save something and is left out all the same."""
    lora, width = run.config.trainable.lora, run.model.config.get_text_config().hidden_size
    rank = (lora or LoraOptions()).rank
    share = lora_share(width, rank)
    if not lora and share < 1:
        return None
    has = "LoRA: its rank of {} has" if lora else "no LoRA: a rank of {} would have"
    return f"{has.format(rank)} {share:.0%} of the parameters of a matrix {width:,} wide, as the language model is"


def _data(run: TrainingRun) -> Table:
    table = Table("source", "group", title="Data", title_justify="left")
    for column in ("entries", "views of each", "repeats", "samples an epoch", "share"):
        table.add_column(column, justify="right")
    total = sum(part.count for part in run.parts)
    for options, part in zip(run.config.data, run.parts, strict=True):
        views = options.options.get("views", 1) if options.kind in SOURCES else 1
        counts = (f"{len(part.source) // views:,}", f"{views}", f"{part.repeats:g}", f"{part.count:,}")
        table.add_row(part.name, part.group, *counts, f"{part.count / total:.1%}")
    if run.validation:
        held = sum(len(part.source) for part in run.validation)
        table.caption = f"held out for validation: {held:,} pictures or clips ({run.config.validation:g} by name)"
    return table


def _schedule(run: TrainingRun, processes: int) -> Text:
    config = run.config
    per_step = config.batch_size * config.accumulation * processes
    steps = config.steps or epochs_to_samples(run.parts, config.epochs) // per_step
    tokens = [len(probe.ids) for probe in run.probes]
    length = f", {median(tokens):.0f} tokens each (median of {len(tokens)})" if any(tokens) else ""
    return Text(
        f"{steps:,} steps of {per_step} samples ({config.batch_size} x {config.accumulation} x {processes} processes)"
        f"{length}; learning rate {config.learning_rate:g} after {round(config.warmup * steps):,} steps; "
        f"saved in {config.output} every {config.save_every:,} steps and at the end{_tracked(config)}"
    )


def _tracked(config: TrainConfig) -> str:
    if "tensorboard" not in config.trackers:
        return ""
    return f"; look at the curves with `tensorboard --logdir {shlex.quote(config.output)}`"


def _memory(run: TrainingRun) -> Text:
    estimate = estimate_memory(run.model, run.plan, run.probes, run.config)
    parts = ("weights", "gradients", "optimizer", "activations")
    listed = ", ".join(f"{name} {_bytes(getattr(estimate, name))}" for name in parts)
    return Text(f"memory of a process, about {_bytes(estimate.total)}: {listed}")


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
