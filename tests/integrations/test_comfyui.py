"""The node pack for ComfyUI in a stand-in of it; `test_comfyui_itself.py` runs the same workflows in the real one."""

from __future__ import annotations

import ast
import asyncio
import json
import shutil
import sys
import tomllib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_stand_in import ComfyUI, ExecutionBlocker, InterruptProcessingException
from PIL import Image
from transformers import (
    VitDetConfig,
    VitMatteConfig,
    VitMatteForImageMatting,
    VitMatteImageProcessorPil,
)

import sa2va
from sa2va import Sa2VA
from sa2va.media.open import open_media
from sa2va.writers.video_encoder import VideoEncoder

ROOT = Path(__file__).parents[2]
PACK = ROOT / "integrations/comfyui"
WORKFLOWS = PACK / "example_workflows"
CLOUD, LETTER, HAT = "the yellow cloud", "the letter Z", "the orange hat"
FRAMES = 3
PICTURE = np.asarray(Image.open(ROOT / "examples/shapes.png").convert("RGB"))
with open_media(ROOT / "examples/shapes.mp4", max_frames=FRAMES) as clip:
    CLIP = [decoded.pixels for decoded in clip]


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """With the pack, the picture of the examples, and the first frames of their clip."""
    one = ComfyUI(tmp_path_factory.mktemp("comfyui"))
    shutil.copy(ROOT / "examples/shapes.png", one.base / "input")
    encoder = VideoEncoder(one.base / "input/shapes.mp4", size=(256, 256), fps=8)
    for frame in CLIP:
        encoder.write(frame)
    encoder.close()
    before = dict(sys.modules)
    sys.modules.update(one.modules())
    asyncio.run(one.load(PACK))
    yield one
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


@pytest.fixture(scope="module")
def checkpoint(comfyui: ComfyUI) -> Any:
    (loaded,) = comfyui.call("Sa2VALoadModel", model="tiny")
    return loaded


@pytest.fixture(scope="module")
def tiny(checkpoint: Any) -> Sa2VA:
    """The same model without ComfyUI."""
    return checkpoint.ready()


def as_image(*pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures).astype(np.float32) / 255)


def api(name: str) -> dict[str, Any]:
    return json.loads((WORKFLOWS / f"api/{name}.json").read_text())


# -- the example workflows ---------------------------------------------------------------------------------------------


def test_a_picture_is_segmented_drawn_and_cut_out(comfyui: ComfyUI, tiny: Sa2VA) -> None:
    shown = comfyui.run(api("segment_picture"))
    drawn, cutout = (np.asarray(Image.open(shown[number][0][0])) for number in ("5", "9"))
    cloud, letter = (one.segments[0].mask.array for one in tiny.segment(PICTURE, [CLOUD, LETTER]))
    assert (drawn != PICTURE)[cloud | letter].any(axis=-1).mean() > 0.95
    assert ((cutout[..., 3] > 127) == cloud).mean() > 0.99
    assert 0 < np.mean((cutout[..., 3] > 0) & (cutout[..., 3] < 255)) < 0.05


def test_a_video_is_tracked_and_written(comfyui: ComfyUI, tiny: Sa2VA) -> None:
    shown = comfyui.run(api("segment_video"))
    assert open_media(shown["7"][0]).frame_count == FRAMES
    masks = [np.asarray(Image.open(path))[..., 0] == 255 for path in shown["10"][0]]
    with open_media(comfyui.base / "input/shapes.mp4") as source, tiny.track(source, HAT) as track:
        assert all(np.array_equal(mask, frame.segments[0].mask.array) for mask, frame in zip(masks, track, strict=True))


def test_chat_goes_on_and_captions_are_grounded(comfyui: ComfyUI) -> None:
    shown = comfyui.run(api("chat_and_caption"))
    assert shown["4"] == ["blue"]
    assert "yellow cloud" in shown["9"][0]
    for number in ("7", "11"):
        assert (np.asarray(Image.open(shown[number][0][0])) != PICTURE).any()


