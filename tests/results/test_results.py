"""Results: exact round trips through RLE, JSON, COCO and supervision, and tracks that are read once."""

from __future__ import annotations

import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from sa2va.inference.video_result import Track
from sa2va.masks.mask import Mask, Segment
from sa2va.masks.mask_ops import components
from sa2va.results.answer import Answer, Frame
from sa2va.results.history import Turn

# pycocotools' own decoder, which these tests compare with, is not quite up to NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

bool_masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=20))
HEIGHT, WIDTH = 24, 32


def rectangle(y0: int, y1: int, x0: int, x1: int) -> Mask:
    array = np.zeros((HEIGHT, WIDTH), bool)
    array[y0:y1, x0:x1] = True
    return Mask.from_array(array)


def points(polygon: np.ndarray) -> list[list[float]]:
    return [polygon.ravel().tolist()]


EMPTY = rectangle(0, 0, 0, 0)


def two_objects() -> tuple[Segment, ...]:
    return (
        Segment(1, "the red car", (rectangle(2, 10, 3, 20),), score=0.9, presence=0.99, span=(8, 19)),
        Segment(4, "der Hund 狗", (rectangle(8, 24, 10, 32),), score=0.25, presence=0.5),
    )


def answer() -> Answer:
    turns = (Turn("q", "a [SEG]"), Turn("q2", "a2"))
    return Answer("I see the red car.", "I see <p>the red car</p>[SEG].", two_objects(), None, (HEIGHT, WIDTH), turns)


