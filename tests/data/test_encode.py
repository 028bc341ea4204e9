"""From samples to batches: labels, targets, what does not fit, the order of a run, and own annotations."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from rectangles import Rectangles
from sa2va import Sa2VA
from sa2va.data.clicks import BOX_FROM, BOX_TO, INSIDE, MOST_CLICKS, OUTSIDE, PADDING, random_clicks
from sa2va.data.collate import Collator
from sa2va.data.datasets.phrase_polygons import Annotations
from sa2va.data.encode import EncodeOptions, SampleRejected, encode_clicks, encode_sample
from sa2va.data.mixture import EncodedDataset, MixtureEntry, MixtureOrder, SampleCounters, SampleIndex
from sa2va.data.sample import Sample
from sa2va.processing.processor import Sa2VAProcessor, qwen_patches, squashed_frames
from sa2va.processing.processor_settings import QwenPixels
from sa2va.results.history import Turn


@pytest.fixture(scope="module")
def processor(sa2va: Sa2VA) -> Sa2VAProcessor:
    return sa2va.processor


# -- one sample --------------------------------------------------------------------------------------------------------


def test_a_picture_with_two_objects(processor: Sa2VAProcessor):
    sample = Rectangles()[1]
    encoded = encode_sample(sample, processor)
    ids, labels = encoded.ids.tolist(), encoded.labels.tolist()
    assert ids.count(processor.seg_token_id) == 2
    assert processor.template is not None
    answer = "Sure, [SEG]." + processor.template.suffix
    assert processor.tokenizer.decode([i for i in labels if i != -100]) == 2 * answer
    assert all(label in (-100, i) for label, i in zip(labels, ids, strict=True))
    side = processor.grounding_side
    assert encoded.masks is not None and encoded.masks.shape == (2, 1, side // 4, side // 4)
    share = encoded.masks.float().mean(dim=(2, 3))[:, 0]
    np.testing.assert_allclose(share, [mask.mean() for mask in sample.masks], rtol=0.2)
    expected = squashed_frames([Image.fromarray(sample.picture(0))], side)
    assert encoded.grounding is not None and torch.equal(encoded.grounding, expected)
    assert encoded.pixel_values is not None
    assert encoded.grounding.dtype == encoded.pixel_values.dtype == torch.uint8


def test_a_clip_shows_key_frames_to_the_language_model_and_all_to_sam(processor: Sa2VAProcessor):
    sample = Rectangles(frames=6)[0]
    uniform = encode_sample(sample, processor, EncodeOptions(key_frames=3))
    first = encode_sample(sample, processor, EncodeOptions(key_frames=3, key_frame_policy="first"))
    assert uniform.pixel_values is not None and first.pixel_values is not None
    assert len(uniform.pixel_values) == len(first.pixel_values) == 3
    assert torch.equal(uniform.pixel_values[0], first.pixel_values[0])
    assert not torch.equal(uniform.pixel_values[2], first.pixel_values[2])
    assert uniform.grounding is not None and len(uniform.grounding) == 6
    assert uniform.masks is not None and uniform.masks.shape[:2] == (1, 6)


def test_a_clip_is_drawn_in_other_frames_each_time(processor: Sa2VAProcessor):
    sample, options = Rectangles(frames=6)[0], EncodeOptions(key_frames=3, drawn_frames=2)
    whole = encode_sample(sample, processor, EncodeOptions(key_frames=3))
    assert whole.grounding is not None and whole.masks is not None and whole.pixel_values is not None
    rng, seen = np.random.default_rng(1), set()
    for _ in range(12):
        part = encode_sample(sample, processor, options, rng)
        assert part.grounding is not None and part.masks is not None and part.pixel_values is not None
        assert torch.equal(part.pixel_values, whole.pixel_values) and torch.equal(part.ids, whole.ids)
        assert part.masks.shape[:2] == (1, 2)
        chosen = [k for k in range(6) if any(torch.equal(whole.grounding[k], frame) for frame in part.grounding)]
        assert len(chosen) == 2 and torch.equal(part.masks, whole.masks[:, chosen])
        seen.update(chosen)
    assert seen == set(range(6))
    picture = encode_sample(Rectangles()[0], processor, options, rng)
    assert picture.grounding is not None and len(picture.grounding) == 1


def test_text_and_pictures_without_masks_need_no_grounding(processor: Sa2VAProcessor):
    text = encode_sample(Rectangles(text_every=1)[0], processor)
    assert text.pixel_values is None and text.grounding is None and text.masks is None
    sample = replace(Rectangles()[0], turns=(Turn("What is it?", "A picture."),), masks=())
    picture = encode_sample(sample, processor)
    assert picture.pixel_values is not None and picture.grounding is None and picture.masks is None


@pytest.mark.parametrize("case", ["q25", "q3"])
def test_qwen_families_are_trained_on_the_references_encoding(open_sa2va: Callable[[str], Sa2VA], case: str):
    """ChatML without a system prompt, a line break between frames, one resize within the budget of a frame."""
    processor = open_sa2va(case).processor
    clip, factor = Rectangles(frames=3)[0], {"q25": 28, "q3": 32}[case]
    encoded = encode_sample(clip, processor, EncodeOptions(frame_pixels=(9 * 28 * 28, 16 * 28 * 28)))
    assert encoded.image_grid_thw is not None and encoded.pixel_values is not None
    tokens = encoded.image_grid_thw.prod(dim=1) // 4
    assert len(tokens) == 3 and ((tokens * factor**2 >= 9 * 28 * 28) & (tokens * factor**2 <= 16 * 28 * 28)).all()
    count = int(tokens[0])
    frame = f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>"
    question, answer = clip.turns[0].question, clip.turns[0].answer
    expected = f"<|im_start|>user\n{frame}\n{frame}\n{frame}\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}"
    assert str(processor.tokenizer.decode(encoded.ids)).startswith(expected)
    learnt = processor.tokenizer.decode([i for i in encoded.labels.tolist() if i != -100])
    assert learnt == "".join(f"{turn.answer}<|im_end|>" for turn in clip.turns)

    default, picture = EncodeOptions(), encode_sample(Rectangles()[0], processor)
    assert (default.frame_pixels, default.picture_pixels) == ((100352, 401408), (401408, 1605632))
    assert picture.image_grid_thw is not None
    area = int(picture.image_grid_thw[0].prod()) * (factor // 2) ** 2
    assert 401408 <= area <= 401408 + 2 * 1024 * factor, "a small picture grows to the least area, in one step"


def test_a_budget_resizes_once():
    """By torch's filter from the picture itself, where inference comes by way of multiples of 28."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (203, 331, 3), dtype=np.uint8))
    settings = QwenPixels(patch=14, merge=2, frames=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    patches, (_, rows, columns) = qwen_patches(image, settings, (30 * 28 * 28, 40 * 28 * 28))
    assert (rows, columns) == (2 * 4, 2 * 8)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(pixels, (112, 224), mode="bicubic", antialias=True)[0].float() / 255
    np.testing.assert_allclose(patches[0].view(3, 2, 14, 14)[:, 1], resized[:, :14, :14], atol=1e-6)


def test_masks_that_do_not_match_are_an_error_that_names_the_sample(processor: Sa2VAProcessor):
    sample = Rectangles()[1]
    with pytest.raises(ValueError, match=r"'rectangles-1'.*2 \[SEG\] .*1 masks"):
        encode_sample(replace(sample, masks=sample.masks[:1]), processor)


def test_long_conversations_lose_whole_turns_with_their_masks(processor: Sa2VAProcessor):
    sample = Rectangles()[2]
    whole = encode_sample(sample, processor)
    shorter = encode_sample(sample, processor, EncodeOptions(max_length=len(whole.ids) - 1))
    assert (whole.turns_dropped, shorter.turns_dropped) == (0, 1)
    assert torch.equal(shorter.ids, whole.ids[: len(shorter.ids)])
    assert shorter.masks is not None and whole.masks is not None
    assert torch.equal(shorter.masks, whole.masks[:2])
    assert shorter.ids.tolist().count(processor.seg_token_id) == 2
    one = encode_sample(replace(sample, turns=sample.turns[:1], masks=sample.masks[:1]), processor)
    with pytest.raises(SampleRejected, match=rf"'rectangles-2'.* {len(one.ids)} tokens"):
        encode_sample(sample, processor, EncodeOptions(max_length=len(one.ids) - 1))


def test_regions_become_cells(processor: Sa2VAProcessor):
    picture = np.zeros((48, 64, 3), np.uint8)
    region = np.zeros((48, 64), bool)
    region[:24, :32] = True
    turns = (Turn("What is region1?", "Nothing."),)
    encoded = encode_sample(Sample("r", (picture,), turns, regions=(region,)), processor)
    assert processor.cells and encoded.regions is not None
    assert encoded.regions.shape == (1, processor.cells, processor.cells)
    assert encoded.regions.float().mean().item() == pytest.approx(0.25)


def test_qwen_samples_have_grids(open_sa2va: Callable[[str], Sa2VA]):
    processor = open_sa2va("q25").processor
    encoded = encode_sample(Rectangles(frames=3)[0], processor)
    assert encoded.image_grid_thw is not None and encoded.image_grid_thw.shape == (3, 3)
    assert encoded.pixel_values is not None
    assert encoded.ids.tolist().count(processor.image_token_id) * 4 == len(encoded.pixel_values)


# -- clicks ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000))
def test_clicks_are_where_they_say(seed: int):
    rng = np.random.default_rng(seed)
    mask = np.zeros((20, 30), bool)
    top, left = rng.integers(0, 15), rng.integers(0, 20)
    mask[top : top + rng.integers(1, 6), left : left + rng.integers(1, 11)] = True
    points, labels = random_clicks(mask, 120, rng)
    assert points.shape == (MOST_CLICKS, 2) and points.dtype == np.float32
    kinds = [int(label) for label in labels if label != PADDING]
    assert kinds and labels.tolist()[len(kinds) :] == [PADDING] * (MOST_CLICKS - len(kinds))
    assert ((points >= 0) & (points <= 119)).all()
    if kinds[0] == BOX_FROM:
        assert kinds == [BOX_FROM, BOX_TO]
        rows, columns = np.nonzero(mask)
        width, height = 4 * (np.ptp(columns) + 1), 6 * (np.ptp(rows) + 1)
        exact = np.array([[4 * columns.min(), 6 * rows.min()], [4 * (columns.max() + 1), 6 * (rows.max() + 1)]])
        assert (np.abs(points[:2] + 0.5 - exact) <= [0.2 * width + 0.5, 0.2 * height + 0.5]).all()
    else:
        for (x, y), kind in zip(points, kinds, strict=False):
            assert mask[int((y + 0.5) / 6), int((x + 0.5) / 4)] == {INSIDE: True, OUTSIDE: False}[kind]


def test_an_empty_mask_prompts_nothing():
    _, labels = random_clicks(np.zeros((4, 4), bool), 64, np.random.default_rng(0))
    assert labels.tolist() == [PADDING] * MOST_CLICKS


def test_clicks_leave_out_what_the_first_frame_does_not_show(processor: Sa2VAProcessor):
    sample = Rectangles(frames=2)[1]
    hidden = sample.masks[0].copy()
    hidden[0] = False
    encoded = encode_clicks(replace(sample, masks=(hidden, sample.masks[1])), processor, np.random.default_rng(0))
    assert encoded.masks is not None and len(encoded.masks) == 1
    assert encoded.points is not None and encoded.points.shape == (1, 2, MOST_CLICKS, 2)
    with pytest.raises(SampleRejected, match="'rectangles-1'"):
        encode_clicks(replace(sample, masks=(hidden, hidden)), processor, np.random.default_rng(0))


# -- batches -----------------------------------------------------------------------------------------------------------


def test_batches_mix_text_pictures_clips_and_regions(processor: Sa2VAProcessor, sa2va: Sa2VA):
    region = np.ones((48, 64), bool)
    samples = [
        Rectangles(text_every=1)[0],
        Rectangles()[2],
        Rectangles(frames=3)[1],
        Sample("r", (np.zeros((48, 64, 3), np.uint8),), (Turn("Is region1 black?", "Yes."),), regions=(region,)),
    ]
    encoded = [encode_sample(sample, processor) for sample in samples]
    batch = Collator.of(processor)(encoded)
    assert batch.frames_per_sample == (0, 1, 3, 0)
    assert batch.sample_ids == ("text-0", "rectangles-2", "rectangles-1", "r")
    for row, sample in enumerate(encoded):
        assert batch.attention_mask[row].sum() == len(sample.ids)
        assert torch.equal(batch.input_ids[row, : len(sample.ids)], sample.ids)
        assert batch.labels is not None and (batch.labels[row, len(sample.ids) :] == -100).all()
    with torch.no_grad():
        together = sa2va.model(batch)
        assert together.objects_per_sample == (0, 3, 2, 0) and len(together.masks.best) == 3 + 2 * 3
        for row, sample in enumerate(encoded):
            alone = sa2va.model(Collator.of(processor)([sample]))
            torch.testing.assert_close(together.logits[row, : len(sample.ids)], alone.logits[0], atol=2e-4, rtol=1e-3)


def test_only_labelled_logits_are_the_same_logits(processor: Sa2VAProcessor, sa2va: Sa2VA):
    batch = Collator.of(processor)([encode_sample(Rectangles(text_every=2)[i], processor) for i in range(2)])
    assert batch.labels is not None
    with torch.no_grad():
        everything, labelled = sa2va.model(batch), sa2va.model(batch, labelled_only=True)
    learnt = batch.labels[:, 1:] != -100
    torch.testing.assert_close(labelled.logits, everything.logits[:, :-1][learnt])


def test_clicks_do_not_share_a_batch_with_conversations(processor: Sa2VAProcessor):
    sample = Rectangles()[0]
    clicks = encode_clicks(sample, processor, np.random.default_rng(0))
    with pytest.raises(ValueError, match="2 samples, 1 of them clicks"):
        Collator.of(processor)([encode_sample(sample, processor), clicks])


# -- mixtures ----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.5, 1, 1.5, 3]), st.sampled_from("ab")), max_size=4),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_an_epoch_shows_each_sample_as_often_as_it_says(rows: list, batch_size: int, number: int):
    parts = [MixtureEntry("x", Rectangles(n), repeats, group) for n, repeats, group in rows if round(n * repeats)]
    if not parts:
        return
    order = MixtureOrder(parts, batch_size=batch_size, length=1, seed=7)
    seen = Counter(map(tuple, order.epoch(number).tolist()))
    for k, part in enumerate(parts):
        times = [seen[k, i] for i in range(len(part.source))]
        assert sum(times) == part.count
        assert max(times) - min(times) <= 1
    whole = sum(part.count for part in parts) // batch_size - len({part.group for part in parts})
    blocks = order.epoch(number)[:, 0][: max(0, whole) * batch_size].reshape(-1, batch_size)
    assert all(len({parts[k].group for k in block}) == 1 for block in blocks)


def test_the_order_of_a_run_depends_on_its_seed_alone():
    parts = [MixtureEntry("x", Rectangles(5)), MixtureEntry("y", Rectangles(3), 2)]

    def order(length: int = 40, seed: int = 1) -> list[SampleIndex]:
        return list(MixtureOrder(parts, batch_size=2, length=length, seed=seed))

    assert order() == order() and order(25) == order()[:25] and order() != order(seed=2)
    assert [visit.position for visit in order()] == list(range(40))
    first, second = order()[:11], order()[11:22]
    assert Counter(visit[1:] for visit in first) == Counter(visit[1:] for visit in second)
    assert [visit[1:] for visit in first] != [visit[1:] for visit in second]


def test_a_source_that_shows_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'few' has 3 samples, shown 0\.1 times"):
        MixtureEntry("few", Rectangles(3), 0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_rejected_samples_are_replaced_and_counted(processor: Sa2VAProcessor, workers: int):
    source = Rectangles(6, text_every=3)  # of text, no clicks can be made
    encode = partial(_clicks, processor=processor)
    dataset = EncodedDataset([MixtureEntry("mixed", source)], encode, seed=0, workers=workers)
    order = MixtureOrder(dataset.parts, batch_size=2, length=6, seed=0)
    loader = DataLoader(dataset, batch_size=2, sampler=order, num_workers=workers, collate_fn=Collator.of(processor))
    batches = list(loader)
    assert [len(batch.sample_ids) for batch in batches] == [2, 2, 2]
    assert all(name.startswith("rectangles") for batch in batches for name in batch.sample_ids)
    assert dataset.count(SampleCounters.REJECTED) == 2
    again = list(DataLoader(dataset, batch_size=2, sampler=order, collate_fn=Collator.of(processor)))
    assert all(torch.equal(a.points, b.points) for a, b in zip(batches, again, strict=True))


def test_a_source_of_which_nothing_fits_is_an_error(processor: Sa2VAProcessor):
    dataset = EncodedDataset(
        [MixtureEntry("words", Rectangles(4, text_every=1))], partial(_clicks, processor=processor), seed=0
    )
    with pytest.raises(ValueError, match=r"'words'.*in a row cannot be trained on"):
        dataset[SampleIndex(0, 0, 0)]


def _clicks(sample: Sample, rng: np.random.Generator, *, processor: Sa2VAProcessor):
    return encode_clicks(sample, processor, rng)


# -- annotations of one's own ------------------------------------------------------------------------------------------


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30), (10, 20, 30)).save(tmp_path / "images" / "a.png")
    square, far = [5, 5, 15, 5, 15, 15, 5, 15], [30, 20, 38, 20, 38, 28, 30, 28]
    entry = {"image": "a.png", "mask": [[square, far], [square]], "text": ["Both Squares.", "the left one"]}
    (tmp_path / "annotations.json").write_text(json.dumps([entry]))
    return tmp_path