def test_a_click_is_described_and_the_model_unloaded(comfyui: ComfyUI) -> None:
    shown = comfyui.run(api("click_and_describe"))
    assert shown["9"] == ["A large yellow cloud."]


@pytest.mark.parametrize("name", sorted(path.stem for path in WORKFLOWS.glob("*.json")))
def test_the_editor_would_send_what_is_tested(comfyui: ComfyUI, name: str) -> None:
    editor = json.loads((WORKFLOWS / f"{name}.json").read_text())
    sources = {link: [str(node), slot] for link, node, slot, *_ in editor["links"]}
    prompt = {}
    for node in editor["nodes"]:
        values = iter(node["widgets_values"])
        linked = {one["name"]: sources[one["link"]] for one in node["inputs"] if one["link"] is not None}
        widgets = [one.id for one in comfyui.nodes[node["type"]].define_schema().inputs if one.is_widget]
        inputs = {name: next(values) for name in widgets} | linked
        assert list(values) in ([], ["image"]), "only the button to upload has no input"
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    assert prompt == api(name)
    assert (WORKFLOWS / f"{name}.jpg").is_file(), "the editor shows it among its templates"


# -- single nodes ------------------------------------------------------------------------------------------------------


def test_pictures_of_a_batch_are_answered_one_by_one(comfyui: ComfyUI, checkpoint: Any, tiny: Sa2VA) -> None:
    flipped = np.ascontiguousarray(PICTURE[:, ::-1])
    mask, objects, boxes, text = comfyui.call(
        "Sa2VASegmentPicture", model=checkpoint, image=as_image(PICTURE, flipped), phrases=f"{CLOUD}\n\n {LETTER} "
    )
    assert (mask.dtype, tuple(mask.shape)) == (torch.float32, (2, 256, 256))
    assert text.splitlines() == ["Sure."] * 4
    for number, picture in enumerate((PICTURE, flipped)):
        found = [answer.segments[0] for answer in tiny.segment(picture, [CLOUD, LETTER])]
        assert np.array_equal(mask[number].numpy() > 0.5, found[0].mask.array | found[1].mask.array)
        assert [(one.id, one.phrase) for one in objects.frames[number]] == [(1, CLOUD), (2, LETTER)]
        x0, y0, x1, y1 = found[0].mask.box or ()
        assert boxes[number][0] == {
            **{"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0},
            **{"label": CLOUD, "score": pytest.approx(found[0].score)},
        }


def test_second_looks_and_soft_edges(comfyui: ComfyUI, checkpoint: Any, tiny: Sa2VA) -> None:
    folder = comfyui.base / "models/sa2va/vitmatte-small-composition-1k"  # of random weights; nothing is downloaded
    backbone = VitDetConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_channels=4, out_features=["stage1"]
    )
    sizes = {"hidden_size": 16, "convstream_hidden_sizes": [8, 8, 8], "fusion_hidden_sizes": [8, 8, 8, 8]}
    VitMatteForImageMatting(VitMatteConfig(backbone_config=backbone, **sizes)).save_pretrained(folder)
    VitMatteImageProcessorPil().save_pretrained(folder)
    looks = {"instances": True, "zoom": True, "refine": "matting"}
    given = {"model": checkpoint, "image": as_image(PICTURE), "phrases": CLOUD}
    mask, objects, _, _ = comfyui.call("Sa2VASegmentPicture", **given, **looks)
    (answer,) = tiny.segment(PICTURE, [CLOUD], matting=str(folder), **looks)
    assert [one.mask for one in objects.frames[0]] == [one.mask for one in answer.segments]
    assert np.array_equal(mask[0].numpy(), answer.segments[0].alpha)
    assert ((mask > 0) & (mask < 1)).any()


