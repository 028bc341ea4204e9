"""``sa2va batch`` with a stand-in for the model: what is read, what is written, and what survives."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from stand_in import StandIn, found_left

from sa2va import Mask
from sa2va.cli import main
from sa2va.data.annotations.label_studio import decode_brush
from sa2va.inference.replies import Reply

SIZE = (24, 32)
LEFT = np.zeros(SIZE, bool)
LEFT[:, :16] = True
FOUND = found_left("the dog", SIZE)

Batch = Callable[..., int]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandIn:
    """The stand-in, which every command here loads; each test runs in an empty folder."""
    stand_in = StandIn()
    monkeypatch.setattr("sa2va.cli.arguments.load_model", lambda screen, name, loading: stand_in)
    monkeypatch.setenv("SA2VA_MODEL", "tiny")
    monkeypatch.chdir(tmp_path)
    return stand_in


def draw(path: str, seed: int = 0) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8)).save(path)


@pytest.fixture
def pictures(model: StandIn) -> str:
    """Three pictures at two depths, a broken one, and what is none."""
    for number, name in enumerate(("b.png", "a/x.jpg", "a/b.png")):
        draw(f"pics/{name}", number)
    Path("pics/broken.png").write_text("no picture")
    Path("pics/notes.md").write_text("words")
    Path("pics/.hidden.png").write_text("")
    return "pics"


def batch(*words: Any) -> int:
    return main(["batch", *map(str, words)])


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_a_folder_gets_a_row_for_every_picture(pictures, capsys):
    assert batch(pictures, "the dog", "nothing", "-o", "out") == 0
    rows = lines("out/answers.jsonl")
    assert [row["id"] for row in rows] == ["b.png", "broken.png", "a/b.png", "a/x.jpg"]
    good, (bad,) = [row for row in rows if not row["error"]], [row for row in rows if row["error"]]
    assert (
        bad["id"] == "broken.png"
        and "not" in bad["error"]
        and bad["segments"] == []
        and bad["asked"] == ["the dog", "nothing"]
    )
    for row in good:
        (segment,) = row["segments"]
        assert Mask.from_rle(segment["masks"][0]) == Mask.from_array(LEFT)
        assert (segment["phrase"], segment["score"], segment["area"]) == ("the dog", 0.75, LEFT.sum())
        assert row["text"] == "It is the dog.\nIt is nothing." and row["reasons"] == [None, "there is none"]
        assert row["size"] == list(SIZE) and row["model"] == "tiny" and row["settings"]["threshold"] == 0.5
        assert len(row["revision"]) == 16
    summary = json.loads(Path("out/summary.json").read_text())
    assert (summary["rows"], summary["answered"], summary["errors"], summary["objects"]) == (4, 3, 1, 3)
    assert [(one["text"], one["found_in"]) for one in summary["asked"]] == [("the dog", 3), ("nothing", 0)]
    assert summary["run"]["rows"] == 4
    page = Path("out/sheet.html").read_text()
    assert page.count("<img") == 9 and "broken.png" in page  # sample, emptiest, least sure
    assert "4 rows, 3 objects" in capsys.readouterr().out


def test_rows_that_failed_are_a_manifest(pictures):
    Path("rows.jsonl").write_text('{"media": "pics/broken.png", "question": "Why?", "split": 3}\n')
    assert batch("rows.jsonl", "-o", "out") == 0
    (again,) = lines("out/errors.jsonl")
    assert again["question"] == "Why?" and again["split"] == 3 and "not" in again["earlier_error"]
    draw("pics/broken.png")
    assert batch("out/errors.jsonl", "-o", "mended") == 0
    (row,) = lines("mended/answers.jsonl")
    assert row["error"] is None and row["text"] == "It is Why?." and row["split"] == 3


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_manifests(pictures, model, suffix):
    table = [
        {"image": "pics/b.png", "id": "one", "phrases": ["the dog", "a cat"], "weight": 2},
        {"image": "pics/a/x.jpg", "id": "two", "question": "What?", "weight": 3},
        {"image": os.path.abspath("pics/a/b.png"), "id": "three", "weight": None},
    ]
    if suffix == "jsonl":
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in table))
    elif suffix == "parquet":
        pq.write_table(
            pa.Table.from_pylist(
                table,
                pa.schema(
                    [
                        ("image", pa.string()),
                        ("id", pa.string()),
                        ("phrases", pa.list_(pa.string())),
                        ("question", pa.string()),
                        ("weight", pa.int64()),
                    ]
                ),
            ),
            "rows.parquet",
        )
    else:
        mark = "," if suffix == "csv" else "\t"
        rows = [["image", "id", "phrases", "question", "weight"], ["pics/b.png", "one", "the dog | a cat", "", "2"]]
        rows += [["pics/a/x.jpg", "two", "", "What?", "3"], [os.path.abspath("pics/a/b.png"), "three", "", "", ""]]
        Path(f"rows.{suffix}").write_text("".join(mark.join(row) + "\n" for row in rows))
    assert batch(f"rows.{suffix}", "--caption", "-o", "out", "--to", "jsonl,parquet") == 0
    rows = lines("out/answers.jsonl")
    assert [(row["id"], row["asked"], row["error"]) for row in rows] == [
        ("one", ["the dog", "a cat"], None),
        ("two", ["What?"], None),
        ("three", [], None),
    ]
    assert model.asked[2].caption and not model.asked[2].phrases
    assert [str(row["weight"] or "") for row in rows] == ["2", "3", ""]
    written = pq.read_table("out/answers.parquet")
    assert written.column("segments").to_pylist() == [row["segments"] for row in rows]
    assert written.column("weight").to_pylist() == [row["weight"] for row in rows]
    assert json.loads(written.column("settings")[0].as_py()) == rows[0]["settings"]


def test_lists_patterns_and_single_pictures(pictures):
    Path("pics/list.txt").write_text("b.png\n\na/x.jpg\n")
    for source, ids in (("pics/list.txt", ["b.png", "a/x.jpg"]), ("pics/a/*", ["pics/a/b.png", "pics/a/x.jpg"])):
        assert batch(source, "the dog", "-o", f"out-{len(ids[0])}") == 0
        assert [(row["id"], row["error"]) for row in lines(f"out-{len(ids[0])}/answers.jsonl")] == [
            (one, None) for one in ids
        ]
    assert batch("pics/b.png", "the dog", "-o", "one") == 0
    assert len(lines("one/answers.jsonl")) == 1


def test_urls_of_fsspec(pictures):
    files = fsspec.filesystem("memory")
    files.put("pics/", "/bucket/pics", recursive=True)
    files.pipe("/bucket/rows.jsonl", b'{"url": "pics/b.png"}\n{"url": "memory://bucket/pics/gone.png"}\n')
    assert batch("memory://bucket/pics", "the dog", "-o", "folder", "--to", "coco") == 0
    assert len(COCO("folder/coco/annotations.json").anns) == 3
    assert (Path("folder/coco/images") / "0000002-b.png").read_bytes() == Path("pics/b.png").read_bytes()
    assert batch("memory://bucket/rows.jsonl", "the dog", "-o", "rows") == 0
    good, gone = lines("rows/answers.jsonl")
    assert good["source"] == "memory://bucket/pics/b.png" and good["error"] is None
    assert "gone.png" in gone["error"]
    assert batch("memory://bucket/pics/a/*.jpg", "the dog", "-o", "pattern") == 0
    assert [row["source"] for row in lines("pattern/answers.jsonl")] == ["memory:///bucket/pics/a/x.jpg"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"image": "a.png"}\n', "nothing is asked"),
        ('{"name": "a.png", "phrases": ["x"]}\n', "no column names a picture"),
        ('{"image": "a.png", "phrases": [1]}\n', "phrases are a list of texts"),
        ('{"image": "a.png", "phrases": ["x"], "question": "y"}\n', "exactly one of"),
        ('{"image": "a.png", "phrases": ["x"], "score": 1, "text": "t"}\n', "columns text have names of the results"),
        ('{"image": "a.png"\n', "rows.jsonl:1"),
        ("", "no rows"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_told_before_a_model_is_loaded(model, rows, message, capsys):
    Path("rows.jsonl").write_text(rows)
    assert batch("rows.jsonl", "-o", "out") == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists() and not model.asked


def test_other_settings_are_refused_with_both_shown(pictures, capsys):
    assert batch(pictures, "the dog", "-o", "out") == 0
    before = Path("out/answers.jsonl").read_bytes()
    assert batch(pictures, "a cat", "-o", "out", "--threshold", "0.3", "--resume") == 2
    told = capsys.readouterr().err
    assert 'phrases ["the dog"], threshold 0.5' in told and 'phrases ["a cat"], threshold 0.3' in told
    assert batch(pictures, "the dog", "-o", "out") == 2
    assert "1 of 1 shards answered; go on with --resume" in capsys.readouterr().err
    assert Path("out/answers.jsonl").read_bytes() == before


def test_other_weights_are_refused(pictures, model, capsys):
    assert batch(pictures, "the dog", "-o", "out") == 0
    next(Path("out/shards").iterdir()).unlink()
    model.model.weight += 1
    assert batch(pictures, "the dog", "-o", "out", "--resume") == 2
    assert "other weights" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(pictures, capsys):
    assert batch(pictures, "the dog", "-o", "pics/a") == 2
    assert "not empty" in capsys.readouterr().err
    assert sorted(os.listdir("pics/a")) == ["b.png", "x.jpg"]


def test_forms_are_added_without_asking_again(pictures, model):
    assert batch(pictures, "the dog", "-o", "out") == 0
    asked = len(model.asked)
    assert batch(pictures, "the dog", "-o", "out", "--to", "coco,png", "--overlays", "--resume") == 0
    assert len(model.asked) == asked
    assert Path("out/coco/annotations.json").is_file() and len(list(Path("out/overlays").glob("*.jpg"))) == 3


@pytest.fixture
def formats(pictures) -> Path:
    """All forms of the results of the pictures."""
    Image.new("RGB", (8, 8)).save("pics/clip.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    assert batch(pictures, "the dog", "-o", "out", "--to", "coco,yolo,label-studio,png", "--overlays") == 0
    return Path("out")


def test_datasets_are_read_back(formats):
    coco = COCO(str(formats / "coco/annotations.json"))
    assert len(coco.imgs) == 5 and len(coco.anns) == 5  # three pictures, two frames
    for name in ("coco", "yolo"):
        assert main(["data", "check", str(formats / name)]) == 0
    names = yaml.safe_load((formats / "yolo/data.yaml").read_text())["names"]
    assert names == {0: "the dog"}
    labels = sorted((formats / "yolo/labels").rglob("*.txt"))
    assert len(labels) == 5
    number, *shares = labels[-1].read_text().split()
    assert number == "0" and {float(share) for share in shares} == {0.0, 0.5, 1.0}
    tasks = json.loads((formats / "label-studio/tasks.json").read_text())
    (result,) = tasks[0]["predictions"][0]["result"]
    size = result["original_height"], result["original_width"]
    brush = decode_brush(bytes(result["value"]["rle"]), 4 * size[0] * size[1]).reshape(*size, 4)
    expected = LEFT if size == SIZE else np.arange(8)[None].repeat(8, 0) < 4
    assert ((brush == 255).all(axis=2) == expected).all() and set(np.unique(brush)) == {0, 255}
    assert '<Label value="the dog"/>' in (formats / "label-studio/config.xml").read_text()


def test_pictures_are_drawn(formats):
    masks = sorted(path.relative_to(formats / "masks").as_posix() for path in (formats / "masks").rglob("*.png"))
    assert len(masks) == 5 and sum("clip/" in name for name in masks) == 2
    picture = Image.open(formats / "masks" / next(name for name in masks if name.endswith("-x.png")))
    assert picture.mode == "P" and (np.asarray(picture) == LEFT).all()
    assert len(list((formats / "overlays").rglob("*.jpg"))) == 5


def test_errors_stop_it_when_they_are_too_many(pictures, model, capsys):
    assert batch(pictures, "the dog", "-o", "out", "--max-errors", "0") == 2
    assert "broken.png" in capsys.readouterr().err and not Path("out/answers.jsonl").exists()
    asked = len(model.asked)
    assert batch(pictures, "the dog", "-o", "out", "--max-errors", "1", "--resume") == 0
    assert len(model.asked) == asked and len(lines("out/answers.jsonl")) == 4


def test_a_dry_run_writes_nothing(pictures, capsys):
    assert batch(pictures, "the dog", "-o", "out", "--dry-run") == 0
    told = capsys.readouterr()
    assert "a/x.jpg: the dog" in told.out and "4 rows; 4 of them were answered" in told.out
    assert "broken.png" in told.err and not Path("out").exists()


def test_one_process_at_a_time(pictures, capsys):
    from sa2va.atomic import sole_writer

    Path("out").mkdir()
    with sole_writer(Path("out")):
        assert batch(pictures, "the dog", "-o", "out") == 2
    assert "another process is writing" in capsys.readouterr().err


def test_a_picture_that_went_is_left_out_of_datasets(pictures, capsys):
    assert batch(pictures, "the dog", "-o", "out") == 0
    Path("pics/b.png").unlink()
    assert batch(pictures, "the dog", "-o", "out", "--resume", "--to", "coco") == 0
    assert "pics/b.png cannot be had any more" in capsys.readouterr().err
    assert len(COCO("out/coco/annotations.json").imgs) == 2


def test_memory_does_not_grow_with_the_rows(model):
    """Requests alive at once, and the blocks of memory in use, for many rows and for a tenth of them."""
    draw("one.png")
    alive: set[int] = set()

    def count(requests: Iterator[Any], *, ahead: int = 16) -> Iterator[Any]:
        for request in requests:
            alive.add(request.id)
            weakref.finalize(request, alive.discard, request.id)
            assert len(alive) < 200
            yield Reply(request, (FOUND,), None)

    model.answers = count
    peaks = []
    for rows in (600, 600, 6_000):  # the first run imports
        Path("rows.jsonl").write_text("".join(f'{{"image": "one.png", "id": "{n}"}}\n' for n in range(rows)))
        with sampled_blocks() as blocks:
            assert batch("rows.jsonl", "the dog", "-o", f"out-{len(peaks)}", "--quiet") == 0
        peaks.append(max(blocks))
    assert len(lines("out-2/answers.jsonl")) == 6_000
    assert peaks[2] - peaks[1] < 5_400  # not even one object for each row more


@contextmanager
def sampled_blocks() -> Iterator[list[int]]:
    """The number of blocks that Python has allocated, every few milliseconds while the block runs."""
    blocks, done = [], threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            blocks.append(sys.getallocatedblocks())

    sampler = threading.Thread(target=sample)
    sampler.start()
    yield blocks
    done.set()
    sampler.join()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_at_any_moment_every_row_is_answered_once(model, monkeypatch):
    """In a child that is killed again and again: listing, answering and writing are all hit by some of the kills."""
    for number in range(150):
        draw(f"pics/{number:03d}.png", number)
    began = time.monotonic()
    assert batch("pics", "the dog", "-o", "whole") == 0
    seconds = time.monotonic() - began
    monkeypatch.setattr(StandIn, "answers", _noted(StandIn.answers))
    chance = random.Random(0)
    kills = 0
    while True:
        if (child := os.fork()) == 0:
            os._exit(batch("pics", "the dog", "-o", "out", "--resume", "--to", "jsonl,coco", "--quiet"))
        time.sleep(chance.uniform(0, seconds * (0.5 + 0.1 * kills)))
        os.kill(child, signal.SIGKILL)
        if os.WIFEXITED(os.waitpid(child, 0)[1]):
            break
        kills += 1
        for path in Path("out").glob("[a-z]*.jsonl"):  # whatever is there is whole
            assert len(lines(path)) == (0 if path.name == "errors.jsonl" else 150)
    assert kills > 3
    rows = lines("out/answers.jsonl")
    assert [row["index"] for row in rows] == list(range(150)) and not any(row["error"] for row in rows)
    assert len(COCO("out/coco/annotations.json").imgs) == 150
    # A shard that is there is never asked again.
    shards = Counter(int(line) // 64 for line in Path("asked").read_text().split())
    assert min(shards.values()) >= 8
    assert lines("whole/answers.jsonl") == rows
    assert not [path for path in Path("out").rglob(".*")]


def _noted(answers: Any) -> Any:
    def noted(self: StandIn, requests: Iterator[Any], **options: Any) -> Iterator[Any]:
        for reply in answers(self, requests, **options):
            with open("asked", "a") as file:
                file.write(f"{reply.request.id}\n")
            time.sleep(0.0005)
            yield reply

    return noted
