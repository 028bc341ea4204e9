"""Pictures as training samples: every source through the real encoding, compared with the truth of its miniature."""

from __future__ import annotations

import json
import logging
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniatures import images as mini
from rectangles import Rectangles
from sa2va import Sa2VA
from sa2va.data.annotations.layout import MissingData
from sa2va.data.datasets.coco_instances import Coco
from sa2va.data.datasets.conversation_sampling import Draws, phrase_of
from sa2va.data.datasets.gcg import Gcg
from sa2va.data.datasets.interchange import Chat, write_chat
from sa2va.data.datasets.llava import Llava
from sa2va.data.datasets.mask_folders import MaskFolder
from sa2va.data.datasets.osprey import OSPREY_FILES, Osprey
from sa2va.data.datasets.reasonseg import ReasonSeg
from sa2va.data.datasets.refer import Refer
from sa2va.data.encode import Encoded, encode_sample, resize_masks
from sa2va.data.sample import SEG, Sample
from sa2va.model.families import IGNORED_LABEL
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.processing.regions import region_cells
from sa2va.processing.requests import SEG_ANSWERS, TRAINING_REQUESTS
from sa2va.results.history import Turn


@pytest.fixture(scope="module")
def processor(sa2va: Sa2VA) -> Sa2VAProcessor:
    return sa2va.processor


def encoded(sample: Sample, processor: Sa2VAProcessor) -> Encoded:
    """The sample through the real encoding: its labels are its answers, its targets its masks."""
    result = encode_sample(sample, processor)
    assert processor.template is not None and result.turns_dropped == 0
    learnt = processor.tokenizer.decode([label for label in result.labels.tolist() if label != IGNORED_LABEL])
    assert learnt == "".join(turn.answer + processor.template.suffix for turn in sample.turns)
    if sample.masks:
        truth = resize_masks(torch.from_numpy(np.stack(sample.masks)), processor.grounding_side // 4)
        assert result.masks is not None and torch.equal(result.masks, truth)
        assert result.grounding is not None and len(result.grounding) == 1
    else:
        assert result.masks is None and result.grounding is None
    assert (result.pixel_values is None) == (not sample.frames)
    return result


def asked(sample: Sample, texts: Sequence[str]) -> list[str]:
    """Of each turn, the longest text that it asks for."""
    return [max((text for text in texts if phrase_of(text) in turn.question.lower()), key=len) for turn in sample.turns]


def mask_of_turns(sample: Sample) -> list[np.ndarray | None]:
    """The mask of each turn, bool (H, W); None where its answer has none."""
    masks = iter(sample.masks)
    return [next(masks)[0] if SEG in turn.answer else None for turn in sample.turns]


# -- referring expressions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", sorted(mini.SPLITS))
def test_all_expressions_of_a_picture_are_turns(tmp_path: Path, processor: Sa2VAProcessor, dataset: str):
    truth = mini.write_refer(tmp_path, dataset)["train"]
    source = Refer(tmp_path, dataset)
    assert len(source) == len(truth.pictures) == 2
    shown = Counter()
    for sample, picture in zip(source, truth.pictures, strict=True):
        encoded(sample.validate(), processor)
        assert sample.id == f"{dataset}/{picture}" and sample.size == mini.SIZE
        own = {said.text: said.mask for said in truth.said.values() if said.picture == picture}
        texts = asked(sample, list(own))
        assert sorted(texts) == sorted(own)  # each once, also two references to one object
        for text, turn, mask in zip(texts, sample.turns, mask_of_turns(sample), strict=True):
            assert turn.question in [request.format(phrase=phrase_of(text)) for request in TRAINING_REQUESTS.referring]
            if own[text].any():
                assert turn.answer in SEG_ANSWERS and mask is not None and np.array_equal(mask, own[text])
            else:
                assert turn.answer in TRAINING_REQUESTS.no_target and mask is None
        shown.update(texts)
    assert ("a yellow cat" in shown) == (dataset == "grefcoco")


def test_masks_with_overlapping_polygons_are_unions(tmp_path: Path):
    mini.write_refer(tmp_path)
    sample = Refer(tmp_path)[0]
    both = mini.area(mini.LEFT) & mini.area(mini.LEFT_TOO)
    (left, *_) = [mask[0] for mask in sample.masks if mask[0, 5, 3]]
    assert both.any() and left.dtype == bool and left[both].all()


def test_views_show_all_expressions_equally_often(tmp_path: Path):
    truth = mini.write_refer(tmp_path)["train"]
    source = Refer(tmp_path, phrases=2, views=5)
    assert len(source) == 10
    samples = list(source)
    assert len({sample.id for sample in samples}) == 10
    assert all(len(sample.turns) == len(sample.masks) == 2 for sample in samples)
    texts = [said.text for said in truth.said.values() if said.picture == 1]
    counts = Counter(text for sample in samples[::2] for text in asked(sample, texts))
    assert counts == Counter(dict.fromkeys(texts, 2))


def test_a_sample_is_the_same_whenever_asked_for_and_another_seed_is_another(tmp_path: Path):
    mini.write_refer(tmp_path)
    source = Refer(tmp_path, phrases=3)
    again = pickle.loads(pickle.dumps(source))
    assert source[1].turns == source[1].turns == again[1].turns == Refer(tmp_path, phrases=3)[1].turns
    others = [Refer(tmp_path, phrases=3, seed=seed)[1].turns for seed in range(1, 5)]
    assert all(turns != source[1].turns for turns in others)
    with pytest.raises(IndexError):
        source[2]
    with pytest.raises(ValueError, match="phrases must be at least 1"):
        Refer(tmp_path, phrases=0)


@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 7), st.integers(0, 99))
def test_draws_show_each_item_at_most_once_and_all_items_fairly(count: int, phrases: int, views: int, seed: int):
    draws = Draws(seed, phrases, views)
    seen = Counter()
    for index in range(3 * views):
        view = draws.view(index, 3)
        assert index == view.number * 3 + view.place
        chosen = draws.choose(range(count), view)
        assert len(chosen) == len(set(chosen)) == min(count, phrases)
        seen.update(chosen if view.place == 1 else ())
    assert max(seen.values()) - min(seen[item] for item in range(count)) <= 1


