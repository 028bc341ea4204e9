"""Ten samples by heart: ``sa2va train finetune`` teaches ``tiny`` any kind of source, answered by the user's path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from miniatures.ten import COUNT, MASK_SOURCES, TEXT_SOURCES
from sa2va import Sa2VA, zoo
from sa2va.data.mixture import Source
from sa2va.data.sample import Sample
from sa2va.train.presets import preset
from sa2va.train.run import TrainingRun, prepare, train

#: Clips of four frames take fewer steps than pictures, and words fewer than masks.
STEPS = dict.fromkeys(MASK_SOURCES, 250) | dict.fromkeys(TEXT_SOURCES, 100)
STEPS |= {"video-json": 100, "ref-sav": 160, "video-chat": 160, "llava": 240, "osprey-short": 240}


def learnt(kind: str, folder: Path) -> tuple[Sa2VA, TrainingRun]:
    """A model that was fine-tuned on ten samples, loaded again."""
    words = [f"model={zoo.TINY}", f"data={folder / 'data'}", f"output={folder / 'run'}", f"kind={kind}"]
    run = prepare(preset("finetune", [*words, f"steps={STEPS[kind]}", "workers=0"]))
    output = train(run, progress=False)
    assert output is not None
    return Sa2VA.from_pretrained(output), run


def first_ten(source: Source) -> list[Sample]:
    """Every entry once; other samples of a source are other views of the same ten."""
    assert len(source) in (COUNT, 100 * COUNT)
    return [source[index] for index in range(COUNT)]


def overlap(sa2va: Sa2VA, sample: Sample) -> float:
    """IoU of what the model draws when it is asked what it was trained on, over all frames."""
    medium = list(sample.pictures()) if sample.video else sample.picture(0)
    answer = sa2va.chat(medium, sample.turns[0].question, max_new_tokens=40)
    truth, drawn = sample.masks[0], np.zeros_like(sample.masks[0])
    if answer.segments:
        drawn = np.stack([mask.array for mask in answer.segments[0].masks])
    return float((truth & drawn).sum() / max(1, (truth | drawn).sum()))


def answered(sa2va: Sa2VA, sample: Sample) -> str:
    """What the model says when it is asked what it was trained on."""
    question = sample.turns[0].question
    if sample.regions:
        return sa2va.describe(sample.picture(0), sample.regions, requests=[question], max_new_tokens=40)[0]
    medium = list(sample.pictures()) if sample.video else sample.picture(0)
    return sa2va.chat(medium, question, max_new_tokens=40).text


@pytest.mark.slow
@pytest.mark.parametrize("kind", MASK_SOURCES)
def test_ten_masks_are_learnt_by_heart(kind: str, tmp_path: Path, record_property, capfd):
    MASK_SOURCES[kind](tmp_path / "data")
    sa2va, run = learnt(kind, tmp_path)
    overlaps = [overlap(sa2va, sample) for sample in first_ten(run.parts[0].source)]
    record_property(kind, f"IoU {np.mean(overlaps):.3f}, least {min(overlaps):.3f}")
    assert np.mean(overlaps) > 0.9, overlaps


@pytest.mark.slow
@pytest.mark.parametrize("kind", TEXT_SOURCES)
def test_ten_answers_are_learnt_by_heart(kind: str, tmp_path: Path, record_property, capfd):
    TEXT_SOURCES[kind](tmp_path / "data")
    sa2va, run = learnt(kind, tmp_path)
    samples = first_ten(run.parts[0].source)
    expected = [sample.turns[0].answer for sample in samples]
    answers = [answered(sa2va, sample) for sample in samples]
    right = sum(one == other for one, other in zip(answers, expected, strict=True))
    record_property(kind, f"{right} of {COUNT} answers exact")
    assert len(set(expected)) == COUNT and answers == expected
