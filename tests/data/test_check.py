"""``sa2va data``: what is in a folder, what is wrong with it, and samples as pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from miniatures.videos import (
    write_mevis,
    write_own_videos,
    write_ref_davis17,
    write_ref_sav,
    write_ref_youtube_vos,
    write_revos,
    write_video_qa,
)
from rectangles import Rectangles
from sa2va import Sa2VA
from sa2va.cli import main
from sa2va.data.check import KNOWN_SETS, OWN_FORMS, check_set, open_set, present_sets
from sa2va.data.encode import EncodeOptions, encode_sample
from sa2va.data.preview import as_trained, preview

WRITERS: dict[str, Callable[[Path], object]] = {
    "revos": write_revos,
    "mevis": write_mevis,
    "ref-ytvos": write_ref_youtube_vos,
    "ref-davis17": lambda root: write_ref_davis17(root, "train"),
    "ref-sav": write_ref_sav,
    "video-chat": write_video_qa,
    "video-json": write_own_videos,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for write in WRITERS.values():
        write(folder)
    return folder


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A copy of every set, to be hurt."""
    return Path(shutil.copytree(written, tmp_path, dirs_exist_ok=True))


def test_every_set_is_found_and_good(root: Path):
    assert set(present_sets(root)) == set(WRITERS)
    for name in WRITERS:
        steps: list[tuple[int, int]] = []
        report = check_set(root, name, most=None, step=lambda done, total: steps.append((done, total)))  # noqa: B023
        assert report.good and (report.samples, report.checked) == (2, 2), report
        assert steps == [(1, 2), (2, 2)]
        turns = {"ref-sav": 4, "video-chat": 3}.get(name, 8)
        objects = 0 if name == "video-chat" else turns
        assert (report.turns, report.objects) == (turns, objects)
        if objects == 8:
            assert report.unseen == 2  # the square that is never there


def test_all_factories_exist():
    for name, known in KNOWN_SETS.items():
        with pytest.raises((ValueError, OSError)):
            known.open(Path("/nowhere"))
        assert not known.is_there(Path("/nowhere")), name
    assert set(OWN_FORMS) < KNOWN_SETS.keys()


def test_two_forms_of_annotations_are_told_apart(tmp_path: Path):
    path = tmp_path / "annotations.json"
    path.write_text('\n [{"image": "a.jpg"}]')
    assert present_sets(tmp_path) == ["annotations"]
    path.write_text('{"images": []}')
    assert present_sets(tmp_path) == ["coco"]


def test_missing_files_and_broken_samples_are_named(root: Path):
    mevis = root / "video_datas/mevis/train/JPEGImages"
    for picture in (mevis / "0a1b").iterdir():
        picture.write_bytes(b"no picture")
    report = check_set(root, "mevis")
    assert report.samples == 2 and report.broken_count == 1 and not report.good
    assert report.broken[0][0] == "mevis[0]" and "0a1b" in report.broken[0][1]
    (mevis / "9z8y/00001.jpg").unlink()
    report = check_set(root, "mevis")
    assert report.samples == 1 and any("9z8y/00001.jpg" in line for line in report.problems)
    (root / "video_datas/Ref-SAV.json").write_text("{")
    report = check_set(root, "ref-sav")
    assert report.samples == 0 and "is not JSON" in report.problems[0]


def test_wrong_arguments_are_refused(root: Path):
    with pytest.raises(ValueError, match="no data set is named 'nothing'"):
        open_set(root, "nothing")
    with pytest.raises(ValueError, match="is not a folder"):
        present_sets(root / "nowhere")
    with pytest.raises(ValueError, match="most must be at least 1"):
        check_set(root, "mevis", most=0)


# -- commands ----------------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_there(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "check", str(root)]) == 0
    told = capsys.readouterr()
    assert all(name in told.out for name in WRITERS)
    assert "not in this folder: refcoco, " in told.err and "warning" not in told.err
    assert "nothing is missing or malformed" in told.err
    assert main(["data", "check", str(root), "--json", "--set", "mevis", "--all"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] and [one["name"] for one in record["sets"]] == ["mevis"] and "revos" in record["absent"]


def test_the_command_fails_and_says_why(root: Path, capsys: pytest.CaptureFixture[str]):
    (root / "video_datas/mevis/train/JPEGImages/0a1b/00003.jpg").unlink()
    (root / "video_datas/revos/mask_dict.json").unlink()
    assert main(["data", "check", str(root)]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "00003.jpg" in told and "mask_dict.json" in told and "1 entries are good" in told
    assert "nothing is missing" not in told
    empty = root / "empty"
    empty.mkdir()
    assert main(["data", "check", str(empty)]) == 2
    assert "annotations.json, annotations.xml, annotations/instances_*.json, chat.jsonl" in capsys.readouterr().err


def test_the_sheet_shows_samples(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sheet = tmp_path / "sheet.png"
    assert main(["data", "preview", str(root), "-o", str(sheet), "-n", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["samples"]) == len(WRITERS)
    with Image.open(sheet) as image:
        colors = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert image.width > 4 * 320 and len(np.unique(colors, axis=0)) > 100
    assert main(["data", "preview", str(root), "-o", "sheet.jpg"]) == 2


def test_the_sheet_leaves_out_what_is_broken(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for picture in (root / "video_datas/mevis/train/JPEGImages/0a1b").iterdir():
        picture.write_bytes(b"no picture")
    command = ["data", "preview", str(root), "-o", str(tmp_path / "s.png"), "--set", "mevis"]
    assert main([*command, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["samples"] == ["mevis/9z8y"] and "mevis[0] is broken" in told.err
    for picture in (root / "video_datas/mevis/train/JPEGImages/9z8y").iterdir():
        picture.write_bytes(b"no picture")
    assert main(command) == 2


def test_the_sheet_as_a_model_is_trained(root: Path, tmp_path: Path, checkpoint: Callable[[str], Path]):
    sheet = tmp_path / "sheet.png"
    arguments = ["--set", "revos", "--set", "video-chat", "--model", str(checkpoint("iv25_qwen2"))]
    assert main(["data", "preview", str(root), "-o", str(sheet), *arguments]) == 0
    assert sheet.is_file()


# -- as trained --------------------------------------------------------------------------------------------------------


def test_samples_as_trained_are_what_encoding_makes(sa2va: Sa2VA, tmp_path: Path):
    sample = Rectangles()[2]
    encoded = encode_sample(sample, sa2va.processor)
    options = EncodeOptions(max_length=len(encoded.ids) - 1)
    seen = as_trained(sample, sa2va.processor, options).validate()
    side = sa2va.processor.grounding_side
    assert seen.size == (side, side) and len(seen.turns) == len(seen.masks) == 2
    assert encoded.masks is not None
    assert np.array_equal(seen.masks[1][0][::4, ::4], encoded.masks[1, 0].numpy())
    shorter = encode_sample(sample, sa2va.processor, options)
    assert seen.id == f"rectangles-2 ({len(shorter.ids)} tokens, 1 turns dropped)"
    text = as_trained(Rectangles(text_every=1)[0], sa2va.processor)
    assert preview([seen, text], tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize("name", KNOWN_SETS)
def test_every_set_has_its_reader(name: str, tmp_path: Path):
    with pytest.raises((ValueError, OSError)):  # what is missing, not a module that is not there
        KNOWN_SETS[name].open(tmp_path)
    assert name not in present_sets(tmp_path)