def test_missing_and_malformed_pictures_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    truth = mini.write_refer(tmp_path, "refcocog")["train"]
    path = truth.folder / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[1, 2]]
    mini.write_json(content, path)
    with pytest.raises(ValueError, match=r"no polygon of three points and no RLE, 1 times: annotation 10\n"):
        Refer(tmp_path, "refcocog")
    source = Refer(tmp_path, "refcocog", skip_broken=True)
    assert [sample.id for sample in source] == ["refcocog/2"] and "annotation 10" in caplog.text
    (tmp_path / "glamm_data/images/coco2014/train2014/COCO_train2014_000000000002.jpg").unlink()
    with pytest.raises(MissingData, match=r"1 files are missing \(COCO 2014.*000002\.jpg\n.*annotation 10\n.*no entry"):
        Refer(tmp_path, "refcocog")


# -- reasoning and captions --------------------------------------------------------------------------------------------


def test_reasoning(tmp_path: Path, processor: Sa2VAProcessor):
    truth = mini.write_reasonseg(tmp_path)
    phrase, sentence = ReasonSeg(tmp_path)
    for sample, name in ((phrase, "phrase"), (sentence, "sentence")):
        encoded(sample.validate(), processor)
        texts = [said.text for key, said in truth.said.items() if key.startswith(name)]
        assert sorted(asked(sample, texts)) == sorted(texts)
        assert all(np.array_equal(mask[0], truth.said[f"{name}/0"].mask) for mask in sample.masks)
        assert len(sample.masks) == len(texts)
    assert all(turn.question.startswith(("What warms a café? ", "Where is the heat? ")) for turn in sentence.turns)
    record = json.loads((truth.folder / "phrase.json").read_text())
    record["shapes"] = [{"label": "Ignore", "points": [[0, 0], [9, 0], [9, 9]]}]
    mini.write_json(record, truth.folder / "phrase.json")
    with pytest.raises(ValueError, match=r"no polygon that counts, 1 times: phrase\.json"):
        ReasonSeg(tmp_path)


