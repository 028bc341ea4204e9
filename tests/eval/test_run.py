"""Runs of benchmarks: killed and resumed, shared by processes, refused when mixed; the encoders run once per item."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sa2va import Mask, Sa2VA
from sa2va.cli import main
from sa2va.data.annotations.layout import MissingData
from sa2va.eval import benchmarks as table
from sa2va.eval.benchmark import BenchmarkSpec, Item, Prediction, Query, Scores, require_all
from sa2va.eval.predict import (
    BenchmarkRecord,
    PredictionProgress,
    Settings,
    Shard,
    answer_item,
    evaluate,
    predict,
    rehearse,
)
from sa2va.eval.prediction_files import ShardWriter, read_predictions, shard_path
from sa2va.eval.registry import select
from sa2va.eval.run_metadata import RunHeader, fingerprint
from sa2va.eval.score import pack_all, score_all
from sa2va.results.history import Turn
from sa2va.tiny.synthetic_benchmarks import synthetic_benchmark
from synthetic_checkpoint import picture

SHORT = Settings(max_new_tokens=6)
REQUESTS = ("Please segment the dog in this image.", "What is it?", "Please segment the car in this image.")


@dataclass(frozen=True)
class Stub:
    """A benchmark of drawn pictures or clips that counts how many queries were answered."""

    name: str = "stub/val"
    protocol: str = "Counts."
    kind: Any = "segment"
    submission: bool = False
    count: int = 5
    frames: int = 1
    texts: Sequence[str] = REQUESTS

    def items(self) -> list[Item]:
        return [self._item(number) for number in range(self.count)]

    def _item(self, number: int) -> Item:
        shots = [picture(64, 48, 10 * number + frame) for frame in range(self.frames)]
        regions: list[Any] = [None] * len(self.texts)
        if self.kind == "region":
            regions = [np.tri(48, 64, k=8 * k, dtype=bool) for k in range(len(self.texts))]
        queries = [Query(f"{number}/{k}", text, "", regions[k]) for k, text in enumerate(self.texts)]
        return Item(
            str(number), lambda: shots if self.frames > 1 else shots[0], self.frames > 1, (48, 64), tuple(queries)
        )

    def limited(self, count: int) -> Stub:
        return replace(self, count=min(count, self.count))

    @property
    def ids(self) -> list[str]:
        return [query.id for item in self.items() for query in item.queries]

    def score(self, predictions: dict[str, Prediction]) -> Scores:
        require_all(self.name, self.ids, predictions)
        masks = {number: float(len(one.masks)) for number, one in predictions.items()}
        return Scores({"masks": sum(masks.values())}, {}, masks, "masks")

    def pack(self, predictions: dict[str, Prediction], path: Path) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for number, one in sorted(predictions.items()):
                archive.writestr(f"{number}.txt", one.text)
        return path


@pytest.fixture
def stub_row(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts benchmarks into the table."""

    def put(*stubs: Stub, files: dict[Path, str] | None = None) -> None:
        for stub in stubs:
            row = BenchmarkSpec(stub.name, lambda root, stub=stub: stub, lambda root: files or {}, {}, "Stub")
            monkeypatch.setitem(table.BENCHMARKS, stub.name, row)

    return put


@pytest.fixture
def model(checkpoint: Callable[[str], Path], opened_once: None) -> str:
    return str(checkpoint("iv25_qwen2"))


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, no_room: Callable[[int], AbstractContextManager[None]]):
    path = shard_path(tmp_path, 0, 1)
    answers = [Prediction(str(number), "text", "raw", (), (), 0.0) for number in range(2)]
    with ShardWriter(path) as writer:
        writer.write(answers[:1])
        room = path.stat().st_size + 10
        with pytest.raises(OSError, match="File too large") as caught, no_room(room):
            writer.write(answers[1:])
    assert caught.value.filename == str(path)
    assert list(read_predictions(tmp_path)) == ["0"] and path.read_bytes().endswith(b"\n")


