"""The report of a run: what it says, beside what, and that no text of a model or an annotation becomes markup."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sa2va import Mask
from sa2va.cli import main
from sa2va.eval import benchmarks as table
from sa2va.eval.benchmark import BenchmarkSpec, Prediction, Scores
from sa2va.eval.predict import BenchmarkRecord, Settings
from sa2va.eval.prediction_files import ShardWriter, shard_path
from sa2va.eval.report import report, written
from sa2va.eval.run_metadata import RunHeader
from sa2va.eval.sample_images import extremes
from sa2va.eval.score import score_all
from sa2va.tiny.synthetic_benchmarks import SyntheticBenchmark, synthetic_benchmark

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
    """A run of benchmarks of every kind, scored."""
    HEADER.settle(tmp_path)
    tasks = ("refer", "clips", "region", "question", "text", "caption", "chat")
    for task in tasks:
        small = synthetic_benchmark(task, length=4)
        row = BenchmarkSpec(
            small.name, lambda root, small=small: small, lambda root: {}, PUBLISHED, f"Title of {task} <b>"
        )
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
    row = f"| synthetic/refer | cIoU | {ours:.1f} | 61.2 | {ours - 61.25:+.1f} | {queries} |"
    assert row in text
    for tag, group in scores.groups.items():
        assert f"| {tag} ({group['count']}) | {100 * group['ciou']:.1f} |" in text


def put_row(monkeypatch: pytest.MonkeyPatch, scores: Scores, **fields: Any) -> None:
    """Let a benchmark of the run have these scores, and its row these fields."""

    class Fixed(SyntheticBenchmark):
        def score(self, predictions: Mapping[str, Prediction]) -> Scores:
            return scores

    one = synthetic_benchmark("refer", length=4)
    fixed = Fixed(one.name, one.kind, one.world, one.measure)
    row = BenchmarkSpec(one.name, lambda root: fixed, lambda root: {}, PUBLISHED, "Fixed", **fields)
    monkeypatch.setitem(table.BENCHMARKS, one.name, row)


def refer_table(run: Path) -> str:
    list(score_all(run, ["synthetic/refer"]))
    return report(run, ["synthetic/refer"], pictures=False)[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(("metric", "theirs"), [("", "61.2 | -11.2"), ("word_f1", "61.2 | -11.2"), ("meteor", "- | -")])
def test_a_number_of_another_metric_is_not_compared(run: Path, monkeypatch, metric: str, theirs: str):
    """Without Java the headline of captions is another one than what was published."""
    put_row(monkeypatch, Scores({"word_f1": 0.5}, {}, {}, "word_f1"), metric=metric)
    text = refer_table(run).replace("\\", "")
    assert f"| word f1 | 50.0 | {theirs} |" in text
    assert f"| published for | {'METEOR' if metric == 'meteor' else 'word f1'} |" in text


def test_values_of_groups_alone_and_points_are_shown(run: Path, monkeypatch: pytest.MonkeyPatch):
    scores = Scores({"perception": 12.5}, {"count": {"count": 2, "score": 1.5}, "": {"score": 9.0}}, {}, "perception")
    put_row(monkeypatch, scores, unit="points")
    text = refer_table(run)
    assert "All numbers are percent, those of synthetic/refer points." in text
    assert "|  | perception | score |" in text
    assert "| all | 1250.0 | - |\n| count (2) | - | 150.0 |\n\n" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            ("ciou", "cIoU"),
            ("j&f_by_expression", "J&F by expression"),
            ("n_acc<50px", "N-acc<50px"),
            ("pr@0.5", "Pr@0.5"),
        ),
        *(("ap50", "AP50"), ("f1", "F1"), ("meteor_raw", "METEOR raw"), ("accuracy", "accuracy"), ("recall", "recall")),
        *(("phrase_recall", "phrase recall"), ("accuracy/dev", "accuracy/dev"), ("a", "A"), ("precision", "precision")),
    ],
)
def test_names_are_written_as_papers_do(name: str, expected: str):
    assert written(name) == expected


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
    """A right answer looks like the truth; without a mask everything is faded."""
    text = report(run, ["synthetic/refer"], samples=1)[0].read_text(encoding="utf-8")
    pictures = [np.asarray(Image.open(run / link), int) for link in re.findall(r"\]\((report/[^)]+)\)", text)]
    wrong, missed, right, truth = pictures
    assert np.abs(wrong - missed).max() > 40
    # A right answer carries its phrase as a label, so it may differ from the truth in a few places only.
    assert np.median(np.abs(right - truth)) == 0
    item, *_ = synthetic_benchmark("refer", length=4).items()
    assert isinstance(item.media, np.ndarray)
    spread = item.media.astype(float).std()
    assert wrong.std() < 0.5 * spread, "nothing was pointed at, so nothing stands out"


def test_a_question_is_shown_with_its_picture_as_it_is(run: Path):
    text = report(run, ["synthetic/question"], samples=1)[0].read_text(encoding="utf-8")
    assert {name for name, _ in re.findall(r"!\[(\w+)\]\(([^)]+)\)", text)} == {"picture"}
    (first, *_) = re.findall(r"\]\((report/[^)]+)\)", text)
    (name,) = re.findall(r"\* query: synthetic/question/val-2024-(\d+)/\d+", text)[:1]
    shown = Image.open(run / first).resize((128, 128), Image.Resampling.BOX)
    picture = synthetic_benchmark("question", length=4).items()[int(name)].media
    assert isinstance(picture, np.ndarray)
    assert np.abs(np.asarray(shown, int) - picture).mean() < 6


def test_a_turn_of_a_conversation_is_shown_with_those_before_it(run: Path):
    text = report(run, ["synthetic/chat"], samples=20)[0].read_text(encoding="utf-8").replace("\\", "")
    cases = synthetic_benchmark("chat", length=4).cases
    later = [case for case in cases if case.query.history]
    assert text.count("* before: ") == len(later) < len(cases)
    for case in later:
        assert f"{case.query.history[0].question} - {case.query.history[0].answer}" in text


def test_pictures_of_an_earlier_page_go(run: Path):
    report(run, ["synthetic/refer"], samples=3)
    mine = run / "report" / "mine.jpg"
    mine.touch()
    text = report(run, ["synthetic/refer"], samples=1)[0].read_text(encoding="utf-8")
    links = re.findall(r"\]\(report/([^)]+)\)", text)
    assert sorted(path.name for path in (run / "report").iterdir()) == [*links, mine.name]


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
    row = BenchmarkSpec(server.name, lambda root: server, lambda root: {}, {}, "Server")
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
    monkeypatch.setitem(
        table.BENCHMARKS, row.name, BenchmarkSpec(row.name, lambda root: quiet, lambda root: {}, {}, "Quiet")
    )
    list(score_all(run, ["synthetic/refer"]))
    markdown, page = report(run, ["synthetic/refer"])
    assert "METEOR needs &lt;Java&gt;" in markdown.read_text(encoding="utf-8")
    assert "METEOR needs <Java>" in Page(page).text