@pytest.mark.parametrize("dataset", ["refcocog", "grandf", "flickr30k", "openpsg"])
def test_grounded_captions(tmp_path: Path, processor: Sa2VAProcessor, dataset: Any):
    ((name, (answer, masks)),) = mini.write_gcg(tmp_path, dataset).items()
    source = Gcg(tmp_path, dataset, views=4)
    assert [sample.id for sample in source] == [f"gcg-{dataset}/{name}#{view}" for view in range(4)]
    assert len({sample.turns[0].question for sample in source}) > 1
    for sample in source:
        result = encoded(sample.validate(), processor)
        assert [turn.answer for turn in sample.turns] == [answer]
        assert [mask[0].tolist() for mask in sample.masks] == [mask.tolist() for mask in masks]
        assert result.ids.tolist().count(processor.seg_token_id) == len(masks)


def test_grounded_captions_without_their_picture_or_mask(tmp_path: Path):
    mini.write_gcg(tmp_path, "grandf")
    path = tmp_path / "glamm_data/annotations/GranDf_HA_GCG_train.json"
    entry, _ = json.loads(path.read_text())
    broken = {**entry, "groundings": {"A red": {"token_positives": [2, 7], "rle_masks": ["?"]}}}
    outside = {**entry, "groundings": {"x": {"token_positives": [3, 99], "rle_masks": [{}]}}}
    mini.write_json([entry, broken, {**entry, "file_name": "lost.jpg"}, outside, {"caption": 1}], path)
    with pytest.raises(MissingData) as caught:
        Gcg(tmp_path, "grandf")
    for part in ("lost.jpg", "neither polygons nor RLE, 1 times: entry 1", "outside of its caption), 1 times: entry 3"):
        assert part in str(caught.value)
    assert "entry 4" in str(caught.value) and "1 entries are good" in str(caught.value)
    assert len(Gcg(tmp_path, "grandf", skip_broken=True)) == 1
    mini.write_json({"refs": 3}, tmp_path / "glamm_data/annotations/GranDf_HA_GCG_train.json")
    with pytest.raises(ValueError, match="no entry is good"):
        Gcg(tmp_path, "grandf", skip_broken=True)


# -- conversations -----------------------------------------------------------------------------------------------------


def test_conversations(tmp_path: Path, processor: Sa2VAProcessor):
    truth = mini.write_llava(tmp_path)
    source = Llava(tmp_path)
    assert [sample.id for sample in source] == list(truth)
    for sample in source:
        result = encoded(sample.validate(), processor)
        assert [(turn.question, turn.answer) for turn in sample.turns] == truth[sample.id]
        assert (result.pixel_values is not None) == (sample.id in ("llava/0", "llava/1", "llava/6"))
    assert (source.shortened, source.left_out) == (1, 1)
    assert [sample.id for sample in Llava(tmp_path, text_only=False)] == ["llava/0", "llava/1", "llava/6"]


def test_the_picture_stands_where_the_question_has_it(tmp_path: Path, processor: Sa2VAProcessor):
    mini.write_llava(tmp_path)
    texts = [processor.tokenizer.decode(encoded(sample, processor).ids) for sample in list(Llava(tmp_path))[:2]]
    start, end = processor.family.image_start, processor.family.image_end
    assert f"{end}\nWhat is red?" in texts[0] and texts[0].index(start) < texts[0].index("What")
    assert f"What is left?\n{start}" in texts[1]


def test_malformed_conversations_and_missing_pictures_are_named(tmp_path: Path):
    mini.write_llava(tmp_path)
    path = tmp_path / "llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json"
    entries = json.loads(path.read_text())
    entries[0]["image"] = "ocr_vqa/images/1.jpg"
    entries[1]["conversations"][0]["from"] = "system"
    entries[2] = "text"
    mini.write_json(entries, path)
    with pytest.raises(MissingData) as caught:
        Llava(tmp_path)
    for part in ("1 files are missing", "ocr_vqa", "not from", "entry 1\n", "no object", "entry 2\n", "3 entries are"):
        assert part in str(caught.value)
    assert [sample.id for sample in Llava(tmp_path, skip_broken=True)] == ["llava/3", "llava/4", "llava/6"]
    mini.write_json({"a": 1}, path)
    with pytest.raises(ValueError, match="must hold a list"):
        Llava(tmp_path)


