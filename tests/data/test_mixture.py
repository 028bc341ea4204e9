"""The pipeline of a run: broken samples are named and bounded, long ones lose whole turns, groups cover everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from rectangles import Rectangles
from sa2va import Sa2VA
from sa2va.data.encode import Encoded, EncodeOptions, SampleRejected, encode_sample
from sa2va.data.mixture import EncodedDataset, MixtureEntry, MixtureOrder, SampleCounters, SampleIndex
from sa2va.data.sample import LazyFrame, Sample
from sa2va.processing.processor import Sa2VAProcessor


@pytest.fixture(scope="module")
def processor(sa2va: Sa2VA) -> Sa2VAProcessor:
    return sa2va.processor


# -- broken samples ----------------------------------------------------------------------------------------------------


class Damaged:
    """Rectangles, of which some have an unreadable picture and some a wrong annotation."""

    def __init__(self, count: int, unreadable: Collection[int] = (), wrong: Collection[int] = ()):
        self.good, self.unreadable, self.wrong = Rectangles(count), unreadable, wrong

    def __len__(self) -> int:
        return len(self.good)

    def __getitem__(self, index: int) -> Sample:
        sample = self.good[index]
        if index in self.unreadable:
            frame = LazyFrame(partial(_unreadable, f"picture {index}"), (48, 64))
            return replace(sample, frames=(frame,))
        return replace(sample, masks=sample.masks[:-1]) if index in self.wrong else sample


def _unreadable(name: str) -> np.ndarray:
    raise OSError(f"cannot read {name}")


def _encode(sample: Sample, _: np.random.Generator, *, processor: Sa2VAProcessor) -> Encoded:
    return encode_sample(sample, processor)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_samples_are_replaced_counted_and_named(
    processor: Sa2VAProcessor, workers: int, caplog: pytest.LogCaptureFixture
):
    source = Damaged(12, unreadable={3}, wrong={7, 8})
    dataset = EncodedDataset(
        [MixtureEntry("mixed", source)], partial(_encode, processor=processor), seed=0, workers=workers, max_broken=0.01
    )
    order = [SampleIndex(position, 0, position) for position in range(12)]
    context = "fork" if workers else None
    loader = DataLoader(dataset, sampler=order, batch_size=None, num_workers=workers, multiprocessing_context=context)
    ids = [encoded.id for encoded in loader]
    assert ids == [f"rectangles-{4 if i == 3 else 9 if i in (7, 8) else i}" for i in range(12)]
    assert dataset.count(SampleCounters.ASKED) == 12
    assert dataset.count(SampleCounters.BROKEN) == 4  # the eighth on its own visit, and in place of the seventh
    assert dataset.count(SampleCounters.REJECTED) == 0
    assert dataset.broken_samples() == ["mixed[3]", "mixed[7]", "mixed[8]"]
    dataset.check()
    if not workers:
        assert "broken sample mixed[3], replaced by the next one: cannot read picture 3" in caplog.text
        assert "'rectangles-7'" in caplog.text and caplog.text.count("mixed[8]") == 1


def test_training_stops_above_the_allowed_rate(processor: Sa2VAProcessor):
    dataset = EncodedDataset(
        [MixtureEntry("mixed", Damaged(8, unreadable={5}))],
        partial(_encode, processor=processor),
        seed=0,
        max_broken=0.002,
    )
    for position in range(3):  # at least a thousand samples count, so two may be broken
        dataset.check()
        dataset[SampleIndex(position, 0, 5)]
    with pytest.raises(ValueError, match=r"3 of 3 samples are broken, .*max_broken=0\.002.*mixed\[5\]"):
        dataset.check()
    strict = EncodedDataset(dataset.parts, dataset.encode, seed=0, max_broken=0)
    strict[SampleIndex(0, 0, 1)]
    strict.check()
    strict[SampleIndex(1, 0, 5)]
    with pytest.raises(ValueError, match="1 of 2 samples"):
        strict.check()


def test_a_source_that_is_broken_throughout_stops_at_once(processor: Sa2VAProcessor):
    source = Damaged(4, unreadable=set(range(4)))
    dataset = EncodedDataset([MixtureEntry("bad", source)], partial(_encode, processor=processor), seed=0, max_broken=1)
    with pytest.raises(ValueError, match=r"'bad': 100 samples in a row .*cannot read picture"):
        dataset[SampleIndex(0, 0, 0)]


# -- long samples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 4])
def test_a_long_sample_is_cut_between_turns_only(processor: Sa2VAProcessor, frames: int):
    sample = Rectangles(frames=frames)[2]
    whole = encode_sample(sample, processor)
    by_turns = [
        encode_sample(replace(sample, turns=sample.turns[:n], masks=sample.masks[:n]), processor) for n in (1, 2, 3)
    ]
    assert whole.masks is not None
    images = whole.ids.tolist().count(processor.image_token_id)
    for max_length in range(len(by_turns[0].ids) - 3, len(whole.ids) + 2):
        options = EncodeOptions(max_length=max_length)
        fitting = [encoded for encoded in by_turns if len(encoded.ids) <= max_length]
        if not fitting:
            with pytest.raises(SampleRejected, match="'rectangles-2'"):
                encode_sample(sample, processor, options)
            continue
        cut = encode_sample(sample, processor, options)
        assert torch.equal(cut.ids, fitting[-1].ids) and torch.equal(cut.labels, fitting[-1].labels)
        assert cut.turns_dropped == 3 - len(fitting)
        assert cut.ids.tolist().count(processor.image_token_id) == images
        assert cut.masks is not None and torch.equal(cut.masks, whole.masks[: len(fitting)])


# -- order -------------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 3)), min_size=3, max_size=5), st.integers(1, 4))
def test_groups_cover_every_sample_whatever_comes_before_them(rows: list[tuple[int, int]], batch_size: int):
    parts = [
        MixtureEntry(str(k), Rectangles(n), repeats, "clips" if k % 2 else "pictures")
        for k, (n, repeats) in enumerate(rows)
    ]
    total = sum(part.count for part in parts)
    order = MixtureOrder(parts, batch_size=batch_size, length=total, seed=3)
    seen = Counter(visit[1:] for visit in order)
    assert seen == Counter({(k, i): repeats for k, (n, repeats) in enumerate(rows) for i in range(n)})