def test_a_second_process_on_a_shard_is_refused(tmp_path: Path):
    first, other = shard_path(tmp_path, 0, 2), shard_path(tmp_path, 1, 2)
    with ShardWriter(first), ShardWriter(other), pytest.raises(ValueError, match="another process is writing"):
        ShardWriter(first).__enter__()
    with ShardWriter(first):
        pass


def timeless(predictions: dict[str, Prediction]) -> dict[str, Prediction]:
    return {number: replace(one, seconds=0.0) for number, one in predictions.items()}


@contextmanager
def counting(sa2va: Sa2VA) -> Iterator[dict[str, int]]:
    """How many pictures pass each encoder."""
    calls = {"vision tower": 0, "image encoder": 0}

    def note(name: str) -> Callable:
        def add(_: Any, args: tuple, kwargs: dict) -> None:
            calls[name] += len([*args, *kwargs.values()][0])

        return add

    vlm: Any = sa2va.model.vlm.model
    hooks = [
        vlm.vision_tower.register_forward_pre_hook(note("vision tower"), with_kwargs=True),
        sa2va.model.sam2.vision_encoder.backbone.register_forward_pre_hook(note("image encoder"), with_kwargs=True),
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def pointing(sa2va: Sa2VA) -> Iterator[None]:
    """Make the model answer everything with one mask."""
    ids = itertools.cycle(sa2va.processor.tokenizer.encode("[SEG].<|end|>", add_special_tokens=False))

    def choose(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        places = logits.shape[1] if logits.ndim == 3 else 1  # a draft is read as a whole
        said = torch.nn.functional.one_hot(torch.tensor([next(ids) for _ in range(places)]), logits.shape[-1])
        return said.to(logits).expand_as(logits)

    hook = sa2va.model.vlm.lm_head.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()


# -- one item ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 7])
@pytest.mark.parametrize("at_once", [16, 2])
def test_queries_of_an_item_share_its_encoding(sa2va: Sa2VA, frames: int, at_once: int):
    settings = Settings(at_once=at_once)
    (item,) = Stub(count=1, frames=frames, texts=[*REQUESTS, "Who is there?", "Where?"]).items()
    with pointing(sa2va):
        with counting(sa2va) as calls:
            found = answer_item(sa2va, "segment", item, settings)
        assert calls["image encoder"] == frames
        for query, one in zip(item.queries, found, strict=True):
            with counting(sa2va) as single:
                (alone,) = answer_item(sa2va, "segment", replace(item, queries=(query,)), settings)
            assert single == calls
            assert replace(alone, seconds=0) == replace(one, seconds=0)
            assert [[mask.size for mask in masks] for masks in one.masks] == [[(48, 64)] * frames]


def test_a_mask_stands_for_every_seg_even_an_empty_one(sa2va: Sa2VA, monkeypatch: pytest.MonkeyPatch):
    (item,) = Stub(count=1, texts=REQUESTS[:1]).items()
    (found,) = answer_item(sa2va, "segment", item, SHORT)
    assert len(found.masks) >= 1
    monkeypatch.setattr("sa2va.inference.options.MaskPostprocessing.cut", 1e9)
    (blank,) = answer_item(sa2va, "segment", item, SHORT)
    assert len(blank.masks) == len(blank.phrases) == len(found.masks)
    assert all(mask.area == 0 for masks in blank.masks for mask in masks)


def test_regions_are_described_alone_from_one_encoding(sa2va: Sa2VA):
    text = "What is in region1?"
    with counting(sa2va) as calls:
        together = answer_item(sa2va, "region", Stub(count=1, kind="region", texts=[text] * 3).items()[0], SHORT)
    with counting(sa2va) as single:
        alone = answer_item(sa2va, "region", Stub(count=1, kind="region", texts=[text]).items()[0], SHORT)
    assert calls == single
    assert together[0].text == alone[0].text
    item = Stub(count=1, kind="region", texts=[text] * 3).items()[0]
    for query, found in zip(item.queries, together, strict=True):
        media: Any = item.media
        assert sa2va.describe(media(), [query.region], requests=[text], max_new_tokens=6) == [found.text]


def test_what_is_said_about_a_region_is_kept_as_it_was_written(sa2va: Sa2VA):
    (item,) = Stub(count=1, kind="region", texts=["What is in region1?"]).items()
    with pointing(sa2va):
        (found,) = answer_item(sa2va, "region", item, Settings())
    assert found.raw_text == "[SEG].<|end|>"
    assert found.text == "."
    assert len(found.masks) == 1


@pytest.mark.parametrize("frames", [1, 3])
def test_turns_are_asked_after_their_history_from_one_encoding(sa2va: Sa2VA, frames: int):
    (item,) = Stub(count=1, frames=frames).items()
    turns = (Turn(REQUESTS[0], "Sure, [SEG]."), Turn(REQUESTS[1], "a dog"))
    queries = tuple(replace(query, history=turns[:k]) for k, query in enumerate(item.queries))
    media: Any = item.media
    with pointing(sa2va), counting(sa2va) as calls:
        answer_item(sa2va, "chat", replace(item, queries=queries), Settings())
    assert calls["image encoder"] == frames
    found = answer_item(sa2va, "chat", replace(item, queries=queries), SHORT)
    alone = [sa2va.chat(media(), query.text, history=query.history, max_new_tokens=6) for query in queries]
    assert [one.raw_text for one in found] == [one.raw_text for one in alone]
    first = [answer_item(sa2va, "chat", replace(item, queries=(query,)), SHORT)[0] for query in item.queries]
    assert first[0].raw_text == found[0].raw_text
    assert [one.raw_text for one in first[1:]] != [one.raw_text for one in found[1:]]


def test_a_clip_is_asked_about_again(sa2va: Sa2VA):
    (item,) = Stub(count=1, frames=7).items()
    phrased = zip(item.queries, ("the dog", "it"), strict=False)
    item = replace(item, queries=tuple(replace(query, phrase=phrase) for query, phrase in phrased))
    again = Settings(ask_every=3)
    with pointing(sa2va), counting(sa2va) as calls:
        found = answer_item(sa2va, "segment", item, again)
    assert calls == {"image encoder": 7, "vision tower": 7}  # windows of 3, 3 and 1 frames
    media: Any = item.media
    with pointing(sa2va):
        frames = list(sa2va.track(media(), [query.phrase for query in item.queries], ask_every=3))
    for query, one in zip(item.queries, found, strict=True):
        assert (one.id, one.phrases) == (query.id, (query.phrase,))
        own = [[s.mask.array for s in frame.segments if s.phrase == query.phrase] for frame in frames]
        (masks,) = one.masks
        assert all(np.array_equal(mask.array, np.any(seen, axis=0)) for mask, seen in zip(masks, own, strict=True))
    with pytest.raises(ValueError, match=r"item '0': its media are \(48, 64\) \(h, w\), but its masks \(10, 10\)"):
        answer_item(sa2va, "segment", replace(item, size=(10, 10)), again)


def test_what_was_not_found_again_has_no_mask(sa2va: Sa2VA):
    (item,) = Stub(count=1, frames=4).items()
    named = replace(item, queries=tuple(replace(query, phrase="the dog") for query in item.queries))
    found = answer_item(sa2va, "segment", named, Settings(ask_every=2, max_new_tokens=1))
    assert [(one.masks, one.phrases) for one in found] == [((), ())] * len(item.queries)


def test_all_that_names_no_phrase_in_a_clip_is_asked_once(sa2va: Sa2VA):
    for kind, frames in (("segment", 1), ("segment", 3), ("chat", 3)):
        (item,) = Stub(count=1, frames=frames).items()
        found = [answer_item(sa2va, kind, item, replace(SHORT, ask_every=every)) for every in (None, 2)]
        once, again = (timeless({one.id: one for one in predictions}) for predictions in found)
        assert once == again


def test_media_of_another_size_are_refused(sa2va: Sa2VA):
    (item,) = Stub(count=1).items()
    with pytest.raises(ValueError, match=r"0: its media are \(48, 64\) \(h, w\), but its masks \(10, 10\)"):
        answer_item(sa2va, "segment", replace(item, size=(10, 10)), SHORT)


# -- runs --------------------------------------------------------------------------------------------------------------


def test_shards_together_are_the_whole(sa2va: Sa2VA, tmp_path: Path):
    stub = Stub()
    assert predict(sa2va, stub, tmp_path / "one", SHORT) == 0
    left = [predict(sa2va, stub, tmp_path / "three", SHORT, shard=Shard(k, 3)) for k in (2, 0, 1)]
    assert left == [12, 6, 0]
    assert len(list((tmp_path / "three").iterdir())) == 3
    one, three = (timeless(read_predictions(tmp_path / name)) for name in ("one", "three"))
    assert one == three
    assert list(one) == stub.ids
    assert stub.score(one) == stub.score(three) == evaluate(sa2va, stub, SHORT)


@pytest.mark.parametrize("task", ["chat", "clip-chat"])
def test_shards_of_conversations_are_the_whole(sa2va: Sa2VA, tmp_path: Path, task: str):
    row = synthetic_benchmark(task, length=3)
    assert predict(sa2va, row, tmp_path / "one", SHORT) == 0
    assert [predict(sa2va, row, tmp_path / "two", SHORT, shard=Shard(k, 2)) > 0 for k in (1, 0)] == [True, False]
    one, two = (timeless(read_predictions(tmp_path / name)) for name in ("one", "two"))
    assert one == two
    assert row.score(one) == row.score(two)


def test_a_run_goes_on_where_it_stopped(sa2va: Sa2VA, tmp_path: Path):
    """Also in the middle of an item, after half a line, and with another number of processes."""
    stub = Stub()
    predict(sa2va, stub, tmp_path / "whole", SHORT)
    (whole,) = (tmp_path / "whole").iterdir()
    lines = whole.read_bytes().splitlines(keepends=True)
    for kept, count in ((7, 1), (6, 2), (0, 1)):
        folder = tmp_path / f"{kept}"
        folder.mkdir()
        broken = shard_path(folder, 0, 1)
        broken.write_bytes(b"".join(lines[:kept]) + lines[kept][:25])
        steps: list[PredictionProgress] = []
        for k in range(count):
            predict(sa2va, stub, folder, SHORT, shard=Shard(k, count), on_item=steps.append)
        assert timeless(read_predictions(folder)) == timeless(read_predictions(tmp_path / "whole"))
        assert steps[0].skipped == len([k for k in range(kept // 3) if k % count == 0])
        assert steps[-1].done == steps[-1].total
        asked = sum(1 for step in steps if step.done > step.skipped)
        assert asked == 5 - kept // 3


def test_nothing_is_asked_twice(sa2va: Sa2VA, tmp_path: Path):
    predict(sa2va, Stub(), tmp_path, SHORT)
    with counting(sa2va) as calls:
        assert predict(sa2va, Stub(), tmp_path, SHORT) == 0
    assert set(calls.values()) == {0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"no json\n", r"jsonl:2: expected one prediction as JSON"),
        (b'{"id": 1}\n', r"jsonl:2: expected one prediction as JSON"),
        (b'{"id": "x", "text": "", "raw_text": "", "masks": [[{"size": [2, 2], "counts": "11"}]], "phrases": [""], '
         b'"seconds": 0}\n', r"jsonl:2: .*run lengths|jsonl:2: expected one prediction"),
        (b'{"id": "x", "text": "", "raw_text": "", "masks": [], "phrases": ["a"], "seconds": 0}\n', "1 phrases for 0"),
        (None, r"query '0/0' was answered twice, in .*jsonl:1 and .*jsonl:2"),
    ],
)  # fmt: skip
def test_malformed_and_repeated_lines_are_named(tmp_path: Path, line: bytes | None, message: str):
    path = shard_path(tmp_path, 0, 1)
    first = Prediction("0/0", "a", "a").to_json().encode() + b"\n"
    path.write_bytes(first + (line or first))
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path)


def test_queries_answered_by_two_files_are_named(tmp_path: Path):
    for k in range(2):
        with ShardWriter(shard_path(tmp_path, k, 2)) as writer:
            writer.write([Prediction("0/0", "a", "a")])
    with pytest.raises(ValueError, match=r"twice, in .*00000-of-00002.jsonl:1 and .*00001-of-00002.jsonl:1"):
        read_predictions(tmp_path)


def test_predictions_survive_their_file():
    mask = Mask.from_array(np.eye(5, 7, dtype=bool))
    one = Prediction("id", 'line\nbreak, "quotes" \u00e9', "[SEG]", ((mask, mask), (mask, mask)), ("a", ""), 0.25)
    assert "\n" not in one.to_json()
    assert Prediction.from_json(one.to_json()) == one


def test_query_ids_must_differ(sa2va: Sa2VA, tmp_path: Path):
    @dataclass(frozen=True)
    class Twice(Stub):
        def items(self) -> list[Item]:
            return super().items() * 2

    with pytest.raises(ValueError, match="'0/0' occurs more than once"):
        predict(sa2va, Twice(), tmp_path, SHORT)


def test_an_item_that_cannot_be_asked_is_named(sa2va: Sa2VA, tmp_path: Path):
    @dataclass(frozen=True)
    class Lost(Stub):
        def items(self) -> list[Item]:
            return [replace(super().items()[0], media=tmp_path / "lost.jpg")]

    with pytest.raises(ValueError, match=r"stub/val, item '0': .*lost.jpg"):
        predict(sa2va, Lost(), tmp_path, SHORT)


def test_a_rehearsal_asks_the_first_items_only(sa2va: Sa2VA):
    assert [one.id for one in rehearse(sa2va, Stub(), SHORT)] == Stub().ids[:6]
    with pytest.raises(ValueError, match="has no items"):
        rehearse(sa2va, Stub(count=0), SHORT)


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "a/b", "0/0"])
def test_shards_are_numbered_from_0(text: str):
    with pytest.raises(ValueError, match="shard"):
        Shard.parse(text)


