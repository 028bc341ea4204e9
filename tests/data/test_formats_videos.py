"""Annotation files of videos: each layout exact, absent objects, unions, counters, and what is said of wrong files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from miniatures.videos import (
    FRAMES,
    TARGETS,
    VideoSet,
    write_mevis,
    write_own_videos,
    write_ref_davis17,
    write_ref_sav,
    write_ref_sav_benchmark,
    write_ref_youtube_vos,
    write_revos,
)
from sa2va.data.annotations.layout import MissingData
from sa2va.data.annotations.referring_video import RunLengths, RvosVideo, read_rvos
from sa2va.data.datasets.ref_sav import read_ref_sav


def _mevis(root: Path, split: str = "train") -> list[RvosVideo]:
    folder = root / "video_datas/mevis" / split
    masks = folder / "mask_dict.json"
    return read_rvos(folder / "meta_expressions.json", folder / "JPEGImages", masks if masks.exists() else None)


def _revos(root: Path) -> list[RvosVideo]:
    folder = root / "video_datas/revos"
    return read_rvos(folder / "meta_expressions_train_.json", folder, folder / "mask_dict.json")


def _ref_youtube_vos(root: Path) -> list[RvosVideo]:
    folder = root / "video_datas/rvos"
    expressions = folder / "meta_expressions/train/meta_expressions.json"
    return read_rvos(expressions, folder / "train/JPEGImages", folder / "mask_dict.pkl", counter="file")


def _ref_davis17(root: Path) -> list[RvosVideo]:
    folder = root / "video_datas/davis17"
    expressions = folder / "meta_expressions/valid/meta_expressions.json"
    return read_rvos(expressions, folder / "valid/JPEGImages", folder / "valid/mask_dict.pkl")


def _ref_sav_benchmark(root: Path) -> list[RvosVideo]:
    return read_rvos(root / "meta_expressions_valid.json", root / "videos", root / "mask_dict.json")


def _own(root: Path) -> list[RvosVideo]:
    return read_rvos(root / "meta_expressions.json", root / "JPEGImages", root / "Annotations")


@pytest.mark.parametrize(
    "write, read",
    [
        (write_mevis, _mevis),
        (write_revos, _revos),
        (write_ref_youtube_vos, _ref_youtube_vos),
        (write_ref_davis17, _ref_davis17),
        (write_ref_sav_benchmark, _ref_sav_benchmark),
        (lambda root: write_own_videos(root, index_pictures=True), _own),
    ],
    ids=["mevis", "revos", "ref-youtube-vos", "ref-davis17", "ref-sav-benchmark", "own"],
)
def test_every_layout_gives_its_videos_texts_and_masks(
    tmp_path: Path, write: Callable[[Path], VideoSet], read: Callable[[Path], list[RvosVideo]]
):
    written = write(tmp_path)
    videos = {video.id: video for video in read(tmp_path)}
    assert videos.keys() == written.films.keys()
    for name, film in written.films.items():
        video = videos[name]
        assert video.size == film.pictures.shape[1:3]
        assert [path.name for path in video.frames] == [f"{frame:05d}.jpg" for frame in range(FRAMES)]
        assert all(path.is_file() for path in video.frames)
        assert [expression.id for expression in video.expressions] == sorted(written.expressions[name])
        for expression in video.expressions:
            assert expression.text == written.expressions[name][expression.id]
            truth = written.masks[name, expression.id]
            masks = video.masks(expression)
            assert masks.dtype == np.bool_ and np.array_equal(masks, truth)
            assert np.array_equal(video.masks(expression, [6, 1]), truth[[6, 1]])


def test_kinds_and_objects_are_those_of_the_file(tmp_path: Path):
    write_revos(tmp_path)
    for video in _revos(tmp_path):
        assert {expression.id: expression.type_id for expression in video.expressions} == {
            "0": 0,
            "1": 1,
            "10": 0,
            "2": 2,
        }
        assert {e.id: e.object_ids for e in video.expressions} == TARGETS


def test_a_server_set_has_texts_but_no_masks(tmp_path: Path):
    written = write_mevis(tmp_path, "valid")
    (first, *_) = _mevis(tmp_path, "valid")
    assert {expression.text for expression in first.expressions} == set(written.expressions[first.id].values())
    assert first.expressions[0].annotation_ids == ()
    with pytest.raises(ValueError, match="comes without masks"):
        first.masks(first.expressions[0])


def test_the_counter_runs_over_sorted_videos_or_over_the_file(tmp_path: Path):
    write_ref_davis17(tmp_path)  # the file has "soapbox" before "bike-packing"
    numbers = {video.id: [e.annotation_ids for e in video.expressions] for video in _ref_davis17(tmp_path)}
    assert numbers == {
        "bike-packing": [("0",), ("1",), ("2",), ("3",)],
        "soapbox": [("4",), ("5",), ("6",), ("7",)],
    }
    folder = tmp_path / "video_datas/davis17"
    as_in_file = read_rvos(
        folder / "meta_expressions/valid/meta_expressions.json",
        folder / "valid/JPEGImages",
        folder / "valid/mask_dict.pkl",
        counter="file",
    )
    assert {video.id: video.expressions[0].annotation_ids for video in as_in_file} == {
        "soapbox": ("0",),
        "bike-packing": ("4",),
    }


def test_what_is_missing_is_listed_at_once(tmp_path: Path):
    with pytest.raises(MissingData) as error:
        read_rvos(tmp_path / "meta_expressions.json", tmp_path / "JPEGImages", tmp_path / "mask_dict.json")
    assert all(name in str(error.value) for name in ("meta_expressions.json", "JPEGImages", "mask_dict.json"))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda videos: videos["0a1b"].pop("frames"), r"video '0a1b': frames must be a list"),
        (lambda videos: videos["0a1b"]["expressions"]["1"].pop("exp"), r"'0a1b', expression '1': exp must be a text"),
        (lambda videos: videos["0a1b"]["expressions"]["1"].update(anno_id=["x"]), r"expression '1': ids must be whole"),
        (lambda videos: videos["0a1b"]["expressions"]["1"].update(anno_id=[7]), r"no such annotation .*'0a1b'.*'1'"),
        (lambda videos: videos["0a1b"]["frames"].pop(), r"with 8 frames for video '0a1b'.* with 7 frames"),
        (lambda videos: videos["0a1b"].update(expressions=[]), r"video '0a1b': expressions must be a dict"),
    ],
)
def test_wrong_expressions_are_named(tmp_path: Path, change: Callable[[dict], object], said: str):
    write_mevis(tmp_path)
    path = tmp_path / "video_datas/mevis/train/meta_expressions.json"
    content = json.loads(path.read_text())
    change(content["videos"])
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        _mevis(tmp_path)


def test_wrong_masks_are_named(tmp_path: Path):
    written = write_mevis(tmp_path)
    path = tmp_path / "video_datas/mevis/train/mask_dict.json"
    entries = json.loads(path.read_text())
    entries["101"][0]["counts"] = "0"
    entries["101"][1]["size"] = [8, 8]
    entries["101"][1]["counts"] = [64]
    path.write_text(json.dumps(entries))
    (video, _) = _mevis(tmp_path)
    red = next(expression for expression in video.expressions if expression.id == "0")
    with pytest.raises(ValueError, match=r"mask_dict\.json, annotation '101', frame 0: .*add up"):
        video.masks(red, [0])
    with pytest.raises(ValueError, match=r"frame 1: the mask has size \(8, 8\), the pictures \(48, 64\)"):
        video.masks(red, [1])
    assert np.array_equal(video.masks(red, [2]), written.masks["0a1b", "0"][[2]])
    entries["101"][3] = {"size": [48, 64]}
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"annotation '101', frame 3"):
        _mevis(tmp_path)


def test_run_lengths_may_be_text_bytes_or_numbers():
    mask = np.zeros((4, 3), dtype=bool)
    mask[1:3, 1] = True
    runs = {"size": [4, 3], "counts": [5, 2, 5]}
    text = {"size": [4, 3], "counts": "525"}
    table = RunLengths({7: [runs, None, text, {"size": [4, 3], "counts": b"525"}]}, "masks")
    assert table.frame_count("7") == 4 and table.mask("7", 1) is None
    for frame in (0, 2, 3):
        found = table.mask("7", frame)
        assert found is not None and np.array_equal(found.array, mask)
    with pytest.raises(IndexError, match="has 4 frames"):
        table.mask("7", 4)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple:
            return print, ("gotcha",)

    write_ref_davis17(tmp_path)
    path = tmp_path / "video_datas/davis17/valid/mask_dict.pkl"
    path.write_bytes(pickle.dumps({"0": Evil()}))
    with pytest.raises(ValueError, match=r"mask_dict\.pkl"):
        _ref_davis17(tmp_path)


def test_an_index_picture_must_be_one(tmp_path: Path):
    from PIL import Image

    written = write_own_videos(tmp_path, index_pictures=True)
    (video, _) = _own(tmp_path)
    path = tmp_path / "Annotations/first/00002.png"
    Image.fromarray(written.films["first"].pictures[2]).save(path)
    with pytest.raises(ValueError, match=r"00002\.png is a colour picture of mode RGB"):
        video.masks(video.expressions[0], [2])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"00002\.png"):
        video.masks(video.expressions[0], [2])


# -- Ref-SAV -----------------------------------------------------------------------------------------------------------


def _ref_sav(root: Path):
    return read_ref_sav(root / "video_datas/Ref-SAV.json", root / "video_datas/sam_v_full")


def test_ref_sav_finds_videos_whose_folder_is_written_twice(tmp_path: Path):
    written = write_ref_sav(tmp_path)
    videos = _ref_sav(tmp_path)
    assert [video.id for video in videos] == ["sav_000000", "sav_000001"]
    assert all(path.is_file() for video in videos for path in video.files)
    for video in videos:
        clip = video.open()
        assert clip.size == written.films[video.id].pictures.shape[1:3]
        assert clip.frame_count == FRAMES and clip.in_file([0, 7]) == [0, 28]
        for described in video.objects:
            truth = written.masks[video.id, str(described.id)]
            assert np.array_equal(clip.masks(described.id, range(FRAMES)), truth)


def test_ref_sav_as_it_is_written_where_the_folder_exists_twice(tmp_path: Path):
    write_ref_sav(tmp_path)
    folder = tmp_path / "video_datas/sam_v_full"
    (folder / "sav_000").mkdir()
    (folder / "sav_train").rename(folder / "sav_000/sav_train")
    first, second = _ref_sav(tmp_path)
    assert first.files[0].is_file() and not second.files[0].is_file()
    with pytest.raises(ValueError, match=r"'sav_000001': expected .*sav_000001\.mp4"):
        second.open()


def test_ref_sav_refuses_masklets_of_another_length_or_object(tmp_path: Path):
    write_ref_sav(tmp_path)
    (video, _) = _ref_sav(tmp_path)
    with pytest.raises(ValueError, match="object 5 is not among 2 masklets"):
        video.open().masks(5, [0])
    content = json.loads(video.files[1].read_text())
    content["masklet"].pop()
    video.files[1].write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"annotates 7 frames, but .*\.mp4 has 29, of which every 4th makes 8"):
        video.open()


def test_ref_sav_names_a_wrong_entry(tmp_path: Path):
    write_ref_sav(tmp_path)
    path = tmp_path / "video_datas/Ref-SAV.json"
    content = json.loads(path.read_text())
    content["sav_000001"]["objects"]["1"] = {"text": "no"}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"video 'sav_000001': .*formated"):
        _ref_sav(tmp_path)