# -- regions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(OSPREY_FILES))
def test_regions(tmp_path: Path, processor: Sa2VAProcessor, kind: str):
    truth = mini.write_osprey(tmp_path, kind)
    (sample,) = Osprey(tmp_path, kind)
    result = encoded(sample.validate(), processor)
    assert result.regions is not None and processor.cells
    if kind == "description":
        answers = {"region1: a red corner.": truth[0], "A blue box.": truth[1]}
        for number, (turn, region) in enumerate(zip(sample.turns, sample.regions, strict=True), start=1):
            assert np.array_equal(region, answers[turn.answer])
            assert turn.question in [request.format(region=f"region{number}") for request in TRAINING_REQUESTS.region]
        return
    suffix = " Answer the question using a single word or phrase." if kind == "short" else ""
    assert sample.turns == (
        Turn("What is region1?" + suffix, "It is red."),
        Turn("And region2?" + suffix, "Blue, unlike region1."),
    )
    assert [region.tolist() for region in sample.regions] == [region.tolist() for region in truth]
    cells = [region_cells(region, mini.SIZE, processor.cells) for region in truth]
    assert torch.equal(result.regions, torch.from_numpy(np.stack(cells)))
    counts = [int(cell.sum()) for cell in cells]
    token = processor.family.image_token
    marks = ", ".join(f"region{k}<vp>{token * count}</vp>" for k, count in enumerate(counts, start=1))
    text = processor.tokenizer.decode(result.ids)
    assert f"{processor.family.image_end}\nThere are 2 part regions in the picture: {marks}.\nWhat is region1?" in text


def test_of_many_described_regions_some_are_drawn_and_numbered_anew(tmp_path: Path, processor: Sa2VAProcessor):
    truth = mini.write_osprey(tmp_path, "description")
    source = Osprey(tmp_path, "description", phrases=1, views=2)
    first, second = source
    assert {first.turns[0].answer, second.turns[0].answer} == {"region1: a red corner.", "A blue box."}
    for sample in source:
        encoded(sample.validate(), processor)
        region = truth["blue" in sample.turns[0].answer]
        assert len(sample.regions) == 1 and np.array_equal(sample.regions[0], region)
        assert "region1" in sample.turns[0].question


def test_malformed_regions_are_named(tmp_path: Path):
    mini.write_osprey(tmp_path, "conversation")
    path = tmp_path / "osprey-724k/Osprey-724K/osprey_conversation.json"
    (entry,) = json.loads(path.read_text())
    one = entry["annotation"][:1]
    silent = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "It."}]
    without = {key: value for key, value in entry.items() if key != "height"}
    changed = [{**entry, "annotation": one}, {**entry, "annotation": []}, {**entry, "conversations": silent}, without]
    mini.write_json([entry, *changed, {**entry, "file_name": "lost.jpg"}], path)
    with pytest.raises(MissingData) as caught:
        Osprey(tmp_path)
    for part in ("lost.jpg", "region that is not there", "entry 1", "or none", "no question", "entry 3", "'height'"):
        assert part in str(caught.value)
    assert len(Osprey(tmp_path, skip_broken=True)) == 1
    with pytest.raises(ValueError, match=r"unknown kind 'x'; .*positive_neg"):
        Osprey(tmp_path, "x")
    with pytest.raises(MissingData, match=r"osprey_part_level\.json"):
        Osprey(tmp_path, "part")


# -- data of one's own -------------------------------------------------------------------------------------------------


def test_own_coco(tmp_path: Path, processor: Sa2VAProcessor):
    truth = mini.write_own_coco(tmp_path)
    source = Coco(tmp_path)
    assert [sample.id for sample in source] == ["coco/a.jpg", "coco/b.jpg"]
    for sample in source:
        encoded(sample.validate(), processor)
        own = truth[sample.id.removeprefix("coco/")]
        found: dict[str, np.ndarray | None] = {}
        for turn, mask in zip(sample.turns, mask_of_turns(sample), strict=True):
            texts = [text for text in own if text in turn.question or text == turn.answer]
            found[max(texts, key=len)] = mask
        assert found.keys() == own.keys()
        for text, mask in own.items():
            assert np.array_equal(found[text], mask) if mask is not None else found[text] is None


