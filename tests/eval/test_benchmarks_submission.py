"""Sets of a server: the zip that each takes, read back; what is wrong with a zip is named."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from miniatures.benchmarks import prediction, silent
from miniatures.videos import EXPRESSIONS, FRAMES, film, write_mevis, write_ref_youtube_vos
from sa2va.eval.benchmarks import BENCHMARKS
from sa2va.eval.benchmarks.server_scored import check_submission

#: How each set is written, its videos, and what its zip's paths begin with.
SETS = {
    "mevis/valid": (lambda root: write_mevis(root, "valid"), ("0a1b", "9z8y"), ""),
    "mevis/test": (lambda root: write_mevis(root, "test"), ("0a1b", "9z8y"), ""),
    "ref-youtube-vos/valid": (
        lambda root: write_ref_youtube_vos(root, "valid"),
        ("003234408d", "0062f687f1"),
        "Annotations/",
    ),
}


def answers(benchmark, name: str, videos: tuple[str, str]):
    """One video's first expression is answered with its red square, all others with nothing."""
    query = f"{name}/{videos[0]}/0"
    return silent(benchmark) | {query: prediction(query, film(videos[0]).objects[1])}


@pytest.fixture
def packed(tmp_path):
    """A zip of MeViS, as a path and as its files by name."""
    write_mevis(tmp_path, "valid")
    benchmark = BENCHMARKS["mevis/valid"].open(tmp_path)
    path = benchmark.pack(silent(benchmark), tmp_path / "out.zip")
    with zipfile.ZipFile(path) as archive:
        return benchmark, path, {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("name", SETS)
def test_a_packed_zip_holds_every_frame_of_every_expression(name, tmp_path):
    write, videos, folder = SETS[name]
    write(tmp_path)
    benchmark = BENCHMARKS[name].open(tmp_path)
    assert benchmark.submission
    path = benchmark.pack(answers(benchmark, name, videos), tmp_path / "sent" / "out.zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {
            f"{folder}{video}/{expression}/{frame:05d}.png"
            for video in videos
            for expression in EXPRESSIONS
            for frame in range(FRAMES)
        }
        for frame, truth in enumerate(film(videos[0]).objects[1]):
            picture = Image.open(io.BytesIO(archive.read(f"{folder}{videos[0]}/0/{frame:05d}.png")))
            assert (picture.format, picture.mode) == ("PNG", "L")
            np.testing.assert_array_equal(np.asarray(picture), 255 * truth)
        other = np.asarray(Image.open(io.BytesIO(archive.read(f"{folder}{videos[1]}/10/00003.png"))))
        assert other.shape == (40, 56) and not other.any()


def test_the_same_answers_give_the_same_bytes(tmp_path):
    write, videos, _ = SETS["mevis/valid"]
    write(tmp_path)
    benchmark = BENCHMARKS["mevis/valid"].open(tmp_path)
    given = answers(benchmark, "mevis/valid", videos)
    one, two = (benchmark.pack(given, tmp_path / f"{number}.zip") for number in (1, 2))
    assert one.read_bytes() == two.read_bytes()


def test_server_sets_have_no_scores_here(tmp_path):
    write_mevis(tmp_path, "valid")
    benchmark = BENCHMARKS["mevis/valid"].open(tmp_path)
    with pytest.raises(ValueError, match=r"no public masks.*15094"):
        benchmark.score(silent(benchmark))
    assert benchmark.expected("mevis/valid/0a1b/0").masks == ()


def test_nothing_is_left_of_a_zip_that_cannot_be_completed(tmp_path):
    write_mevis(tmp_path, "valid")
    benchmark = BENCHMARKS["mevis/valid"].open(tmp_path)
    given = silent(benchmark)
    query = "mevis/valid/9z8y/2"
    path = tmp_path / "sent" / "out.zip"
    with pytest.raises(ValueError, match="mevis/valid/9z8y/2"):
        benchmark.pack({name: one for name, one in given.items() if name != query}, path)
    with pytest.raises(ValueError, match="has 3 masks"):
        benchmark.pack(given | {query: prediction(query, np.zeros((3, 40, 56), bool))}, path)
    assert not path.parent.exists() or list(path.parent.iterdir()) == []


def rewritten(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def png(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


FIRST = "0a1b/0/00000.png"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda files: files.pop(FIRST), "63 files for 64 frames, see.*0a1b/0/00000.png"),
        (lambda files: files.update({"0a1b/0/00008.png": files[FIRST]}), "65 files.*00008"),
        (lambda files: files.update({"Annotations/" + FIRST: files.pop(FIRST)}), "Annotations"),
        (lambda files: files.update({FIRST: png(np.zeros((40, 56), np.uint8))}), r"of \(48, 64\)"),
        (lambda files: files.update({FIRST: png(np.ones((48, 64), np.uint8))}), "0 and 255 only"),
        (lambda files: files.update({FIRST: png(np.zeros((48, 64, 3), np.uint8))}), "8-bit grey"),
        (lambda files: files.update({FIRST: png(np.zeros((48, 64), np.uint8), "JPEG")}), "PNG"),
        (lambda files: files.update({FIRST: b"no picture"}), "not a picture"),
    ],
)
def test_what_is_wrong_with_a_zip_is_named(change, problem, packed):
    benchmark, path, files = packed
    check_submission(path, benchmark.entries, "")
    change(files)
    with pytest.raises(ValueError, match=problem):
        check_submission(rewritten(path, files), benchmark.entries, "")


def test_a_file_that_is_no_zip_is_named(packed):
    benchmark, path, _ = packed
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"out\.zip is no valid submission"):
        check_submission(path, benchmark.entries, "")