def test_at_most_so_many_objects(comfyui: ComfyUI, checkpoint: Any) -> None:
    given = {"model": checkpoint, "image": as_image(PICTURE), "phrases": f"{CLOUD}\n{LETTER}", "max_objects": 1}
    _, objects, _, _ = comfyui.call("Sa2VASegmentPicture", **given)
    assert [one.phrase for one in objects.frames[0]] == [CLOUD]


def test_boxes_and_clicks_mark_objects(comfyui: ComfyUI, checkpoint: Any, tiny: Sa2VA) -> None:
    car, cloud = {"x": 9, "y": 26, "width": 80, "height": 45}, {"x": 66, "y": 125, "width": 114, "height": 67}
    given = {"model": checkpoint, "image": as_image(PICTURE, PICTURE)}
    first, second = (tiny.segment(PICTURE, box=box).segments[0].mask for box in ((9, 26, 89, 71), (66, 125, 180, 192)))
    for boxes, expected in (
        (cloud, [[second], [second]]),
        ([car, cloud], [[first, second]] * 2),
        ([[car], [cloud]], [[first], [second]]),
    ):
        _, objects, _, _ = comfyui.call("Sa2VASegmentPicture", **given, bboxes=boxes)
        assert [[one.mask for one in frame] for frame in objects.frames] == expected
    clicks = {"positive_coords": '[{"x": 123, "y": 160}]', "negative_coords": '[{"x": 40, "y": 50}]'}
    _, objects, _, _ = comfyui.call("Sa2VASegmentPicture", **given, **clicks)
    clicked = tiny.segment(PICTURE, points=[(123, 160), (40, 50)], labels=[1, 0])
    assert objects.frames[0][0].mask == clicked.segments[0].mask


def test_marks_of_the_first_frame_are_followed(comfyui: ComfyUI, checkpoint: Any, tiny: Sa2VA) -> None:
    box = tiny.segment(CLIP[0], HAT).segments[0].mask.box or ()
    x0, y0, x1, y1 = map(int, box)
    bboxes = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}
    comfyui.progress.clear()
    mask, objects, boxes, text = comfyui.call(
        "Sa2VASegmentVideo", model=checkpoint, images=as_image(*CLIP), bboxes=bboxes
    )
    assert comfyui.progress == [(number, FRAMES) for number in range(1, FRAMES + 1)]
    tracker = tiny.stream()
    tracker.add(box=box)
    expected = [tracker.step(frame).segments[0].mask for frame in CLIP]
    assert [frame[0].mask for frame in objects.frames] == expected
    assert mask.shape[0] == len(boxes) == FRAMES and text == ""


def test_phrases_are_asked_again(comfyui: ComfyUI, checkpoint: Any, tiny: Sa2VA) -> None:
    clip = [CLIP[0], CLIP[1], PICTURE]  # the cloud comes with another scene
    given = {"model": checkpoint, "images": as_image(*clip), "phrases": CLOUD, "check_presence": True}
    widgets = {"ask_again": "every so many frames", "ask_every": 2}
    _, objects, _, _ = comfyui.call("Sa2VASegmentVideo", **given, **widgets)
    with tiny.track(clip, CLOUD, check_presence=True, ask_every=2) as track:
        expected = [[one.mask for one in frame.segments] for frame in track]
    assert [[one.mask for one in frame] for frame in objects.frames] == expected
    assert expected[-1] and not expected[0]


@pytest.mark.parametrize(
    "asked, message",
    [
        ({}, "got neither"),
        ({"phrases": CLOUD, "positive_coords": '[{"x": 1, "y": 1}]'}, "got both"),
        ({"positive_coords": "1, 2"}, "clicks are JSON"),
        ({"positive_coords": '[{"x": 1}]'}, "clicks are JSON"),
        ({"bboxes": [{"x": 1, "y": 1}]}, "a box has x, y, width and height"),
        ({"bboxes": [1, 2, 3, 4]}, "a box has x, y, width and height"),
    ],
)
def test_what_cannot_be_asked_is_said(comfyui: ComfyUI, checkpoint: Any, asked: Any, message: str) -> None:
    for kind, image in (("Sa2VASegmentPicture", "image"), ("Sa2VASegmentVideo", "images")):
        with pytest.raises(ValueError, match=message):
            comfyui.call(kind, model=checkpoint, **{image: as_image(PICTURE)}, **asked)


