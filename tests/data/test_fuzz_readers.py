"""Every reader of data meets files in which one thing is wrong: it reads them, or says so in a ValueError.

A few seconds of it run with the tests; ``SA2VA_FUZZ=2000`` runs so many examples of each reader.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from miniatures import benchmarks, foreign, hurt, images, videos
from sa2va.data.check import KNOWN_SETS
from sa2va.data.datasets.gcg import read_gcg_truth
from sa2va.eval.benchmark import Prediction
from sa2va.eval.benchmarks.region_captions import read_region_captions
from sa2va.eval.benchmarks.video_sets import PLACES, read_foreground
from sa2va.eval.predict import read_record
from sa2va.eval.prediction_files import read_ids, read_predictions
from sa2va.eval.qa.tsv import QuestionFile
from sa2va.eval.run_metadata import read_header
from sa2va.eval.score import read_scores
from sa2va.masks.mask import Mask, Segment
from sa2va.processing.requests import TrainingRequests
from sa2va.results.answer import Answer, Frame
from sa2va.results.history import Turn
from sa2va.train.config import TrainConfig

EXAMPLES = int(os.environ.get("SA2VA_FUZZ", "3"))


@dataclass(frozen=True)
class Reader:
    """One reader. write: makes what it reads. file: pattern of the file that is hurt. read: reads all of it."""

    write: Callable[[Path], Any]
    file: str
    read: Callable[[Path], Any]


def source(name: str, **options: Any) -> Callable[[Path], None]:
    def read(root: Path) -> None:
        KNOWN_SETS[name].is_there(root)
        opened = KNOWN_SETS[name].open(root, **options)
        for index in range(min(len(opened), 3)):
            opened[index].validate()

    return read


def _known(write: Callable[[Path], Any], name: str, *files: str, **options: Any) -> dict[str, Reader]:
    return {f"{name} {Path(file).name}": Reader(write, file, source(name, **options)) for file in files}


def _predictions(root: Path) -> None:
    mask = Mask.from_array(images.area(images.LEFT))
    lines = [Prediction(f"q{n}", "Sure.", "Sure, [SEG].", ((mask,),), ("it",), 0.5).to_json() for n in range(2)]
    (root / "predictions-0-of-1.jsonl").write_text("\n".join([*lines, ""]))
    record = {"name": "x", "data": ".", "limit": None}
    (root / "benchmark.json").write_text(json.dumps(record))
    scores = {"values": {"ciou": 0.5}, "groups": {"a": {"ciou": 0.5}}, "samples": {"q": 0.5}, "headline": "ciou"}
    (root / "scores.json").write_text(json.dumps(scores | {"notices": []}))
    header = dict.fromkeys(("model", "revision", "config", "weights", "dtype", "device", "device_name", "mode"), "x")
    (root / "run.json").write_text(json.dumps(header | {"settings": {}, "versions": {}}))


def _results(root: Path) -> None:
    mask = Mask.from_array(images.area(images.LEFT))
    segment = Segment(id=1, phrase="it", masks=(mask,), score=0.9, presence=0.9, span=(0, 2))
    answer = Answer(text="it", raw_text="it[SEG]", segments=(segment,), reason=None, size=images.SIZE)
    (root / "answer.json").write_text(answer.to_json())
    (root / "turns.json").write_text(Answer(text="a", raw_text="a", history=(Turn("q", "a"),)).to_json())
    (root / "frame.json").write_text(Frame(0, 0.0, images.SIZE, (segment,)).to_json())


def _config(root: Path) -> None:
    options = {"kind": "coco", "options": {"root": "x"}, "repeats": 2.0}
    settings = {"model": "tiny", "output": "runs/x", "data": [options], "betas": [0.9, 0.99], "lr_scale": {"a": 2.0}}
    settings |= {"trainable": {"lora": {"rank": 4, "alpha": 8}}, "loss": {"weights": {"text": 1.0}}, "steps": 3}
    (root / "run.yaml").write_text(json.dumps(settings, indent=1))
    (root / "run.json").write_text(json.dumps(settings))


def _wordings(root: Path) -> None:
    content = {"referring": ["Where is {phrase}?"], "region": ["What is {region}?", "{region}?"], "gcg": ["Go."]}
    (root / "wordings.yaml").write_text(json.dumps(content, indent=1))


def _questions(root: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    rows = ["index\tquestion\tanswer\tA\tB\timage", f"1\tWhat?\tA\tx\ty\t{picture}", "2\tWho?\tB\tx\ty\t1"]
    rows.append(f'3\t"Which?"\tB\tx\ty\t"[\'{picture}\']"')
    (root / "questions.tsv").write_text("\n".join([*rows, ""]))


def _read_questions(root: Path) -> None:
    opened = QuestionFile(root / "questions.tsv")
    for question in opened.questions:
        opened.sizes(question)
        opened.pictures(question)


def _annotations(root: Path) -> None:
    images.save(images.painted((images.LEFT, images.RED)), root / "images/a.png")
    entry = {"image": "a.png", "mask": [[images.polygon(images.LEFT)]] * 2, "text": ["the red box", "it"]}
    images.write_json([entry, entry], root / "annotations.json")


def _chat(root: Path) -> None:
    from sa2va.data.datasets.interchange import write_chat
    from sa2va.tiny.synthetic import SyntheticWorld

    write_chat([SyntheticWorld("train", length=3)[index] for index in range(3)], root / "chat.jsonl")


def _revos(root: Path) -> None:
    videos.write_revos(root, "valid")


def _read_revos(root: Path) -> None:
    opened = PLACES["revos/valid"].read(root)
    for video in opened:
        for expression in video.expressions:
            video.masks(expression)
    read_foreground(PLACES["revos/valid"].other(root, "foreground"), opened)


def _text_of(method: Callable[[str], Any], name: str) -> Callable[[Path], Any]:
    return lambda root: method((root / name).read_text(encoding="utf-8"))


_REFER = ("refcoco", "refcocog", "refclef", "grefcoco")
_GCG = {"gcg-refcocog": "refcocog", "gcg-grandf": "grandf", "gcg-flickr": "flickr30k", "gcg-openpsg": "openpsg"}
_OSPREY = {"conversation": "conversation", "description": "description", "parts": "part", "short": "short"}
_OSPREY |= {"positive-negative": "positive_neg"}
_GCG_FOLDER, _MASKS = "glamm_data/annotations", "mask_dict.*"
_REFER_FOLDER = "ref_seg"
READERS: dict[str, Reader] = {
    **{
        key: reader
        for name in _REFER
        for key, reader in _known(
            lambda root, name=name: images.write_refer(root, name),
            name,
            f"ref_seg/{name}/instances.json",
            f"ref_seg/{name}/*refs(*",
        ).items()
    },
    **_known(images.write_reasonseg, "reasonseg", "lisa_reasoning/train/*.json"),
    **{
        key: reader
        for name, dataset in _GCG.items()
        for key, reader in _known(
            lambda root, dataset=dataset: images.write_gcg(root, dataset), name, f"{_GCG_FOLDER}/*_train.json"
        ).items()
    },
    **{
        key: reader
        for name, kind in _OSPREY.items()
        for key, reader in _known(
            lambda root, kind=kind: images.write_osprey(root, kind), f"osprey-{name}", "osprey-724k/Osprey-724K/*.json"
        ).items()
    },
    **_known(images.write_llava, "llava", "llava_data/LLaVA-Instruct-150K/*.json"),
    **_known(
        videos.write_mevis,
        "mevis",
        "video_datas/mevis/train/meta_expressions.json",
        f"video_datas/mevis/train/{_MASKS}",
    ),
    **_known(videos.write_revos, "revos", "video_datas/revos/meta_expressions_*", f"video_datas/revos/{_MASKS}"),
    **_known(
        videos.write_ref_youtube_vos,
        "ref-ytvos",
        "video_datas/rvos/meta_expressions/train/*.json",
        f"video_datas/rvos/{_MASKS}",
    ),
    **_known(
        lambda root: videos.write_ref_davis17(root, "train"),
        "ref-davis17",
        "video_datas/davis17/meta_expressions/train/*.json",
        f"video_datas/davis17/train/{_MASKS}",
    ),
    **_known(videos.write_ref_sav, "ref-sav", "video_datas/Ref-SAV.json", "video_datas/sam_v_full/**/*_manual.json"),
    **_known(videos.write_video_qa, "video-chat", "video_datas/chat_univi/video_chat.json"),
    **_known(videos.write_own_videos, "video-json", "meta_expressions.json", "mask_dict.json"),
    **_known(_annotations, "annotations", "annotations.json"),
    **_known(images.write_own_coco, "coco", "annotations.json"),
    **_known(lambda root: images.write_own_masks(root, "folders"), "mask-folder", "phrases.json"),
    **_known(lambda root: images.write_own_masks(root, "common"), "mask-folder", "*.json"),
    **_known(_chat, "chat", "chat.jsonl"),
    **_known(foreign.write_coco_published, "coco-published", "annotations/instances_train*", "annotations/captions*"),
    **_known(foreign.write_labelme, "labelme", "one.json", "two.json"),
    **_known(foreign.write_yolo, "yolo", "data.yaml", "labels/train/two.txt"),
    **_known(foreign.write_cvat, "cvat", "annotations.xml"),
    **_known(foreign.write_cvat_video, "cvat-video", "annotations.xml"),
    **_known(foreign.write_label_studio, "label-studio", "*.json"),
    "GranDf captions": Reader(
        images.write_gcg_truth,
        f"{_GCG_FOLDER}/gcg_val_test/*caption_gt.json",
        lambda root: [one.masks() for one in read_gcg_truth(root, "val")],
    ),
    "GranDf masks": Reader(
        images.write_gcg_truth,
        f"{_GCG_FOLDER}/gcg_val_test/*mask_gt.json",
        lambda root: [one.masks() for one in read_gcg_truth(root, "val")],
    ),
    "region captions": Reader(
        benchmarks.write_region_captions,
        "region_caption/mdetr_annotations/*",
        lambda root: [one.mask() for one in read_region_captions(root)],
    ),
    "regions": Reader(
        benchmarks.write_region_captions,
        "region_caption/refcocog/*",
        lambda root: [one.mask() for one in read_region_captions(root)],
    ),
    "ReVOS expressions": Reader(_revos, "video_datas/revos/meta_expressions_valid_.json", _read_revos),
    "ReVOS foreground": Reader(_revos, "video_datas/revos/mask_dict_foreground.json", _read_revos),
    "questions": Reader(_questions, "questions.tsv", _read_questions),
    "predictions": Reader(_predictions, "*.jsonl", read_predictions),
    "ids of predictions": Reader(_predictions, "*.jsonl", read_ids),
    "benchmark.json": Reader(_predictions, "benchmark.json", read_record),
    "scores.json": Reader(_predictions, "scores.json", read_scores),
    "run.json": Reader(_predictions, "run.json", read_header),
    "answers": Reader(_results, "answer.json", _text_of(Answer.from_json, "answer.json")),
    "turns": Reader(_results, "turns.json", _text_of(Answer.from_json, "turns.json")),
    "frames": Reader(_results, "frame.json", _text_of(Frame.from_json, "frame.json")),
    "config as YAML": Reader(_config, "run.yaml", lambda root: TrainConfig.from_file(root / "run.yaml")),
    "request wordings": Reader(
        _wordings, "wordings.yaml", lambda root: TrainingRequests.from_file(root / "wordings.yaml")
    ),
    "config as JSON": Reader(_config, "run.json", lambda root: TrainConfig.from_file(root / "run.json")),
}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Root and file of a reader."""

    @cache
    def write(name: str) -> tuple[Path, Path]:
        root = tmp_path_factory.mktemp("read")
        READERS[name].write(root)
        return root, sorted(root.glob(READERS[name].file))[0]

    return write


def wrong(path: Path, raw: bytes, rng: random.Random) -> bytes:
    """The content of a file with one thing wrong."""
    if path.suffix in (".p", ".pkl"):
        return hurt.hurt_pickle(raw, rng)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("cp1252")
    if path.suffix in (".json", ".jsonl"):
        return hurt.hurt_json(text, rng, lines=path.suffix == ".jsonl")
    return hurt.hurt_yaml(text, rng) if path.suffix == ".yaml" else hurt.hurt_text(text, rng)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_what_is_wrong_is_a_value_error(written: Callable[[str], tuple[Path, Path]], name: str, seed: int):
    root, path = written(name)
    raw = path.read_bytes()
    try:
        path.write_bytes(wrong(path, raw, random.Random(seed)))
        READERS[name].read(root)
    except (ValueError, OSError) as error:
        assert str(error)
    finally:
        path.write_bytes(raw)