class TestMask:
    @given(bool_masks)
    def test_array_rle_array(self, array):
        mask = Mask.from_array(array)
        np.testing.assert_array_equal(mask.array, array)
        assert mask.array.dtype == np.bool_
        assert mask.size == array.shape
        again = Mask.from_rle(json.loads(json.dumps(mask.rle)))
        assert again == mask
        assert hash(again) == hash(mask)

    @given(bool_masks)
    def test_rle_is_what_pycocotools_writes_and_reads(self, array):
        theirs = coco.encode(np.asfortranarray(array.astype(np.uint8)))
        assert Mask.from_array(array).rle["counts"].encode() == theirs["counts"]
        np.testing.assert_array_equal(coco.decode(cast(Any, Mask.from_array(array).rle)).astype(bool), array)
        assert Mask.from_rle(theirs) == Mask.from_array(array)

    @given(bool_masks)
    def test_plain_run_lists_give_the_same_mask(self, array):
        flat = array.T.ravel()
        edges = np.flatnonzero(np.diff(flat, prepend=False))
        runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
        assert Mask.from_rle({"size": list(array.shape), "counts": runs}) == Mask.from_array(array)

    def test_another_spelling_of_the_same_runs_is_the_same_mask(self):
        array = np.array([[0, 1, 1, 0]], bool)
        split = Mask.from_rle({"size": [1, 4], "counts": [1, 1, 0, 1, 1]})
        assert split == Mask.from_array(array)

    @given(bool_masks)
    def test_area_and_box(self, array):
        mask = Mask.from_array(array)
        assert mask.area == array.sum()
        rows, columns = np.flatnonzero(array.any(1)), np.flatnonzero(array.any(0))
        assert mask.box == ((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else None)

    @given(bool_masks, st.data())
    def test_union_and_iou(self, array, data):
        other = data.draw(arrays(np.bool_, array.shape))
        a, b = Mask.from_array(array), Mask.from_array(other)
        assert a | b == Mask.from_array(array | other)
        union = (array | other).sum()
        assert a.iou(b) == pytest.approx((array & other).sum() / union if union else 1.0)

    @given(bool_masks)
    def test_coco_draws_the_polygons_back_exactly_with_holes_filled(self, array):
        outside, _ = components(np.pad(~array, 1, constant_values=True), connectivity=8)
        expected = (outside != 1)[1:-1, 1:-1]
        drawn = np.zeros(array.shape, bool)
        for polygon in Mask.from_array(array).polygons():
            drawn |= coco.decode(coco.merge(coco.frPyObjects(cast(Any, points(polygon)), *array.shape))).astype(bool)
        np.testing.assert_array_equal(drawn, expected)

    @pytest.mark.parametrize(
        "wrong",
        [np.zeros((3, 3), np.float32), np.zeros((1, 3, 3), bool), np.zeros((0, 3), bool), np.zeros((3, 3), np.uint8)],
    )
    def test_from_array_refuses_what_is_no_mask(self, wrong):
        with pytest.raises(ValueError, match=r"expected a non-empty bool array \(H, W\)"):
            Mask.from_array(wrong)

    @pytest.mark.parametrize(
        "record",
        [
            {},
            {"size": [4], "counts": [16]},
            {"size": [4, 4], "counts": [15]},
            {"size": [4, 4], "counts": [20, -4]},
            {"size": [4, 4], "counts": [2**63 - 1, 2**63 - 1, 18]},
            {"size": [4, 4], "counts": [15.5, 0.5]},
            {"size": [4, 4], "counts": [16.0]},
            {"size": [4, 4], "counts": ""},
            {"size": [4, 4], "counts": "zzzz"},
            {"size": [4, 4], "counts": "\x00"},
            {"size": [4, 4], "counts": "é"},
            {"size": [3, 5], "counts": "é"},
            {"size": [4, 4], "counts": None},
            {"size": [4, 4], "counts": "P" * 50},
            {"size": [0, 4], "counts": [0]},
            {"size": [10**6, 10**6], "counts": [10**12]},
            None,
        ],
    )
    def test_from_rle_refuses_runs_that_do_not_fit(self, record):
        with pytest.raises(ValueError, match="expected"):
            Mask.from_rle(record)

    @given(st.binary(max_size=12))
    def test_from_rle_gives_a_sound_mask_or_an_error_for_any_bytes(self, counts):
        try:
            mask = Mask.from_rle({"size": [5, 7], "counts": counts})
        except ValueError:
            return
        assert Mask.from_array(mask.array) == mask

    def test_sizes_must_agree(self):
        other = Mask.from_array(np.ones((2, 2), bool))
        with pytest.raises(ValueError, match="one picture"):
            EMPTY.iou(other)
        with pytest.raises(ValueError, match="one picture"):
            print(EMPTY | other)

    def test_repr_is_short_and_pickling_works(self):
        mask = Mask.from_array(np.random.default_rng(0).random((200, 200)) < 0.5)
        assert len(repr(mask)) < 40
        assert pickle.loads(pickle.dumps(mask)) == mask


class TestAnswer:
    def test_json_round_trip(self, tmp_path):
        path = tmp_path / "new" / "answer.json"
        text = answer().to_json(path, indent=1)
        assert path.read_text(encoding="utf-8") == text
        assert Answer.from_json(text) == answer()
        assert [path.name for path in path.parent.iterdir()] == ["answer.json"]

    @given(
        st.text(),
        st.none() | st.text(),
        st.lists(
            st.tuples(st.integers(0, 99), st.text(), bool_masks, st.floats(0, 1), st.none() | st.just((1, 2))),
            max_size=3,
        ),
    )
    def test_json_round_trip_of_anything(self, text, reason, objects):
        segments = tuple(
            Segment(number, phrase, (Mask.from_array(array),) * 2, cast(float, np.float32(score)), score, span)
            for number, phrase, array, score, span in objects
        )
        before = Answer(text, text, segments, reason)
        assert Answer.from_json(before.to_json()) == before

    def test_json_schema(self):
        record = json.loads(answer().to_json())
        assert list(record) == ["text", "raw_text", "reason", "size", "segments", "history"]
        assert record["segments"][0] == {
            "id": 1,
            "phrase": "the red car",
            "span": [8, 19],
            "score": 0.9,
            "presence": 0.99,
            "box": [3.0, 2.0, 20.0, 10.0],
            "area": 8 * 17,
            "color": None,
            "masks": [two_objects()[0].mask.rle],
        }

    @pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", '{"text": 1}'])
    def test_from_json_says_what_it_expected(self, text):
        with pytest.raises(ValueError, match=r"expected JSON written by Answer\.to_json"):
            Answer.from_json(text)

    def test_coco_results_load_in_pycocotools_with_the_areas_of_masks_not_boxes(self):
        truth: Any = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": number, "height": HEIGHT, "width": WIDTH} for number in (7, 8)],
            "categories": [{"id": 3, "name": "a car"}, {"id": 4, "name": "a dog"}],
            "annotations": [],
        }
        truth.createIndex()
        categories = {"the red car": 3, "der Hund 狗": 4}
        results = [*answer().to_coco(7, categories), *answer().to_coco(8, categories)]
        loaded = truth.loadRes(json.loads(json.dumps(results)))
        assert sorted(loaded.anns) == [1, 2, 3, 4]
        assert [loaded.anns[number]["category_id"] for number in (1, 2, 3, 4)] == [3, 4, 3, 4]
        for number, segment in enumerate([*two_objects(), *two_objects()], start=1):
            np.testing.assert_array_equal(loaded.annToMask(loaded.anns[number]).astype(bool), segment.mask.array)
            assert loaded.anns[number]["area"] == segment.mask.area
        with pytest.raises(ValueError, match="no category is given for 'the red car'"):
            answer().to_coco(7, {"a dog": 4})

    def test_supervision_round_trip(self):
        sv = pytest.importorskip("supervision")
        absent = Segment(9, "a ghost", (EMPTY,), 0.1, 0.0)
        detections: Any = Answer("", "", (absent, *two_objects())).to_supervision()
        assert isinstance(detections, sv.Detections)
        assert detections.tracker_id.tolist() == [1, 4]
        assert list(detections.data["phrase"]) == ["the red car", "der Hund 狗"]
        np.testing.assert_allclose(detections.confidence, [0.9, 0.25])
        for number, segment in enumerate(two_objects()):
            np.testing.assert_array_equal(detections.mask[number], segment.mask.array)
            assert tuple(detections.xyxy[number]) == segment.mask.box
        np.testing.assert_array_equal(detections.area, [segment.mask.area for segment in two_objects()])

    def test_supervision_of_nothing_is_empty(self):
        pytest.importorskip("supervision")
        assert Answer("no", "no", (Segment(1, "x", (EMPTY,), 0.0, 0.0),)).to_supervision().is_empty()
        assert Answer("no", "no").to_supervision().is_empty()

    def test_masks_keep_the_order_and_number_of_the_segments(self):
        masks = answer().masks
        assert masks.shape == (2, HEIGHT, WIDTH) and masks.dtype == np.bool_
        np.testing.assert_array_equal(masks[1], two_objects()[1].mask.array)
        assert Answer("", "", size=(5, 6)).masks.shape == (0, 5, 6)
        assert Answer("", "").masks.shape == (0, 0, 0)

    def test_draw_gives_a_picture_of_the_same_size(self):
        drawn = answer().draw(np.zeros((HEIGHT, WIDTH, 3), np.uint8), labels=False)
        assert isinstance(drawn, Image.Image) and drawn.size == (WIDTH, HEIGHT)
        assert np.asarray(drawn)[5, 5].any()

    def test_a_clip_has_no_single_mask(self):
        clip = Segment(1, "x", (EMPTY, EMPTY), 0.5, 0.5)
        with pytest.raises(ValueError, match="2 frames"):
            print(clip.mask)
        with pytest.raises(ValueError, match="2 frames"):
            print(Answer("", "", (clip,)).masks)

    def test_segments_refuse_masks_of_two_sizes_and_broken_scores(self):
        with pytest.raises(ValueError, match="one size"):
            Segment(1, "x", (EMPTY, Mask.from_array(np.ones((2, 2), bool))), 0.5, 0.5)
        with pytest.raises(ValueError, match="one or more"):
            Segment(1, "x", (), 0.5, 0.5)
        with pytest.raises(ValueError, match="finite"):
            Segment(1, "x", (EMPTY,), float("nan"), 0.5)
        with pytest.raises(ValueError, match="finite"):
            Segment(1, "x", (EMPTY,), 0.5, float("inf"))

    def test_a_score_below_a_fifth_is_doubtful(self):
        assert [Segment(1, "x", (EMPTY,), score, 0.9).doubtful for score in (0.19, 0.2)] == [True, False]

    def test_reprs_are_short(self):
        long = Answer("word " * 1000, "raw" * 1000, two_objects())
        assert len(repr(long)) < 150
        assert "counts" not in repr(long.segments)