def test_where_nothing_is_picked_nothing_runs(comfyui: ComfyUI, checkpoint: Any) -> None:
    given = {"model": checkpoint, "image": as_image(PICTURE), "phrases": f"{CLOUD}\n{LETTER}"}
    _, objects, _, _ = comfyui.call("Sa2VASegmentPicture", **given)
    both, each, box, _ = comfyui.call("Sa2VAPickObjects", objects=objects)
    assert len(each) == 2 and torch.equal(both, torch.maximum(*each))
    assert box == {"x": 66, "y": 125, "width": 170, "height": 67}
    for which in ("2", "The Letter Z", " 2 ,the letter Z"):
        assert torch.equal(comfyui.call("Sa2VAPickObjects", objects=objects, which=which)[0], each[1])
    none, each, box, picked = comfyui.call("Sa2VAPickObjects", objects=objects, which="9")
    assert not none.any() and none.shape == both.shape and picked.frames == ((),)
    assert isinstance(each, ExecutionBlocker) and isinstance(box, ExecutionBlocker)


def test_words_alone_have_no_mask(comfyui: ComfyUI, checkpoint: Any) -> None:
    text, history, *found = comfyui.call("Sa2VAChat", model=checkpoint, question="What color is the car?")
    assert text and len(history) == 1
    assert all(isinstance(one, ExecutionBlocker) for one in found)


def test_frames_are_asked_about_as_a_video(comfyui: ComfyUI, checkpoint: Any, tiny: Sa2VA) -> None:
    question = f"Please segment {HAT}."
    _, _, mask, objects, _ = comfyui.call("Sa2VAChat", model=checkpoint, image=as_image(*CLIP), question=question)
    (segment,) = tiny.chat(CLIP, question).segments
    assert [frame[0].mask for frame in objects.frames] == list(segment.masks)
    assert mask.shape[0] == FRAMES


def test_regions_are_masks_or_boxes(comfyui: ComfyUI, checkpoint: Any, tiny: Sa2VA) -> None:
    mask = tiny.segment(PICTURE, CLOUD).segments[0].mask.array
    text, texts = comfyui.call(
        "Sa2VADescribeRegions",
        model=checkpoint,
        image=as_image(PICTURE),
        mask=torch.from_numpy(mask)[None].float(),
        bboxes={"x": 9, "y": 26, "width": 80, "height": 45},
    )
    assert texts == tiny.describe(PICTURE, [mask, (9, 26, 89, 71)])
    assert text == "\n".join(texts)


def test_masks_are_edited(comfyui: ComfyUI) -> None:
    mask = torch.zeros(2, 40, 40)
    mask[:, 10:30, 10:30] = 1
    mask[0, 20, 20] = 0
    mask[1, 2, 2] = 1

    def edited(**how: Any) -> torch.Tensor:
        (done,) = comfyui.call("Sa2VAEditMask", mask=mask, **how)
        assert done.dtype == torch.float32 and done.shape == mask.shape
        return done

    assert torch.equal(edited(), mask)
    assert edited(fill_holes=4)[0, 20, 20] == 1
    assert edited(remove_specks=4)[1, 2, 2] == edited(largest_part=True)[1, 2, 2] == 0
    assert edited(grow=3)[0, 7, 20] == 1 and edited(grow=-3)[0, 12, 12] == 0
    soft = edited(feather=4, fill_holes=4)
    assert ((soft > 0) & (soft < 1)).any() and soft[0, 20, 20] == 1
    assert torch.equal(edited(invert=True), 1 - mask)
    (half,) = comfyui.call("Sa2VAEditMask", mask=torch.full((1, 4, 4), 0.25), invert=True)
    assert torch.equal(half, torch.full((1, 4, 4), 0.75)), "a soft mask stays soft"


