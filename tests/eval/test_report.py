"""The report of a run: what it says, beside what, and that no text of a model or an annotation becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sa2va import Mask
from sa2va.cli import main
from sa2va.eval import benchmarks as table
from sa2va.eval.asking import Settings
from sa2va.eval.benchmark import Prediction, Row, Scores
from sa2va.eval.header import RunHeader
from sa2va.eval.predict import BenchmarkRecord
from sa2va.eval.report import report
from sa2va.eval.score import score_all
from sa2va.eval.shards import ShardWriter, shard_path
from sa2va.eval.showing import extremes
from sa2va.eval.synthetic import SyntheticBenchmark, synthetic_benchmark

EVIL = "<script>alert('x')</script> | [a](javascript:b) `c` **d** <img src=x> &amp; \x1b[31m"
HEADER = RunHeader(
    model="ByteDance/Sa2VA-4B",
    revision="0123abcd",
    config="c0ffee",
    weights="feedbeef",
    dtype="bfloat16",
    device="cuda",
    device_name="A Card",
    mode="consistent",
    settings={**Settings(key_frames="first", threshold=0.37).record},
    versions={"sa2va": "1.2.3", "torch": "9.8.7"},
)
PUBLISHED = {"Sa2VA-4B": 61.25, "Sa2VA-8B": 70.0}


class Page(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def guess(benchmark: SyntheticBenchmark) -> list[Prediction]:
    """Right masks for every other query, none for the rest; evil words throughout."""
    found = []
    for number, case in enumerate(benchmark.cases):
        masks = case.masks if number % 2 else ()
        rle = tuple(tuple(Mask.from_array(np.ascontiguousarray(one)) for one in mask) for mask in masks)
        found.append(Prediction(case.query.id, EVIL, EVIL, rle, (EVIL,) * len(rle), 0.1))
    return found


def put(out: Path, benchmark: SyntheticBenchmark) -> None:
    """A folder of predictions."""
    folder = out / benchmark.name
    BenchmarkRecord(benchmark.name, str(out), None).widen(folder)
    with ShardWriter(shard_path(folder, 0, 1)) as writer:
        writer.write(guess(benchmark))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a picture, a clip, a region, a question and a text benchmark, scored."""
    HEADER.settle(tmp_path)
    tasks = ("refer", "clips", "region", "question", "text", "caption")
    for task in tasks:
        small = synthetic_benchmark(task, length=4)
        row = Row(small.name, lambda root, small=small: small, lambda root: {}, PUBLISHED, f"Title of {task} <b>")
        monkeypatch.setitem(table.BENCHMARKS, small.name, row)
        put(tmp_path, small)
    assert len(list(score_all(tmp_path))) == len(tasks)
    return tmp_path


def test_it_says_what_was_measured_and_how(run: Path):
    markdown, page = report(run)
    html = Page(page).text
    text = markdown.read_text(encoding="utf-8").replace("\\", "")
    for shown in (html, text):
        for fact in (
            "Sa2VA-4B", "0123abcd", "c0ffee", "feedbeef", "bfloat16", "A Card", "first, 5", "consistent", "0.37",
            "sa2va 1.2.3", "torch 9.8.7", "61.2", "Sa2VA-8B", "70.0", "cIoU (all intersections", "clips of 8 frames",
        ):  # fmt: skip
            assert fact in shown, fact
        assert "None" not in shown


def test_our_number_stands_beside_the_published_one(run: Path):
    (scores,) = [scores for answered, scores in score_all(run, ["synthetic/refer"]) if scores]
    ours = 100 * scores.values["ciou"]
    text = report(run)[0].read_text(encoding="utf-8")
    queries = len(synthetic_benchmark("refer", length=4).cases)
    row = f"| synthetic/refer | ciou | {ours:.1f} | 61.2 | {ours - 61.25:+.1f} | {queries} |"
    assert row in text
    for tag, group in scores.groups.items():
        assert f"| {tag} ({group['count']}) | {100 * group['ciou']:.1f} |" in text


def test_no_difference_is_shown_for_a_part(run: Path):
    (run / "synthetic/refer/benchmark.json").write_text('{"name": "synthetic/refer", "data": ".", "limit": 4}')
    text = report(run)[0].read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("| synthetic/refer")]
    assert "(first 4 items)" in line
    assert line.split(" | ")[4] == "-"