def pairs(count: int):
    for index in range(count):
        segment = Segment(1, "x", (rectangle(index, index + 4, 3, 9),), 0.9, 0.9)
        yield Frame(index, index / 10, (HEIGHT, WIDTH), (segment,)), np.full((HEIGHT, WIDTH, 3), index, np.uint8)


def track(count: int = 4) -> Track:
    return Track(pairs(count), fps=10, size=(HEIGHT, WIDTH), total=count)


class TestFrameAndTrack:
    def test_frame_json_round_trip_and_exits(self):
        frame, _ = next(pairs(1))
        assert Frame.from_json(frame.to_json()) == frame
        assert frame.masks.shape == (1, HEIGHT, WIDTH)
        assert frame.to_coco(image_id=5)[0]["image_id"] == 5
        with pytest.raises(ValueError, match=r"Frame\.to_json"):
            Frame.from_json(answer().to_json())

    def test_a_track_computes_no_frame_before_it_is_asked_for(self):
        started = []

        def frames():
            for pair in pairs(3):
                started.append(pair[0].index)
                yield pair

        lazy = Track(frames(), size=(HEIGHT, WIDTH))
        assert started == []
        assert next(lazy).index == 0
        assert started == [0]
        assert next(lazy).index == 1
        assert [frame.index for frame in lazy] == [0, 1, 2]
        assert started == [0, 1, 2]

    def test_a_track_is_computed_once_and_read_as_often_as_wanted(self):
        computed = []

        def frames():
            for pair in pairs(4):
                computed.append(pair[0].index)
                yield pair

        read = Track(frames(), size=(HEIGHT, WIDTH))
        first = list(read)
        assert list(read) == first == read.results()
        assert computed == [0, 1, 2, 3]

    def test_two_readings_may_overlap(self):
        read = track()
        ahead = iter(read)
        next(ahead), next(ahead)
        behind = iter(read)
        assert [next(behind).index for _ in range(3)] == [0, 1, 2]
        assert [frame.index for frame in ahead] == [2, 3]
        assert [frame.index for frame in behind] == [3]

    def test_several_threads_read_one_track(self):
        """Each gets every frame in order, and each frame is computed once."""
        computed, started = [], threading.Barrier(4)

        def frames():
            for pair in pairs(4):
                time.sleep(0.002)  # long enough for another reader to ask for the same frame
                computed.append(pair[0].index)
                yield pair

        def read(_):
            started.wait()
            return [(frame.index, int(pixels[0, 0, 0])) for frame, pixels in shared.pairs()]

        shared = Track(frames(), size=(HEIGHT, WIDTH), pixels=lambda: (pixels for _, pixels in pairs(4)))
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(read, range(4))) == [[(0, 0), (1, 1), (2, 2), (3, 3)]] * 4
        assert computed == [0, 1, 2, 3]
        assert len(shared.results()) == 4

    def test_several_threads_may_share_one_reading(self):
        def frames():
            for pair in pairs(40):
                time.sleep(0.001)
                yield pair

        shared = Track(frames(), size=(HEIGHT, WIDTH))
        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(lambda _: next(shared).index, range(40))) == list(range(40))

    def test_a_closed_track_does_not_look_empty(self):
        complete = track()
        reading = iter(complete)
        next(reading)
        complete.results()
        complete.close()
        for again in (reading, iter(complete)):
            with pytest.raises(RuntimeError, match="closed"):
                next(again)

    def test_a_track_that_was_looked_at_saves_everything(self, tmp_path):
        again = Track(pairs(4), fps=10, size=(HEIGHT, WIDTH), pixels=lambda: (pixels for _, pixels in pairs(4)))
        assert next(again).index == 0
        assert next(again).index == 1
        assert [int(pixels[0, 0, 0]) for _, pixels in again.pairs()] == [0, 1, 2, 3]
        again.save(tmp_path / "x.jsonl")
        assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 4

    def test_a_preview_shows_frames_of_the_whole_video(self):
        one = track(4).preview(count=1, columns=1)
        sheet = track(4).preview(count=4, columns=2)
        assert sheet.width > one.width
        assert sheet.height > one.height

    def test_pixels_of_frames_read_before_may_be_gone(self):
        read = track()
        next(read)
        assert [pixels is None for _, pixels in read.pairs()] == [True, False, False, False]

    def test_a_track_that_failed_says_so_instead_of_ending_quietly(self):
        def frames():
            yield from pairs(1)
            raise OSError("the camera is gone")

        broken = Track(frames(), size=(HEIGHT, WIDTH))
        with pytest.raises(OSError, match="camera"):
            list(broken)
        again = iter(broken)
        assert next(again).index == 0
        with pytest.raises(RuntimeError, match="after 1 frames"):
            next(again)

    def test_results_keep_everything(self):
        frames = track().results()
        assert [frame.index for frame in frames] == [0, 1, 2, 3]
        np.testing.assert_array_equal(frames[2].segments[0].mask.array, rectangle(2, 6, 3, 9).array)

    def test_pairs_carry_the_pixels(self):
        assert [int(pixels[0, 0, 0]) for _, pixels in track().pairs() if pixels is not None] == [0, 1, 2, 3]

    def test_closing_releases_the_computation(self):
        released = []

        def frames():
            try:
                yield from pairs(9)
            finally:
                released.append(True)

        with Track(frames(), size=(HEIGHT, WIDTH)) as closing:
            next(closing)
        assert released == [True]
        with pytest.raises(RuntimeError):
            list(closing)

    def test_repr_tells_where_it_stands(self):
        halfway = track()
        next(halfway)
        assert "1/4" in repr(halfway)


def test_a_run_of_seven_digits_is_the_longest():
    """Whoever writes one with zeros in front is read, as long as its 35 bits fit."""
    zeros = chr(48 + 32)
    assert Mask.from_rle({"size": [1, 5], "counts": chr(48 + 32 + 5) + zeros * 5 + "0"}).area == 0
    with pytest.raises(ValueError, match="more than 35 bits"):
        Mask.from_rle({"size": [1, 5], "counts": chr(48 + 32 + 5) + zeros * 6 + "0"})
