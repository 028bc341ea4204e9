"""Masks and texts about a picture, as JSON and as forms."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from live_server import PICTURE, Running, about_picture, clip, data_url
from PIL import Image

from sa2va import Mask, Sa2VA
from sa2va.media.image import load_image

PHRASES = ["the yellow cloud", "the letter Z"]
ENCODED = base64.b64encode(PICTURE).decode()


def post(server: Running, path: str, **request: Any) -> Any:
    with server.http as client:
        reply = client.post(path, **request)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_form_and_json_of_every_kind_say_the_same(server: Running, tiny: Sa2VA) -> None:
    expected = tiny.segment(load_image(PICTURE), PHRASES)
    form = post(server, "/v1/segment", files={"image": PICTURE}, data={"phrases": PHRASES})
    listed = post(server, "/v1/segment", files={"image": PICTURE}, data={"phrases": json.dumps(PHRASES)})
    bare = post(server, "/v1/segment", json={"image": ENCODED, "phrases": PHRASES})
    url = post(server, "/v1/segment", json={"image": data_url(PICTURE), "phrases": PHRASES})
    for reply in (form, listed, bare, url):
        assert reply["size"] == [256, 256]
        assert [one["phrase"] for one in reply["answers"]] == PHRASES
        for found, answer in zip(reply["answers"], expected, strict=True):
            assert [one["mask"] for one in found["segments"]] == [one.mask.rle for one in answer.segments]


def test_masks_as_png_and_as_outlines(server: Running) -> None:
    def masks(form: str) -> list[Any]:
        reply = post(server, "/v1/segment", json={"image": ENCODED, "phrases": PHRASES[:1], "return": form})
        return [one["mask"] for one in reply["answers"][0]["segments"]]

    (rle,), (png,), (outlines,) = masks("rle"), masks("png"), masks("polygon")
    mask = Mask.from_rle(rle)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))), mask.array * 255)
    assert outlines == [outline.ravel().tolist() for outline in mask.polygons()]


def test_what_is_not_found_is_said(server: Running) -> None:
    blank = io.BytesIO()
    Image.new("RGB", (64, 48), "white").save(blank, "PNG")
    reply = post(server, "/v1/segment", files={"image": blank.getvalue()}, data={"phrases": "the orange hat"})
    (answer,) = reply["answers"]
    assert reply["size"] == [48, 64]
    assert (answer["segments"] == []) == bool(answer["reason"])


def test_a_picture_is_looked_at_again_if_asked(server: Running, tiny: Sa2VA) -> None:
    looks: dict[str, Any] = {"zoom": True, "instances": True, "check_presence": True}
    reply = post(server, "/v1/segment", json={"image": ENCODED, "phrases": PHRASES[:1], **looks})
    (expected,) = tiny.segment(load_image(PICTURE), PHRASES[:1], **looks)
    assert [one["mask"] for one in reply["answers"][0]["segments"]] == [one.mask.rle for one in expected.segments]


def test_a_clip_has_a_mask_per_frame(server: Running) -> None:
    reply = post(server, "/v1/segment", files={"video": clip(2)}, data={"phrases": "the orange hat"})
    assert [len(one["masks"]) for one in reply["answers"][0]["segments"]] == [2]


def test_a_caption_names_what_it_masks(server: Running, tiny: Sa2VA) -> None:
    reply = post(server, "/v1/caption", files={"image": PICTURE})
    assert reply["text"] == tiny.caption(load_image(PICTURE)).text
    assert reply["segments"]
    for one in reply["segments"]:
        assert reply["text"][slice(*one["span"])] == one["phrase"]


def test_regions_are_described(server: Running, tiny: Sa2VA) -> None:
    image = load_image(PICTURE)
    mask = np.zeros((256, 256), bool)
    mask[20:70, 10:90] = True
    region = {"image": ENCODED, "regions": [[10, 20, 90, 70], Mask.from_array(mask).rle]}
    reply = post(server, "/v1/describe", json=region)
    assert reply["descriptions"] == tiny.describe(image, [(10, 20, 90, 70), mask])
    form = post(server, "/v1/describe", files={"image": PICTURE}, data={"regions": "[[10, 20, 90, 70]]"})
    assert form["descriptions"] == tiny.describe(image, [(10, 20, 90, 70)])


@pytest.mark.parametrize(
    ("path", "request_", "message"),
    [
        ("segment", {"json": {"phrases": ["x"]}}, "send one picture"),
        ("segment", {"json": {"image": ENCODED}}, "phrases: Field required"),
        ("segment", {"json": {"image": ENCODED, "phrases": [" "]}}, "non-empty"),
        ("segment", {"json": {"image": ENCODED, "phrases": ["x"] * 65}}, "at most 64 phrases"),
        ("segment", {"json": {"image": ENCODED, "phrases": ["x" * 32_001]}}, "at most 32000 characters"),
        ("segment", {"json": {"image": ENCODED, "phrases": ["x"], "threshold": 1}}, "threshold"),
        ("segment", {"json": {"image": "?", "phrases": ["x"]}}, "neither base64"),
        ("segment", {"json": {"video": base64.b64encode(clip(2)).decode(), "phrases": ["x"], "zoom": True}}, "zoom"),
        ("segment", {"json": {"image": ENCODED, "video": ENCODED, "phrases": ["x"]}}, "got 2"),
        ("segment", {"json": {"video": ENCODED[:99] + "=", "phrases": ["x"]}}, "neither a"),
        ("segment", {"content": b"{", "headers": {"content-type": "application/json"}}, "Expecting"),
        ("segment", {"content": b"{}", "headers": {"content-type": "text/plain"}}, "send application/json"),
        ("describe", {"json": {"image": ENCODED, "regions": [[9, 9, 1, 1]]}}, "a box is"),
        ("describe", {"json": {"image": ENCODED, "regions": [[1, 1, 5]]}}, "regions"),
        (
            "describe",
            {"json": {"image": ENCODED, "regions": [{"size": [16384, 16384], "counts": "0"}]}},
            "size .height, width. of the picture",
        ),
    ],
    ids=lambda value: None,
)
def test_what_is_asked_wrongly_is_explained(server: Running, path: str, request_: dict[str, Any], message: str) -> None:
    with server.http as client:
        reply = client.post(f"/v1/{path}", **request_)
    assert reply.status_code in (400, 415)
    with pytest.raises(ValueError, match=message):
        raise ValueError(reply.json()["error"]["message"])
    assert str(server.folder) not in reply.text


def test_requests_at_once_are_answered_as_one_by_one(server: Running) -> None:
    """About one scene and about several, while scenes come and go."""
    turned = io.BytesIO()
    load_image(PICTURE).rotate(90).save(turned, "PNG")
    asked = [
        (content, phrase)
        for content in (PICTURE, turned.getvalue())
        for phrase in ("the letter Z", "What color is the car?")
    ]

    def ask(one: tuple[bytes, str]) -> list[Any]:
        found = post(server, "/v1/segment", files={"image": one[0]}, data={"phrases": one[1]})["answers"][0]
        said = server.openai.chat.completions.create(model="tiny", messages=about_picture(one[1], one[0]))
        return [found["text"], [each["mask"] for each in found["segments"]], said.choices[0].message.content]

    serial = [ask(one) for one in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, asked)) == serial


def test_scenes_are_kept_up_to_their_budget(start: Any, tiny: Sa2VA) -> None:
    with tiny.open(load_image(PICTURE)) as scene:
        scene.segment("the letter Z")
        size = scene.nbytes + 256 * 256 * 3
    pictures = []
    for angle in range(3):
        file = io.BytesIO()
        load_image(PICTURE).rotate(90 * angle).save(file, "PNG")
        pictures.append(file.getvalue())
    with start(scene_bytes=int(1.5 * size)) as server:
        for content in (*pictures, pictures[-1]):
            post(server, "/v1/segment", files={"image": content}, data={"phrases": "the letter Z"})
        assert 1 <= server.metric("sa2va_scenes") < 4
        assert 0 < server.metric("sa2va_scene_bytes") <= 1.5 * size
        assert server.metric('sa2va_part_seconds_count{part="answering"}') == 4
    with start(scene_bytes=0) as server:
        post(server, "/v1/segment", files={"video": clip(2)}, data={"phrases": "the orange hat"})
        assert server.metric("sa2va_scenes") == 0
        assert list((server.folder / "tmp").iterdir()) == []