def test_own_coco_with_nothing_to_say_is_refused(tmp_path: Path):
    mini.write_own_coco(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["annotations"] += [
        {"id": 8, "image_id": 1, "segmentation": [mini.polygon(mini.LEFT)]},
        {"id": 9, "image_id": 9, "segmentation": [mini.polygon(mini.LEFT)], "phrase": "x"},
        {"id": 10, "image_id": 1, "segmentation": [], "phrase": "x"},
    ]
    mini.write_json(content, tmp_path / "annotations.json")
    (tmp_path / "images/b.jpg").unlink()
    with pytest.raises(MissingData) as caught:
        Coco(tmp_path)
    for part in ("b.jpg", "neither a phrase nor a category", "annotation 8", "no picture", "no RLE", "annotation 10"):
        assert part in str(caught.value)
    with pytest.raises(MissingData, match=r"annotations\.json.*\n.*images"):
        Coco(tmp_path / "nowhere")


@pytest.mark.parametrize("form", get_args(mini.MaskForm))
def test_own_png_masks(tmp_path: Path, processor: Sa2VAProcessor, form: mini.MaskForm):
    truth = mini.write_own_masks(tmp_path, form)
    samples = {sample.id.removeprefix("masks/"): sample for sample in MaskFolder(tmp_path)}
    assert samples.keys() == truth.keys()
    for name, own in truth.items():
        encoded(samples[name].validate(), processor)
        found = dict(
            zip(asked(samples[name], list(own) or ["box", "leftmost"]), mask_of_turns(samples[name]), strict=True)
        )
        if own:
            assert {text: mask is not None and mask.tolist() for text, mask in found.items()} == {
                text: mask.tolist() for text, mask in own.items()
            }
        else:  # the picture shows none of the numbers: one is asked for, and not there
            assert list(found.values()) == [None] and samples[name].turns[0].answer in TRAINING_REQUESTS.no_target


def test_wrong_png_masks_are_named(tmp_path: Path):
    mini.write_own_masks(tmp_path, "folders")
    mini.save(np.zeros((4, 4), np.uint8), tmp_path / "masks/one/2.png")
    (tmp_path / "masks/one/box.png").write_text("no picture")
    mini.write_json({"one": {"box": "a", "2": "b"}, "lost": "x", "two": {"a": " "}}, tmp_path / "phrases.json")
    with pytest.raises(MissingData) as caught:
        MaskFolder(tmp_path)
    for part in (
        "lost.*",
        "no picture that can be read",
        "box.png",
        "size of its picture",
        "2.png",
        "no phrase",
        "two",
    ):
        assert part in str(caught.value)
    mini.write_own_masks(tmp_path / "index", "index")
    mini.save(np.zeros(mini.SIZE, np.uint8), tmp_path / "index/masks/two.png")
    source = MaskFolder(tmp_path / "index")
    with pytest.raises(ValueError, match=r"two\.jpg: the masks of \['7'\] are empty"):
        source[1]
    with pytest.raises(MissingData, match=r"phrases\.json"):
        MaskFolder(tmp_path / "nowhere")


# -- the interchange format --------------------------------------------------------------------------------------------


def same(first: Sample, second: Sample) -> None:
    """Equal in all that a sample is."""
    assert (first.id, first.turns, first.video, first.source, first.tags) == (
        second.id,
        second.turns,
        second.video,
        second.source,
        second.tags,
    )
    assert len(first.frames) == len(second.frames) and first.size == second.size
    for ours, theirs in zip(first.pictures(), second.pictures(), strict=True):
        assert np.array_equal(ours, theirs)
    for name in ("masks", "regions"):
        ours, theirs = getattr(first, name), getattr(second, name)
        assert [mask.tolist() for mask in ours] == [mask.tolist() for mask in theirs]
        assert all(mask.dtype == bool for mask in theirs)


def _all_sources(root: Path) -> list[Sample]:
    mini.write_refer(root, "grefcoco")
    mini.write_gcg(root, "flickr30k")
    mini.write_llava(root)
    mini.write_osprey(root)
    mini.write_own_masks(root / "own", "index")
    sources = [Refer(root, "grefcoco"), Gcg(root, "flickr30k"), Llava(root), Osprey(root), MaskFolder(root / "own")]
    return [sample for source in sources for sample in source]


def test_what_is_written_is_read_again(tmp_path: Path, processor: Sa2VAProcessor):
    hidden = Rectangles(frames=4)[1]
    hidden = replace(hidden, masks=(hidden.masks[0] & (np.arange(4) != 2)[:, None, None], hidden.masks[1]))
    samples = [
        *_all_sources(tmp_path / "data"),
        hidden,
        replace(Rectangles()[0], tags=("refer",)),
        Rectangles(text_every=1)[0],
    ]
    path = write_chat(samples, tmp_path / "out" / "mine.jsonl")
    source = Chat(path)
    assert len(source) == len(samples)
    for sample, again in zip(samples, source, strict=True):
        same(sample, again)
        ours, theirs = encode_sample(sample, processor), encode_sample(again, processor)
        assert torch.equal(ours.ids, theirs.ids) and torch.equal(ours.labels, theirs.labels)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mine.jsonl", "mine_images"}
    written = sorted(path.name for path in (tmp_path / "out/mine_images").iterdir())
    assert write_chat(Chat(path), tmp_path / "out" / "mine.jsonl") == path  # onto itself, pictures stay where they are
    assert sorted(path.name for path in (tmp_path / "out/mine_images").iterdir()) == written
    for sample, again in zip(samples, Chat(path), strict=True):
        same(sample, again)


def test_pictures_beneath_the_file_are_not_copied(tmp_path: Path):
    samples = _all_sources(tmp_path)
    write_chat(samples, tmp_path / "chat.jsonl")
    assert not (tmp_path / "chat_images").exists()
    lines = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text().splitlines()]
    assert lines[0]["image"].startswith("glamm_data/images/") and "image" not in lines[5]
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    assert [sample.turns for sample in Chat(moved)] == [sample.turns for sample in samples]
    assert all(sample.validate().pictures() is not None for sample in Chat(moved))


