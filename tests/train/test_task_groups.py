"""One run per group of tasks, from a data set in its published layout to answers of the converted model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from miniatures import images, videos
from sa2va import Sa2VA
from sa2va.checkpoint.conversion import convert
from sa2va.data.sample import Sample
from sa2va.results.answer import Answer
from sa2va.train.config import SourceOptions, TrainConfig
from sa2va.train.losses import LossOptions
from sa2va.train.run import TrainingRun, prepare, train
from sa2va.train.trainable import LoraOptions, TrainableOptions

#: Source by group of tasks, and what writes its miniature.
GROUPS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "referring": ("refcoco", lambda root: images.write_refer(root, "refcoco")),
    "reasoning": ("reasonseg", images.write_reasonseg),
    "grounded captions": ("gcg-grandf", lambda root: images.write_gcg(root, "grandf")),
    "regions": ("osprey-short", lambda root: images.write_osprey(root, "short")),
    "chat": ("llava", images.write_llava),
    "referring in videos": ("mevis", videos.write_mevis),
    "video chat": ("video-chat", videos.write_video_qa),
}
STEPS = 16


def settings(model: Path, folder: Path, source: SourceOptions) -> TrainConfig:
    return TrainConfig(
        report_to=(),
        model=str(model),
        output=str(folder / "run"),
        data=(source,),
        trainable=TrainableOptions(lora=LoraOptions(rank=8, alpha=16, dropout=0.0)),
        loss=LossOptions(points=None),
        steps=STEPS,
        batch_size=2,
        accumulation=1,
        learning_rate=5e-3,
        precision="fp32",
        checkpoint_activations=False,
        workers=0,
        save_every=1000,
        log_every=1,
    )


@dataclass(frozen=True)
class Scored:
    """Answers to the questions of a source, by the user's path. overlap: mean IoU of its masks; None without any."""

    texts: tuple[str, ...]
    overlap: float | None


def ask(sa2va: Sa2VA, sample: Sample) -> Answer | list[str]:
    if sample.regions:
        request = [sample.turns[0].question]
        return sa2va.describe(sample.picture(0), sample.regions[:1], requests=request, max_new_tokens=12)
    medium = list(sample.pictures()) if sample.video else sample.picture(0) if sample.frames else None
    return sa2va.chat(medium, sample.turns[0].question, max_new_tokens=12)


def evaluate(sa2va: Sa2VA, run: TrainingRun) -> Scored:
    texts, overlaps = [], []
    for index in range(len(run.parts[0].source)):
        sample = run.parts[0].source[index]
        answer = ask(sa2va, sample)
        texts.append(answer.raw_text if isinstance(answer, Answer) else answer[0])
        if sample.masks:
            truth, shown = sample.masks[0], np.zeros_like(sample.masks[0])
            if isinstance(answer, Answer) and answer.segments:
                shown = np.stack([mask.array for mask in answer.segments[0].masks])
            overlaps.append((truth & shown).sum() / max(1, (truth | shown).sum()))
    return Scored(tuple(texts), float(np.mean(overlaps)) if overlaps else None)


#: Words and masks in one; the others are slow.
_ALWAYS = ("referring",)


@pytest.mark.parametrize(
    "group", [*_ALWAYS, *(pytest.param(group, marks=pytest.mark.slow) for group in GROUPS if group not in _ALWAYS)]
)
def test_from_files_to_answers(group: str, checkpoint, tmp_path: Path, record_property, capfd):
    """Train, save, convert, load again, evaluate: the loss falls, and what comes back answers as what was trained."""
    kind, write = GROUPS[group]
    write(tmp_path / "data")
    source = SourceOptions(kind, {"root": str(tmp_path / "data")})
    run = prepare(settings(checkpoint("iv25_qwen2"), tmp_path, source))
    output = train(run, progress=False)
    assert output is not None
    history = [row for row in json.loads((output / "trainer_state.json").read_text())["log_history"] if "loss" in row]
    losses = [row["loss"] for row in history]
    assert len(losses) == STEPS
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4]), losses
    masked = [row["dice"] for row in history if "dice" in row]
    assert bool(masked) == bool(run.parts[0].source[0].masks)

    convert(output, tmp_path / "released", "released")
    trained = evaluate(Sa2VA(run.model, run.processor), run)
    reloaded = evaluate(Sa2VA.from_pretrained(tmp_path / "released"), run)
    record_property(group, f"loss {losses[0]:.1f} to {losses[-1]:.1f}, overlap {reloaded.overlap}")
    assert reloaded.texts == trained.texts
    assert (reloaded.overlap is None) == (not masked)
    if reloaded.overlap is not None:
        assert reloaded.overlap == pytest.approx(trained.overlap, abs=1e-3)
        assert any("[SEG]" in text for text in reloaded.texts)