# -- the header --------------------------------------------------------------------------------------------------------


def test_a_folder_takes_answers_of_one_model_and_one_way_of_asking(sa2va: Sa2VA, tmp_path: Path, model: str):
    header = RunHeader.of(sa2va, model, SHORT)
    assert (header.dtype, header.device, header.mode) == ("float32", "cpu", "released")
    header.settle(tmp_path)
    replace(header, model="the same from elsewhere", device_name="another card").settle(tmp_path)
    changed = replace(SHORT, threshold=0.4)
    with pytest.raises(ValueError, match=r"another settings: it was threshold=0.5, now it is threshold=0.4; go on"):
        RunHeader.of(sa2va, model, changed).settle(tmp_path)
    for name in ("weights", "config", "dtype", "device", "mode", "revision"):
        with pytest.raises(ValueError, match=f"another {name}"):
            replace(header, **{name: "other"}).settle(tmp_path)
    with pytest.raises(ValueError, match="torch=0"):
        replace(header, versions={**header.versions, "torch": "0"}).settle(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run.json is not the header"):
        header.settle(tmp_path)


def test_training_changes_the_fingerprint_and_loading_does_not(sa2va: Sa2VA, checkpoint: Callable[[str], Path]):
    again = Sa2VA.from_pretrained(checkpoint("iv25_qwen2"), device="cpu").model
    assert fingerprint(again) == fingerprint(sa2va.model)
    again.projection.linear_1.bias.data += 1e-3
    assert fingerprint(again) != fingerprint(sa2va.model)


# -- the command -------------------------------------------------------------------------------------------------------


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "sa2va.cli", *map(str, words)]