def test_what_the_writer_writes(tmp_path: Path):
    clip = Rectangles(frames=2)[0]
    clip = replace(clip, masks=(clip.masks[0] & np.array([True, False])[:, None, None],), id="clip")
    path = write_chat([clip, Rectangles()[0], replace(Rectangles()[0], id="again")], tmp_path / "a.jsonl")
    first, second, third = (json.loads(line) for line in path.read_text().splitlines())
    assert set(first) == {"id", "frames", "size", "turns", "masks", "source"} and len(first["frames"]) == 2
    assert first["masks"] == [[mini.rle(clip.masks[0][0]), None]]  # nothing is seen in the second frame
    assert second["masks"] == [mini.rle(Rectangles()[0].masks[0][0])] and second["size"] == [48, 64]
    assert second["image"] == third["image"]  # equal pictures are one file
    files = {path.name: path.stat().st_ino for path in (tmp_path / "a_images").iterdir()}
    assert len(files) == 2  # the picture is also the first frame of the clip
    write_chat([clip, Rectangles()[0]], tmp_path / "a.jsonl")
    assert {
        path.name: path.stat().st_ino for path in (tmp_path / "a_images").iterdir()
    } == files  # none is written anew


bits = st.lists(st.booleans(), min_size=12, max_size=12).map(lambda flat: np.reshape(flat, (3, 4)))


@given(st.lists(bits, min_size=1, max_size=3), st.lists(st.text(min_size=1), min_size=3, max_size=3), st.booleans())
@settings(max_examples=25)
def test_any_sample_survives(
    tmp_path_factory: pytest.TempPathFactory, masks: list[np.ndarray], words: list[str], video: bool
):
    frames = (np.arange(36, dtype=np.uint8).reshape(3, 4, 3),) * (2 if video else 1)
    turns = tuple(Turn(f"{word}?", f"{word}, [SEG].") for word, _ in zip(words, masks, strict=False))
    clips = tuple(np.stack([mask, ~mask][: len(frames)]) for mask in masks)
    sample = Sample(f"x{words[0]}", frames, turns, clips, video=video)
    if any(token in word for word in words for token in (SEG, "<p>", "</p>")):
        return
    (again,) = Chat(write_chat([sample], tmp_path_factory.mktemp("chat") / "chat.jsonl"))
    same(replace(sample, source="chat"), again)


