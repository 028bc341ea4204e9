"""The functions for CVAT in cvat-sdk's own driver, cvat-cli's loader and agent; the server is a stand-in."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sa2va import Mask, Sa2VA
from sa2va.media.open import open_media

pytest.importorskip("cvat_sdk", reason="needs cvat-sdk: pip install cvat-cli")
pytest.importorskip("cvat_cli", reason="needs cvat-cli: pip install cvat-cli")

import cvat_sdk.auto_annotation as cvataa
from cvat_cli._internal import agent_driver, agent_driver_interaction, agent_driver_tracking
from cvat_cli._internal.common import FunctionLoader
from cvat_sdk import models
from cvat_sdk.auto_annotation import driver
from cvat_sdk.masks import decode_mask, encode_mask

ROOT = Path(__file__).parents[2]
CLOUD, HAT = "the yellow cloud", "the orange hat"
PICTURE = Image.open(ROOT / "examples/shapes.png").convert("RGB")


@cache
def load(**parameters: Any) -> Any:
    return FunctionLoader(None, ROOT / "integrations/cvat.py", parameters).load()


def pixels(points: list[float]) -> Mask:
    return Mask.from_array(decode_mask(points, image_width=256, image_height=256))


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server with a task of one picture; what is uploaded stays in ``uploaded``."""
    names = {70: "Cloud", 71: "Z"}
    labels = [
        models.Label(name=name, id=number, type="any", attributes=[], sublabels=[]) for number, name in names.items()
    ]
    sample = SimpleNamespace(frame_index=3, frame_name="shapes.png", media=SimpleNamespace(load_image=PICTURE.copy))
    monkeypatch.setattr(driver, "TaskDataset", lambda *_, **__: SimpleNamespace(labels=labels, samples=[sample]))
    server = SimpleNamespace(uploaded=[], logger=SimpleNamespace(info=lambda *_: None, warning=lambda *_: None))

    def upload(action: str, _: int, *, patched_labeled_data_request: Any) -> None:
        server.uploaded += patched_labeled_data_request.shapes

    server.tasks = SimpleNamespace(api=SimpleNamespace(partial_update_annotations=upload))
    return server


@pytest.mark.parametrize("polygons", [False, True])
def test_a_task_is_annotated(task: Any, tiny: Sa2VA, polygons: bool) -> None:
    function = load(model="tiny", labels=f"Cloud={CLOUD}; Z=the letter Z", device="cpu")
    cvataa.annotate_task(task, 1, function, conv_mask_to_poly=polygons)
    cloud, letter = task.uploaded
    assert [(one.label_id, one.frame, one.source) for one in task.uploaded] == [(70, 3, "auto"), (71, 3, "auto")]
    assert cloud.type.value == ("polygon" if polygons else "mask")
    if not polygons:
        assert pixels(cloud.points) == tiny.segment(PICTURE, CLOUD).segments[0].mask
        assert pixels(letter.points) == tiny.segment(PICTURE, "the letter Z").segments[0].mask


def test_what_the_model_doubts_is_left_out(task: Any) -> None:
    cvataa.annotate_task(task, 1, load(model="tiny", labels=f"Cloud={CLOUD}", device="cpu"), conf_threshold=1.0)
    assert task.uploaded == []


def test_labels_stand_for_themselves() -> None:
    function = load(labels="Cloud; Z = the letter Z;", device="cpu")
    assert [(one.name, one.id) for one in function.spec.labels] == [("Cloud", 0), ("Z", 1)]
    with pytest.raises(ValueError, match="needs the labels"):
        load()
    with pytest.raises(ValueError, match="kind is detection"):
        load(kind="detect")


def test_an_agent_answers_clicks(tiny: Sa2VA) -> None:
    function = load(kind="interaction", device="cpu")
    agent_driver.set_worker_current_function(function)
    agent = agent_driver_interaction.AgentInteractionFunctionDriver
    agent.init_worker(None)
    assert agent.get_remote_function_fields(function.spec)["startswith_box_optional"]

    def click(*, points: Any = (), negative: Any = (), box: Any = None) -> list[cvataa.InteractionResultShape]:
        prompts = agent_driver_interaction._InteractionPromptsImpl(
            pos_points=points, neg_points=negative, bounding_box=box
        )
        found = agent_driver_interaction._worker_job_interact_from_cache("picture", prompts)
        return agent_driver_interaction._worker_job_interact("picture", PICTURE, prompts) if found is None else found

    (shape,) = click(points=((64.5, 128.2),), negative=((256.0, 256.0),))
    expected = tiny.segment(PICTURE, points=[(64, 128), (255, 255)], labels=[1, 0]).segments[0]
    assert shape.type == "mask" and pixels(shape.points) == expected.mask
    assert float(shape.attributes[0].value) == pytest.approx(expected.score, abs=1e-4)
    (shape,) = click(points=((64.5, 128.2),), box=((32.0, 64.0), (160.0, 128.0)))
    both = tiny.segment(PICTURE, box=(32, 64, 160, 128), points=[(64, 128)]).segments[0]
    assert pixels(shape.points) == both.mask
    assert click() == []


@pytest.mark.parametrize("kind", ["mask", "polygon", "rectangle"])
def test_an_agent_follows_a_shape(tiny: Sa2VA, kind: str) -> None:
    function = load(kind="tracking", device="cpu")
    agent_driver.set_worker_current_function(function)
    numbers = iter("abc")
    agent_driver_tracking.AgentTrackingFunctionDriver.init_worker(lambda: next(numbers))
    with open_media(ROOT / "examples/shapes.mp4", max_frames=3) as video:
        frames = [Image.fromarray(one.pixels) for one in video]
    hat = tiny.segment(frames[0], HAT).segments[0].mask
    x0, y0, x1, y1 = hat.box or ()
    points = {
        "mask": encode_mask(hat.array),
        "polygon": max(hat.polygons(), key=len).ravel().tolist(),
        "rectangle": [x0, y0, x1, y1],
    }[kind]
    shape = cvataa.TrackableShape(type=kind, points=points)
    states = agent_driver_tracking._worker_job_init_tracking(1, frames[0], [shape])
    tracker = tiny.stream()
    tracker.add(**({"mask": hat.array} if kind == "mask" else {"box": hat.box}))
    tracker.step(np.asarray(frames[0]))
    for frame in frames[1:]:
        (found,) = agent_driver_tracking._worker_job_track(1, frame, states)
        expected = tracker.step(np.asarray(frame)).segments[0].mask
        assert found.type == kind
        if kind == "mask":
            assert pixels(found.points) == expected
        elif kind == "rectangle":
            assert tuple(found.points) == expected.box
        else:
            assert len(found.points) >= 6


def test_what_is_out_of_sight_has_no_shape() -> None:
    function = load(kind="tracking", device="cpu")
    context = agent_driver_tracking._TrackingFunctionContextImpl()
    here = function.preprocess_image(context, PICTURE)
    of_mask = agent_driver_tracking._TrackingFunctionShapeContextImpl(original_shape_type="mask")
    nothing = SimpleNamespace(segments=[SimpleNamespace(mask=Mask.from_array(np.zeros((4, 4), bool)))])
    assert function.track(of_mask, here, SimpleNamespace(step_encoded=lambda *_: nothing)) is None
