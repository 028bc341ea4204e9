"""Items of the benchmarks are what a model can be asked: a tiny random one answers, and its answers are counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from miniatures.benchmarks import write_region_captions
from miniatures.images import write_gcg_truth, write_reasonseg, write_refer
from miniatures.videos import write_mevis
from sa2va.eval.benchmarks import BENCHMARKS
from sa2va.eval.predict import Settings, answer_item, evaluate

WRITERS = {
    "refcoco/val": write_refer,
    "reasonseg/val": lambda root: write_reasonseg(root, "val"),
    "gcg/val": write_gcg_truth,
    "region-caption/refcocog": write_region_captions,
    "mevis/valid_u": lambda root: write_mevis(root, "valid_u"),
}
SETTINGS = Settings(max_new_tokens=4, num_key_frames=2)


@pytest.mark.parametrize(("name", "ask_every"), [*((name, None) for name in WRITERS), ("mevis/valid_u", 2)])
def test_a_model_can_be_asked_and_counted(name, ask_every, tmp_path, sa2va, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)  # Java takes seconds to start
    WRITERS[name](tmp_path)
    benchmark = BENCHMARKS[name].open(tmp_path)
    scores = evaluate(sa2va, benchmark, replace(SETTINGS, ask_every=ask_every), limit=1)
    asked = [query.id for query in benchmark.items()[0].queries]
    assert list(scores.samples) == asked
    assert scores.headline in scores.values
    assert all(0 <= value <= 1 for value in scores.values.values())


def test_a_models_answers_can_be_packed(tmp_path, sa2va):
    write_mevis(tmp_path, "valid")
    benchmark = BENCHMARKS["mevis/valid"].open(tmp_path).limited(1)
    given = [one for item in benchmark.items() for one in answer_item(sa2va, benchmark.kind, item, SETTINGS)]
    path = benchmark.pack({one.id: one for one in given}, tmp_path / "out.zip")
    assert path.stat().st_size > 0