def test_own_annotations(own_data: Path):
    (sample,) = Annotations(own_data)
    sample.validate()
    first = [turn.question.count("both squares") for turn in sample.turns]
    assert sorted(first) == [0, 1]
    both, left = sample.masks if first[0] else sample.masks[::-1]
    assert left[0, 10, 10] and both[0, 10, 10] and both[0, 24, 34] and not left[0, 24, 34]
    assert left.sum() == pytest.approx(100, abs=25) and both.dtype == bool
    assert sample.size == (30, 40) and sample.picture(0)[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": ["one"]}, "not one text for each of its masks, 1 times: entry 1"),
        ({"image": "b.png"}, r"1 files are missing \(your pictures\): .*b\.png"),
        ({"mask": [[[1, 2, 3]], [[1, 2, 3, 4, 5, 6]]]}, "three points or more, 1 times: entry 1"),
        ({"mask": 3}, "not one text for each of its masks, 1 times: entry 1"),
        ({"text": ["a", " "]}, "a text that says nothing, 1 times: entry 1"),
    ],
)
def test_malformed_annotations_are_named(own_data: Path, change: dict, message: str):
    path = own_data / "annotations.json"
    (entry,) = json.loads(path.read_text())
    path.write_text(json.dumps([entry, {**entry, **change}]))
    with pytest.raises(ValueError, match=f"{message}\n.*1 entries are good"):
        Annotations(own_data)
    assert len(Annotations(own_data, skip_broken=True)) == 1


def test_a_folder_without_annotations_says_what_is_expected(tmp_path: Path):
    with pytest.raises(ValueError, match=r"(?s)2 of 2 files or folders are missing.*annotations\.json.*images"):
        Annotations(tmp_path)


def test_views_of_own_annotations_have_wordings_of_their_own(own_data: Path):
    samples = list(Annotations(own_data, views=8))
    assert len({sample.id for sample in samples}) == 8 and len({sample.turns for sample in samples}) > 4