def test_objects_are_drawn_on_their_pictures(comfyui: ComfyUI, checkpoint: Any) -> None:
    given = {"model": checkpoint, "image": as_image(PICTURE), "phrases": CLOUD}
    mask, objects, _, _ = comfyui.call("Sa2VASegmentPicture", **given)
    (drawn,) = comfyui.call("Sa2VADrawObjects", image=as_image(PICTURE), objects=objects, labels=False)
    changed = (drawn[0] != as_image(PICTURE)[0]).any(dim=-1)
    assert drawn.dtype == torch.float32 and not changed[mask[0] == 0].any() and changed.any()
    with pytest.raises(ValueError, match="expected the 1 pictures of the objects; got 2"):
        comfyui.call("Sa2VADrawObjects", image=as_image(PICTURE, PICTURE), objects=objects)


# -- progress, memory, models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, given",
    [
        ("Sa2VASegmentVideo", {"images": as_image(*CLIP), "phrases": HAT}),
        ("Sa2VASegmentPicture", {"image": as_image(PICTURE, PICTURE), "phrases": CLOUD}),
        ("Sa2VAChat", {"question": "What color is the car?"}),
    ],
)
def test_a_run_can_be_cancelled(comfyui: ComfyUI, checkpoint: Any, kind: str, given: Any) -> None:
    comfyui.progress.clear()
    comfyui.cancel_at = 1
    with pytest.raises(InterruptProcessingException):
        comfyui.call(kind, model=checkpoint, **given)
    assert [value for value, _ in comfyui.progress] == [1]


def test_folders_of_models_come_first_and_what_is_unloaded_is_gone(comfyui: ComfyUI) -> None:
    def options() -> list[str]:
        return comfyui.nodes["Sa2VALoadModel"].define_schema().inputs[0].options  # type: ignore[attr-defined]

    assert options()[0] == "tiny" and "Sa2VA-4B" in options()
    shutil.copytree(sa2va.zoo.TINY, comfyui.base / "models/sa2va/Sa2VA-4B")
    for name, file in (("of-another-kind", "config.json"), ("learnt", "adapter_config.json")):
        (comfyui.base / "models/sa2va" / name).mkdir()
        (comfyui.base / "models/sa2va" / name / file).write_text("{}")
    assert options()[:3] == ["Sa2VA-4B", "learnt", "tiny"] and options().count("Sa2VA-4B") == 1
    (loaded,) = comfyui.call("Sa2VALoadModel", model="Sa2VA-4B", dtype="bfloat16")  # nothing is downloaded
    assert loaded.ready().model.dtype == torch.bfloat16
    weights = weakref.ref(loaded.ready().model)
    value = object()
    assert comfyui.call("Sa2VAUnloadModel", model=loaded, value=value) == (value,)
    assert weights() is None  # a later run loads it again: see test_comfyui_itself.py


# -- the pack ----------------------------------------------------------------------------------------------------------


def test_the_registry_would_take_it() -> None:
    about = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert about["project"]["version"] == sa2va.__version__
    assert about["project"]["dependencies"] == (PACK / "requirements.txt").read_text().split()
    assert about["tool"]["comfy"].keys() == {"PublisherId", "DisplayName", "requires-comfyui"}


def test_it_does_nothing_that_a_node_should_not() -> None:
    allowed = {"__future__", "collections", "dataclasses", "gc", "json", "pathlib", "typing"}
    allowed |= {"comfy", "comfy_api", "comfy_execution", "folder_paths", "numpy", "PIL", "sa2va", "torch"}
    for path in PACK.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {one.name.split(".")[0] for one in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").split(".")[0] in allowed
            elif isinstance(node, ast.Name):
                assert node.id not in ("eval", "exec", "compile", "__import__")