def test_a_chat_file_by_hand(tmp_path: Path, processor: Sa2VAProcessor):
    mini.save(mini.painted((mini.LEFT, mini.RED)), tmp_path / "street.jpg")
    turn = {"question": "Please segment it.", "answer": "Sure, [SEG]."}
    line = {"id": "a", "image": "street.jpg", "turns": [turn], "masks": [[mini.polygon(mini.LEFT)]]}
    (tmp_path / "chat.jsonl").write_text("\n" + json.dumps(line) + "\n\n" + json.dumps({**line, "masks": [None]}))
    first, second = Chat(tmp_path)
    encoded(first.validate(), processor)
    assert np.array_equal(first.masks[0][0], mini.area(mini.LEFT)) and not second.masks[0].any()
    assert first.size == mini.SIZE and first.source == "chat"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "no JSON object with an id"),
        ({"turns": []}, "no turns"),
        ({"turns": [{"question": "a"}]}, "without question or answer"),
        ({"masks": []}, r"not as many masks as \[SEG\]"),
        ({"masks": ["?"]}, "neither RLE nor polygons"),
        ({"image": None, "frames": ["street.jpg", "street.jpg"]}, "one entry per frame"),
        ({"image": 3}, "image is no path"),
        ({"regions": [[]]}, "a region is neither"),
        ({"image": "lost.jpg"}, r"lost\.jpg"),
    ],
)
def test_wrong_lines_are_named_by_number(tmp_path: Path, change: dict[str, Any], message: str):
    mini.save(mini.painted(), tmp_path / "street.jpg")
    turn = {"question": "Please segment it.", "answer": "Sure, [SEG]."}
    good = {"id": "a", "image": "street.jpg", "turns": [turn], "masks": [[mini.polygon(mini.LEFT)]]}
    (tmp_path / "chat.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(good | change)}\n")
    with pytest.raises(ValueError, match=rf"(?s){message}.*1 entries are good") as caught:
        Chat(tmp_path)
    assert "line 2" in str(caught.value) or "lost" in message
    assert len(Chat(tmp_path, skip_broken=True)) == 1


def test_a_sample_that_is_wrong_leaves_the_old_file(tmp_path: Path):
    path = write_chat([Rectangles()[0]], tmp_path / "chat.jsonl")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="masks"):
        write_chat([Rectangles()[1], replace(Rectangles()[1], masks=())], path)
    assert path.read_bytes() == before
    with pytest.raises(MissingData, match=r"none\.jsonl"):
        Chat(tmp_path / "none.jsonl")


# -- all of them -------------------------------------------------------------------------------------------------------


def _open(kind: str) -> Callable[[Path], Any]:
    def written(root: Path) -> Any:
        match kind:
            case "refer":
                mini.write_refer(root)
                return Refer(root)
            case "reasonseg":
                mini.write_reasonseg(root)
                return ReasonSeg(root)
            case "gcg":
                mini.write_gcg(root, "grandf")
                return Gcg(root, "grandf")
            case "llava":
                mini.write_llava(root)
                return Llava(root)
            case "osprey":
                mini.write_osprey(root)
                return Osprey(root)
            case "coco":
                mini.write_own_coco(root)
                return Coco(root)
            case "masks":
                mini.write_own_masks(root, "index")
                return MaskFolder(root)
        return Chat(write_chat([Rectangles()[0], Rectangles()[1]], root / "chat.jsonl"))

    return written


KINDS = ["refer", "reasonseg", "gcg", "llava", "osprey", "coco", "masks", "chat"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_is_random_access_and_can_go_to_a_worker(tmp_path: Path, kind: str):
    source = _open(kind)(tmp_path)
    elsewhere = pickle.loads(pickle.dumps(source))
    assert len({sample.id for sample in source}) == len(source) == len(elsewhere)
    for index in reversed(range(len(source))):
        same(source[index], elsewhere[index])
    with pytest.raises(IndexError):
        source[len(source)]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_logged_about_good_data(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str):
    with caplog.at_level(logging.WARNING):
        _open(kind)(tmp_path)
    assert not caplog.records


def test_qwen_models_read_the_same_sources(tmp_path: Path, open_sa2va: Callable[[str], Sa2VA]):
    processor = open_sa2va("q25").processor
    mini.write_refer(tmp_path)
    mini.write_llava(tmp_path)
    result = encode_sample(Refer(tmp_path)[0], processor)
    assert result.ids.tolist().count(processor.seg_token_id) == 5
    for sample in Llava(tmp_path):
        assert (encode_sample(sample, processor).image_grid_thw is None) == (not sample.frames)