def test_nothing_a_model_says_becomes_markup(run: Path):
    markdown, page = report(run)
    found = Page(page)
    assert found.all("script") == []
    assert found.all("a") == []
    assert "<script>alert('x')</script>" in found.text
    assert {image["src"][:23] for image in found.all("img") if image["src"]} == {"data:image/jpeg;base64,"}
    (policy,) = [one for one in found.all("meta") if one.get("http-equiv")]
    assert "default-src 'none'" in (policy["content"] or "")
    text = markdown.read_text(encoding="utf-8")
    assert "<" not in text
    assert not re.search(r"(?<!\\)\[a(?<!\\)\]", text)
    assert "](javascript" not in text.replace(r"\]", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.endswith("|") for row in rows)


def test_worst_and_best_answers_are_shown(run: Path):
    markdown, page = report(run, ["synthetic/refer", "synthetic/clips"], samples=2)
    text, found = markdown.read_text(encoding="utf-8"), Page(page)
    assert text.count("**Worst**") == text.count("**Best**") == 2
    scores = [float(one) for one in re.findall(r"\* score: ([\d.]+)", text)]
    assert len(scores) == 8
    assert scores[:2] == sorted(scores[:2]) and scores[2:4] == sorted(scores[2:4], reverse=True)
    assert scores[1] <= scores[2]
    links = re.findall(r"!\[(\w+)\]\(([^)]+)\)", text)
    assert len(links) == len(found.all("img")) == 16
    for name, link in links:
        with Image.open(run / link) as picture:
            assert name in ("prediction", "truth")
            assert picture.width >= 200


def test_truth_and_prediction_are_drawn(run: Path):
    """A right answer looks like the truth, one without a mask like the bare picture."""
    text = report(run, ["synthetic/refer"], samples=1)[0].read_text(encoding="utf-8")
    pictures = [np.asarray(Image.open(run / link), int) for link in re.findall(r"\]\((report/[^)]+)\)", text)]
    wrong, missed, right, truth = pictures
    assert np.abs(wrong - missed).max() > 40
    # A right answer carries its phrase as a label, so it may differ from the truth in a few places only.
    assert np.median(np.abs(right - truth)) == 0


def test_numbers_only(run: Path):
    markdown, page = report(run, pictures=False)
    assert "Worst" not in markdown.read_text(encoding="utf-8")
    assert Page(page).all("img") == []
    assert not (run / "report").exists()


def test_extremes_are_apart():
    scores = {"a": 0.5, "b": 0.1, "c": 0.9, "d": 0.1}
    assert extremes(scores, 2) == (["b", "d"], ["c", "a"])
    assert extremes(scores, 9) == (["b", "d"], ["c", "a"])
    assert extremes({"a": 1.0}, 3) == ([], ["a"])


def test_what_is_not_scored_is_not_reported(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "synthetic/refer/scores.json").unlink()
    assert main(["eval", "report", str(run)]) == 2
    assert "synthetic/refer was not scored; run `sa2va eval score" in capsys.readouterr().err
    assert main(["eval", "report", str(run), "synthetic/clips"]) == 0
    assert capsys.readouterr().out.split() == [str(run / "report.md"), str(run / "report.html")]


def test_a_server_benchmark_is_reported_without_scores(run: Path, monkeypatch: pytest.MonkeyPatch):
    server = replace(synthetic_benchmark("refer", length=4), submission=True)
    row = Row(server.name, lambda root: server, lambda root: {}, {}, "Server")
    monkeypatch.setitem(table.BENCHMARKS, server.name, row)
    (run / "synthetic/refer/scores.json").unlink()
    text = report(run, ["synthetic/refer"])[0].read_text(encoding="utf-8")
    assert "| synthetic/refer | on a server | - |" in text


def test_damaged_scores_are_named(run: Path):
    (run / "synthetic/refer/scores.json").write_text("{}")
    with pytest.raises(ValueError, match=r"scores.json holds no scores: .*run `sa2va eval score` again"):
        report(run)


def test_notices_are_passed_on(run: Path, monkeypatch: pytest.MonkeyPatch):
    class Quiet(SyntheticBenchmark):
        def score(self, predictions):
            found = super().score(predictions)
            return Scores(found.values, found.groups, found.samples, found.headline, ("METEOR needs <Java>",))

    row = synthetic_benchmark("refer", length=4)
    quiet = Quiet(row.name, row.kind, row.world, row.measure)
    monkeypatch.setitem(table.BENCHMARKS, row.name, Row(row.name, lambda root: quiet, lambda root: {}, {}, "Quiet"))
    list(score_all(run, ["synthetic/refer"]))
    markdown, page = report(run, ["synthetic/refer"])
    assert "METEOR needs &lt;Java&gt;" in markdown.read_text(encoding="utf-8")
    assert "METEOR needs <Java>" in Page(page).text