ASK = ("synthetic/refer", "--limit", "8", "--max-new-tokens", "6", "--device", "cpu")


def files(out: Path) -> dict[str, Any]:
    """What a run left, without times."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[str(path.relative_to(out))] = [{**line, "seconds": 0} for line in lines]
        elif path.is_file():
            found[str(path.relative_to(out))] = {**json.loads(path.read_text()), "seconds": 0}
    return found


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_run_resumes_to_the_same_files(model: str, tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["eval", model, *ASK, "-o", str(whole)]) == 0
    if (child := os.fork()) == 0:  # quicker than a process that imports everything anew
        try:
            main(["eval", model, *ASK, "-o", str(killed)])
        finally:
            os._exit(1)
    shard = shard_path(killed / "synthetic" / "refer", 0, 1)
    while not shard.exists() or not shard.stat().st_size:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before it could be killed"
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (killed / "synthetic" / "refer" / "scores.json").exists()
    with open(shard, "ab") as file:
        file.write(b'{"id": "synthetic/refer/val-2024-7/')
    assert main(["eval", model, *ASK, "-o", str(killed)]) == 0
    assert files(killed) == files(whole)


def test_processes_by_environment_share_the_work(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["eval", model, *ASK, "-o", str(one)]) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        assert not (two / "synthetic/refer/scores.json").exists()
        monkeypatch.setenv("RANK", rank)
        assert main(["eval", model, *ASK, "-o", str(two)]) == 0
    scores = "synthetic/refer/scores.json"
    ours, theirs = files(one), files(two)
    assert ours[scores] == theirs[scores]
    folders = one / "synthetic/refer", two / "synthetic/refer"
    assert timeless(read_predictions(folders[0])) == timeless(read_predictions(folders[1]))


@pytest.mark.slow
def test_torchrun_gives_the_same(model: str, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["eval", model, *ASK, "-o", str(one)]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = command("eval", model, *ASK, "-o", two)[1:]
    subprocess.run([*launch, *words], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert files(one)["synthetic/refer/scores.json"] == files(two)["synthetic/refer/scores.json"]


def test_shards_by_hand_and_scoring_alone(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    for shard in ("1/2", "0/2"):
        assert main(["eval", model, *ASK, "-o", str(out), "--shard", shard, "--no-score"]) == 0
        assert main(["eval", "score", str(out)]) == (2 if shard == "1/2" else 0)
    errors = " ".join(capsys.readouterr().err.split())
    assert "predictions are missing (synthetic/refer/val-2024-0/0" in errors
    assert main(["eval", "score", str(out), "synthetic", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["scores"]
    assert record["benchmark"] == "synthetic/refer"
    assert main(["eval", "score", str(out), "refcoco"]) == 2


def test_a_larger_limit_adds_to_a_smaller_one(model: str, tmp_path: Path):
    words = ["eval", model, "synthetic/question", "--max-new-tokens", "2", "-o", str(tmp_path)]
    for limit, items in (("1", 1), ("3", 3), ("2", 3)):
        assert main([*words, "--limit", limit]) == 0
        scores = json.loads((tmp_path / "synthetic/question/scores.json").read_text())
        assert (scores["limit"], scores["items"]) == (items, items)


def test_other_settings_are_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["eval", model, "synthetic/question", "--limit", "1", "-o", str(tmp_path), "--max-new-tokens"]
    assert main([*words, "2"]) == 0
    assert main([*words, "3"]) == 2
    assert "it was max_new_tokens=2, now it is max_new_tokens=3" in capsys.readouterr().err


def test_a_dry_run_leaves_nothing(model: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", model, "synthetic/clips", "--dry-run", "--max-new-tokens", "6", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["benchmarks"]
    assert record["items"] == 60
    assert record["request"] == synthetic_benchmark("clips").items()[0].queries[0].text
    assert list(tmp_path.iterdir()) == []


def test_all_runs_what_is_there_and_names_what_is_not(model: str, tmp_path: Path, capsys, stub_row, monkeypatch):
    monkeypatch.setattr(table, "BENCHMARKS", table.BENCHMARKS)
    for name in list(table.BENCHMARKS):
        monkeypatch.delitem(table.BENCHMARKS, name)
    stub_row(Stub())
    stub_row(Stub("lost/val"), files={tmp_path / "lost.json": "a page"})
    assert [row.name for row in select(["all"], tmp_path).rows] == ["stub/val"]
    assert [row.name for row in select(["lost", "all"], tmp_path).rows] == ["stub/val", "lost/val"]
    assert main(["eval", model, "all", "-o", str(tmp_path / "out"), "--max-new-tokens", "6"]) == 0
    assert f"left out lost/val: no {tmp_path / 'lost.json'}" in capsys.readouterr().err
    assert main(["eval", model, "lots", "-o", str(tmp_path / "out")]) == 2
    assert "no benchmark is called 'lots'; there are lost, own, stub" in capsys.readouterr().err


def test_missing_data_is_told_before_the_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "nowhere/nothing", "refcoco/val", "--data", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert "instances.json" in errors
    assert "loading" not in errors
    with pytest.raises(MissingData):
        table.BENCHMARKS["refcoco/val"].open(tmp_path)


def test_server_benchmarks_are_packed_when_complete(sa2va: Sa2VA, tmp_path: Path, stub_row):
    stub, local = Stub("server/test", submission=True, count=2), Stub(count=1)
    stub_row(stub, local)
    for one in (stub, local):
        BenchmarkRecord(one.name, str(tmp_path), None).widen(tmp_path / one.name)
    predict(sa2va, local, tmp_path / local.name, SHORT)
    with pytest.raises(ValueError, match=r"server/test: 6 of 6 predictions are missing"):
        list(pack_all(tmp_path))
    predict(sa2va, stub, tmp_path / stub.name, SHORT)
    ((name, path),) = pack_all(tmp_path)
    assert name == "server/test"
    assert len(zipfile.ZipFile(path).namelist()) == 6
    with pytest.raises(ValueError, match="stub/val is scored locally"):
        list(pack_all(tmp_path, ["stub"]))
    scored = {answered.benchmark.name: scores for answered, scores in score_all(tmp_path)}
    assert scored["server/test"] is None
    assert scored["stub/val"] is not None
    BenchmarkRecord(stub.name, str(tmp_path), 1).widen(tmp_path / stub.name)
    (tmp_path / stub.name / "benchmark.json").write_text(json.dumps({"name": stub.name, "data": ".", "limit": 2}))
    with pytest.raises(ValueError, match="asked with --limit 2, and servers want everything"):
        list(pack_all(tmp_path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "."], "holds no predictions"),
        (["report", "."], "holds no evaluation"),
        (["MODEL", "synthetic/refer"], "-o OUT"),
        (["MODEL", "synthetic/refer", "-o", "x", "--shard", "3/2"], "numbered 0 to 1"),
        (["MODEL", "synthetic/refer", "-o", "x", "--key-frames", "compressed"], "--key-frames uniform, first"),
        (["MODEL", "synthetic/refer", "-o", "x", "--ask-every", "1"], "a number of frames of at least 2"),
        (["MODEL", "synthetic/refer", "-o", "x", "--ask-every", "9", "--key-frames", "0,5"], "leave out --key-frames"),
        (["MODEL", "synthetic/refer", "-o", "x", "--threshold", "2"], "above 0 and below 1"),
    ],
)
def test_mistakes_are_told(words: list[str], message: str, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_list_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "list", "--data", str(tmp_path), "--json"]) == 0
    rows = {row["name"]: row["missing"] for row in json.loads(capsys.readouterr().out)["benchmarks"]}
    assert rows["synthetic/refer"] == []
    assert any("instances.json" in path for path in rows["refcoco/val"])
    assert main(["eval", "list", "--data", str(tmp_path)]) == 0
    assert "needs none" in capsys.readouterr().out
