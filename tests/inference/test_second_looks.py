"""Second looks at a picture: rough masks as prompts, SAM 2's original decoder, zoom, instances, matting."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import VitDetConfig, VitMatteConfig, VitMatteForImageMatting, VitMatteImageProcessorPil

from sa2va import Answer, Mask, Request, Sa2VA, Segment
from sa2va.inference.engine import DecodeMarks, EncodeFrame, Matte, Pause, together
from sa2va.inference.point_prompts import INSIDE
from sa2va.inference.second_looks import Box, look_by_tiles, look_closer, separate, tiles, with_alpha
from sa2va.model.mask_decoder import (
    MASK_LOGIT,
    FrameFeatures,
    MaskPrediction,
    grounding_side,
    upsample_logits,
)
from sa2va.processing.processor import squashed_frames
from sa2va.writers.picture_files import write_picture
from synthetic_checkpoint import picture

PICTURE = picture(150, 97)
CLIP = [picture(75, 48, seed) for seed in range(3)]
TOKENS: Any = {"max_new_tokens": 24}
ROUGH = np.zeros((97, 150), bool)
ROUGH[20:70, 30:110] = True

T = TypeVar("T")


@pytest.fixture(scope="module")
def both(two_decoders: Path) -> Sa2VA:
    """A checkpoint with SAM 2's original decoder beside the fine-tuned one."""
    return Sa2VA.from_pretrained(two_decoders, device="cpu")


@contextmanager
def batches(sa2va: Sa2VA) -> Iterator[dict[str, list[int]]]:
    """Batch sizes of the passes of SAM 2's image encoder and mask decoder, and of the vision tower."""
    vlm, sam2 = sa2va.model.vlm.model, sa2va.model.sam2
    seen: dict[str, list[int]] = {"tower": [], "frames": [], "masks": []}
    hooks = [
        vlm.vision_tower.register_forward_pre_hook(
            lambda _, args, kwargs: seen["tower"].append(len(args[0] if args else kwargs["pixel_values"])),
            with_kwargs=True,
        ),
        sam2.vision_encoder.backbone.register_forward_pre_hook(lambda _, args: seen["frames"].append(len(args[0]))),
        sam2.mask_decoder.register_forward_pre_hook(
            lambda _, args, kwargs: seen["masks"].append(len(kwargs["sparse_prompt_embeddings"])), with_kwargs=True
        ),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def drawn(size: tuple[int, int], *circles: tuple[int, int, int, str]) -> Image.Image:
    """Circles (x, y, radius, colour) on grey; size is (width, height)."""
    image = Image.new("RGB", size, (150, 155, 160))
    pen = ImageDraw.Draw(image)
    for x, y, radius, color in circles:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return image


def disc(size: tuple[int, int], x: int, y: int, radius: int) -> np.ndarray:
    yy, xx = np.mgrid[: size[1], : size[0]]
    return (xx - x) ** 2 + (yy - y) ** 2 <= radius**2


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


# ---------------------------------------------------------------------------------------------------- rough masks


@torch.inference_mode()
def expected_masks(
    sa2va: Sa2VA, decoder: Any, points: list, labels: list, masks: torch.Tensor, *, size: tuple[int, int]
) -> tuple[np.ndarray, float]:
    """What transformers' prompt encoder and a mask decoder make of a prompt with a mask, at the picture's size."""
    sam2 = sa2va.model.sam2
    side = grounding_side(sam2)
    features = sa2va.model.encode_frames(squashed_frames([Image.fromarray(PICTURE)], side))
    sparse, dense = sam2.prompt_encoder(
        input_points=torch.tensor([[points]], dtype=torch.float32),
        input_labels=torch.tensor([[labels]]),
        input_boxes=None,
        input_masks=masks,
    )
    position = sam2.get_image_wide_positional_embeddings()
    logits, ious, *_ = decoder(
        image_embeddings=features.top + sam2.no_memory_embedding.reshape(1, -1, 1, 1),
        image_positional_embeddings=position,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
        high_resolution_features=[decoder.conv_s0(features.fine), decoder.conv_s1(features.middle)],
    )
    return (upsample_logits(logits[:, 0, 0], side, size)[0] > 0).numpy(), ious.item()


@pytest.mark.parametrize("marks", [{}, {"points": [(40, 40)]}, {"box": (20, 10, 120, 80), "points": [(40, 40)]}])
def test_a_rough_mask_is_sam2s_dense_prompt(sa2va: Sa2VA, marks: dict[str, Any]):
    side = grounding_side(sa2va.model.sam2)
    drawn_logits = (torch.from_numpy(ROUGH)[None, None].float() * 2 - 1) * MASK_LOGIT
    low = torch.nn.functional.interpolate(drawn_logits, size=(side // 4,) * 2, mode="bilinear", antialias=True)
    corners = [marks["box"][:2], marks["box"][2:]] if "box" in marks else []
    scale = np.array([side / 150, side / 97])
    points = [*corners, *marks.get("points", [])]
    labels = [*([2, 3] if corners else []), *[1 for _ in marks.get("points", [])]]
    mask, score = expected_masks(
        sa2va,
        sa2va.model.sam2.mask_decoder,
        (np.array(points) * scale).tolist() if points else [(0.0, 0.0)],
        labels or [-1],
        low,
        size=(97, 150),
    )
    answer = cast("Answer", sa2va.segment(PICTURE, mask=ROUGH, **marks))
    assert mask.any() and [(segment.mask.array == mask).all() for segment in answer] == [True]
    assert answer.segments[0].score == pytest.approx(score, abs=1e-5)


def test_rough_masks_are_checked(sa2va: Sa2VA):
    for wrong, message in (
        (np.zeros((97, 150), bool), "the mask is empty"),
        (np.ones((96, 150), bool), "the mask is 96 x 150 but the picture 97 x 150"),
        (ROUGH.astype(np.float32), "threshold it first"),
    ):
        with pytest.raises(ValueError, match=message):
            sa2va.segment(PICTURE, mask=wrong)
    with pytest.raises(ValueError, match="phrases, or a box, points or a mask without words; got both"):
        sa2va.segment(PICTURE, "the dog", mask=ROUGH)
    with pytest.raises(ValueError, match="mark an object of a picture"):
        sa2va.segment(CLIP, mask=np.ones((48, 75), bool))


# ------------------------------------------------------------------------------------------------- the original decoder


def test_refining_gives_box_point_and_logits_to_the_original_decoder(both: Sa2VA):
    """Hooks see what both decoders are given and say."""
    sam2, calls = both.model.sam2, list[tuple[dict[str, Any], tuple[torch.Tensor, ...]]]()
    plain = cast("Answer", both.segment(PICTURE, "the dog", **TOKENS))
    hooks = [
        decoder.register_forward_hook(lambda _, args, given, said: calls.append((given, said)), with_kwargs=True)
        for decoder in (sam2.mask_decoder, both.model.original_mask_decoder)
    ]
    try:
        found = cast("Answer", both.segment(PICTURE, "the dog", refine="sam", **TOKENS))
    finally:
        for hook in hooks:
            hook.remove()
    (_, first), (given, again) = calls
    logits = first[0][torch.arange(len(first[0])), 0, first[1][:, 0].argmax(dim=1)]
    dense = sam2.prompt_encoder.mask_embed(logits.clamp(-32, 32)[:, None])
    assert torch.allclose(given["dense_prompt_embeddings"], dense, atol=1e-5)
    assert given["sparse_prompt_embeddings"].shape[2] == 4 and not given["multimask_output"]  # the last pads
    inside = logits[0] > 0
    corners = inside.nonzero().flip(1)  # (x, y)
    low, high = corners.min(dim=0).values * 4, (corners.max(dim=0).values + 1) * 4
    box, _ = sam2.prompt_encoder(None, None, torch.cat([low, high])[None, None].float(), None)
    assert torch.allclose(given["sparse_prompt_embeddings"][:1, :, :2], box[:, :, :2], atol=1e-5)
    masks = upsample_logits(again[0][:, 0, 0], grounding_side(sam2), (97, 150)) > 0
    assert [(one.mask.array == mask.numpy()).all() for one, mask in zip(found, masks, strict=True)] == [True] * len(
        plain.segments
    )
    assert [one.score for one in found] == pytest.approx(again[1][:, 0, 0].tolist(), abs=1e-6)
    assert [one.presence for one in found] == [one.presence for one in plain] and found.text == plain.text


def test_what_is_marked_can_be_refined(both: Sa2VA):
    box = (20, 10, 120, 80)
    plain, found = (cast("Answer", both.segment(PICTURE, box=box, refine=how)) for how in (None, "sam"))
    assert plain.segments and found.segments and plain.segments[0].score != found.segments[0].score


def test_chat_is_refined_too(both: Sa2VA):
    (plain,), (found,) = (both.ask(PICTURE, ["where is the dog?"], refine=how, **TOKENS) for how in (None, "sam"))
    assert plain.segments and [one.score for one in plain] != [one.score for one in found]


# ----------------------------------------------------------------------------------------------------------- instances


def test_a_plural_phrase_gives_its_objects(tiny: Sa2VA):
    size, red = (256, 256), (215, 35, 40)
    circles = [(60, 60, 28), (180, 70, 30), (70, 190, 32)]
    image = drawn(size, *[(*circle, red) for circle in circles], (190, 190, 26, (40, 75, 215)))
    with tiny.open(image) as scene:
        together_ = cast("Answer", scene.segment("all the red circles"))
        apart = cast("Answer", scene.segment("all the red circles", instances=True, probabilities=True))
        several = scene.segment(["all the red circles", "the blue circle"], instances=True)
    assert len(together_.segments) == 1 and [one.id for one in apart] == [1, 2, 3]
    assert apart.text == together_.text
    masks = apart.masks
    assert masks.sum(axis=0).max() == 1 and not (masks.any(axis=0) & ~together_.masks[0]).any()
    for x, y, radius in circles:
        assert max(iou(mask, disc(size, x, y, radius)) for mask in masks) > 0.7
    for one in apart:
        assert one.probabilities is not None and ((one.probabilities[0] > 0.5) == one.mask.array).all()
    assert len({one.color for one in apart}) == 3
    assert [[one.id for one in answer] for answer in several] == [[1, 2, 3], [4]]


def test_parts_are_decoded_together(tiny: Sa2VA):
    red = (215, 35, 40)
    image = drawn((256, 256), (60, 60, 28, red), (180, 70, 30, red), (70, 190, 32, red))
    with batches(tiny) as seen:
        tiny.segment(image, "all the red circles", instances=True)
    assert seen["frames"] == [1] and seen["masks"][:2] == [1, 3]


@pytest.mark.parametrize("case", ["tiny", "both"])
def test_parts_have_a_box_where_the_original_decoder_draws_them(case: str, request: pytest.FixtureRequest):
    sa2va = request.getfixturevalue(case)
    calls: dict[str, list[int]] = {"tuned": [], "original": []}
    decoders = {"tuned": sa2va.model.sam2.mask_decoder, "original": sa2va.model.original_mask_decoder}
    hooks = [
        decoder.register_forward_pre_hook(
            lambda _, args, given, name=name: calls[name].append(given["sparse_prompt_embeddings"].shape[2]),
            with_kwargs=True,
        )
        for name, decoder in decoders.items()
        if decoder is not None
    ]
    try:
        sa2va.segment(drawn((256, 256), (60, 60, 28, (215, 35, 40))), "the red circle", instances=True, **TOKENS)
    finally:
        for hook in hooks:
            hook.remove()
    click = 2  # its point and one that pads
    if case == "both":
        assert calls["original"] and set(calls["original"]) == {click + 2} and len(calls["tuned"]) == 1
    else:
        assert calls["tuned"][1:] and set(calls["tuned"][1:]) == {click}


def answered(steps: Coroutine[Any, Any, T], work_of: Callable[[Any], Any]) -> T:
    """The result of steps whose work something else does than a model."""
    try:
        while True:
            work = steps.send(None)
            work.finish(work_of(work))
    except StopIteration as end:
        return end.value


def columns(start: int, end: int, size: tuple[int, int], top: int = 0, bottom: int | None = None) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, start:end] = True
    return mask


def drawing(
    see: Callable[[np.ndarray], Sequence[np.ndarray]], presence: float = 3.0
) -> Callable[[DecodeMarks], MaskPrediction]:
    """A SAM 2 that draws up to three logits (H, W) for what is marked, from its points, (x, y) each, the click last."""

    def draw_them(work: DecodeMarks) -> MaskPrediction:
        rows = []
        for points, labels in zip(work.points_KP2.numpy(), work.labels_KP.numpy(), strict=True):
            seen = [*see(points[labels >= INSIDE])]
            rows.append(torch.from_numpy(np.stack([*seen, *[np.full_like(seen[0], -9.0)] * (3 - len(seen))])))
        count, ious = len(rows), torch.tensor([0.9, 0.8, 0.7])
        return MaskPrediction(
            torch.stack(rows),
            ious.expand(count, -1),
            torch.zeros(count, dtype=torch.long),
            torch.full((count,), presence),
            torch.zeros(count, 4),
        )

    return draw_them


def logits_of(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 5.0, -5.0).astype(np.float32)


def parts_of(mask: np.ndarray, see: Callable[[DecodeMarks], MaskPrediction]) -> list[Segment]:
    """The objects of one mask; a picture whose sides differ is cells of a square that are not square."""
    nothing = torch.zeros(1, 4, 2, 2)
    segment = Segment(1, "it", (Mask.from_array(mask),), 0.5, 1.0)
    steps = separate(segment, FrameFeatures(nothing, nothing, nothing), 1000, original=True)
    return answered(steps, see)


def extents(segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """First and last column of each."""
    boxes = [one.mask.box for one in segments]
    return [(box[0], box[2]) for box in boxes if box is not None]


def test_objects_that_touch_come_off_one_by_one():
    """Half of what is left is seen each time, and taken with a rim; eight times."""
    size = (8, 2048)

    def see(points: np.ndarray) -> list[np.ndarray]:
        (left, _), (right, _), _ = np.round(points * 2.048).astype(int)
        return [logits_of(columns(left, left + (right - left) // 2 + (right - left) % 2, size))]

    found = extents(parts_of(np.ones(size, bool), drawing(see)))
    assert len(found) == 8
    start = 0
    for begin, end in found:
        seen = (2048 - start + 1) // 2
        rim = max(1.0, 0.1 * (8 * seen) ** 0.5)
        assert (begin, end) == (start, start + seen + int(rim))
        start = end


@pytest.mark.parametrize(
    ("seen", "presence", "expected"),
    [
        ((0, 100), 0.5, (0, 100)),
        ((0, 100), 0.0, None),
        ((0, 25), 3.0, (0, 100)),  # a quarter of the part
        ((0, 24), 3.0, None),
        ((0, 49), 3.0, (0, 100)),  # less than half: the part stays whole
        ((0, 50), 3.0, (0, 52)),  # half, and a rim of a tenth of the root of 500 pixels
        ((75, 200), 3.0, (0, 100)),  # a fifth of it lies in the mask
        ((75, 201), 3.0, None),
    ],
)
def test_what_confirms_a_part(seen: tuple[int, int], presence: float, expected: tuple[int, int] | None):
    size = (10, 201)
    mask = columns(0, 100, size)
    found = parts_of(mask, drawing(lambda _: [logits_of(columns(*seen, size))], presence))
    if expected is None:
        assert [(one.id, one.score, one.mask) for one in found] == [(1, 0.5, Mask.from_array(mask))]
    else:
        assert extents(found)[0] == expected
        assert found[0].score == pytest.approx(0.9)
        assert found[0].presence == pytest.approx(1 / (1 + math.exp(-presence)))


def test_the_candidate_that_is_most_like_the_part_is_taken():
    """However faintly it is drawn."""
    size = (10, 40)
    faint = np.where(columns(0, 20, size), 0.5, -5.0).astype(np.float32)
    (one,) = parts_of(columns(0, 20, size), drawing(lambda _: [logits_of(columns(0, 30, size)), faint]))
    assert one.score == pytest.approx(0.8) and extents([one]) == [(0, 20)]


@pytest.mark.parametrize(("start", "count"), [(4, 2), (3, 1)])  # of twenty columns sixteen: 0.8; seventeen
def test_parts_in_which_the_same_object_is_seen_are_one(start: int, count: int):
    size = (10, 30)
    mask = columns(0, 10, size) | columns(12, 20, size)

    def see(points: np.ndarray) -> list[np.ndarray]:
        return [logits_of(columns(0 if points[-1, 0] < 1000 / 3 else start, 20, size))]

    found = parts_of(mask, drawing(see))
    assert len(found) == count and (np.logical_or.reduce([one.mask.array for one in found]) == mask).all()


@pytest.mark.parametrize(
    ("large", "speck", "count"),
    [((4, 4), (4, 4), 2), ((4, 4), (3, 5), 1), ((50, 20), (4, 5), 2), ((50, 20), (19, 1), 1)],
)
def test_specks_are_no_parts(large: tuple[int, int], speck: tuple[int, int], count: int):
    """Sixteen pixels at least, and a fiftieth of the largest part."""
    mask = np.zeros((60, 60), bool)
    mask[: large[0], : large[1]] = True
    mask[large[0] : large[0] + speck[0], large[1] + 1 : large[1] + 1 + speck[1]] = True
    asked: list[int] = []
    see = drawing(lambda _: [logits_of(mask)])

    def noted(work: DecodeMarks) -> MaskPrediction:
        asked.append(len(work.labels_KP))
        return see(work)

    parts_of(mask, noted)
    assert asked[0] == count


# ---------------------------------------------------------------------------------------------------------------- zoom


SMALL = drawn((320, 256), (40, 50, 6, (215, 35, 40)), (200, 150, 7, (40, 75, 215)), (120, 90, 7, (45, 150, 60)))


def test_tiles_find_what_is_too_small(tiny: Sa2VA):
    """Nine tiles, then a window around what one of them shows; pictures pass the encoders eight at a time."""
    plain = cast("Answer", tiny.segment(SMALL, "the red circle"))
    with batches(tiny) as seen:
        found = cast("Answer", tiny.segment(SMALL, "the red circle", zoom=True, probabilities=True))
    assert not plain.segments and plain.reason
    assert iou(found.masks[0], disc((320, 256), 40, 50, 6)) > 0.7 and found.size == (256, 320)
    assert [one.id for one in found] == [1] and found.text == "Sure." and found.reason is None
    (segment,) = found.segments
    assert segment.probabilities is not None and segment.probabilities.shape == (1, 256, 320)
    assert ((segment.probabilities[0] > 0.5) == segment.mask.array).all()
    assert sum(seen["tower"]) == 1 + 9 + 1 and max(seen["tower"]) == 8
    assert sum(seen["frames"]) <= 1 + 2 + 1  # of tiles, only those in which something is found


def test_what_is_found_is_looked_at_closer(tiny: Sa2VA):
    image = drawn((1000, 800), (240, 260, 50, (215, 35, 40)), (660, 560, 100, (40, 75, 215)))
    plain = cast("Answer", tiny.segment(image, "the red circle"))
    with batches(tiny) as seen:
        found = cast("Answer", tiny.segment(image, "the red circle", zoom=True))
    truth = disc((1000, 800), 240, 260, 50)
    assert iou(found.masks[0], truth) > iou(plain.masks[0], truth)
    assert seen["tower"] == [1, 1] and seen["frames"] == [1, 1]


def test_what_fills_the_picture_is_not_looked_at_again(tiny: Sa2VA):
    image = drawn((128, 128), (60, 60, 50, (215, 35, 40)))
    plain = cast("Answer", tiny.segment(image, "the red circle"))
    with batches(tiny) as seen:
        assert tiny.segment(image, "the red circle", zoom=True) == plain
    assert seen["tower"] == [1] and plain.segments


@pytest.mark.slow
def test_instances_are_found_by_tiles_and_looked_at_one_by_one(tiny: Sa2VA):
    places = [(40, 50), (250, 60), (150, 200)]
    image = drawn((320, 256), *[(x, y, 8, (215, 35, 40)) for x, y in places])
    found = cast("Answer", tiny.segment(image, "all the red circles", zoom=True, instances=True))
    assert [one.id for one in found] == [1, 2, 3]
    for x, y in places:
        assert max(iou(mask, disc((320, 256), x, y, 8)) for mask in found.masks) > 0.6


def test_parts_of_several_pictures_are_decoded_together(tiny: Sa2VA):
    red = (215, 35, 40)
    images = [drawn((256, 256), (60 + n, 60, 28, red), (180, 70, 30, red)) for n in range(3)]
    asked = [Request(image, phrases="all the red circles", options={"instances": True}) for image in images]
    with batches(tiny) as seen:
        list(tiny.answers(asked))
    assert max(seen["masks"]) == 6


def test_second_looks_at_several_pictures_are_computed_together(tiny: Sa2VA):
    """And give what each gives alone."""
    images = [drawn((256, 256), (70 + 20 * n, 80, 20, (215, 35, 40)), (180, 180, 30, (40, 75, 215))) for n in range(3)]
    requests = [Request(image, phrases="the red circle", options={"zoom": True}) for image in images]
    with batches(tiny) as seen:
        answers = [reply.answers[0] for reply in tiny.answers(requests)]
    assert seen["tower"] == [1] * 6 or max(seen["tower"]) == 3
    assert max(seen["frames"]) == 3
    alone = cast("Answer", tiny.segment(images[1], "the red circle", zoom=True))
    assert iou(answers[1].masks[0], alone.masks[0]) > 0.98


@pytest.mark.parametrize(
    "size", [(256, 256), (257, 100), (512, 2816), (960, 1280), (3000, 90), (4000, 6000), (20000, 30000)]
)
def test_tiles_cover_the_picture(size: tuple[int, int]):
    windows = tiles(size, 256)
    assert 1 <= len(windows) <= 144 and len(set(windows)) == len(windows)
    assert (len(windows) == 1) == (max(size) <= 256)
    for axis, extent in ((0, size[1]), (1, size[0])):
        spans = sorted({(window[axis], window[axis + 2]) for window in windows})
        assert spans[0][0] == 0 and spans[-1][1] == extent
        length = spans[0][1]
        assert all(end - start == length for start, end in spans)
        assert all(after[0] <= before[1] - length // 4 + 1 for before, after in pairwise(spans))


def test_tiles_are_half_the_grounding_image_up_to_144_of_them():
    assert len(tiles((1184, 1184), 256)) == 144 > len(tiles((1185, 1185), 256))


def seen_through(truth: Sequence[np.ndarray], calls: list[Box], score: float = 0.8) -> Callable[[Box], Any]:
    """A model that sees the objects of a picture in every window, each with its pixels there."""

    async def ask(window: Box) -> Answer:
        calls.append(window)
        await Pause()
        x0, y0, x1, y1 = window
        parts = [mask[y0:y1, x0:x1] for mask in truth]
        segments = [
            Segment(n, "it", (Mask.from_array(part),), score, 1.0) for n, part in enumerate(parts, 1) if part.any()
        ]
        return Answer("Sure.", "Sure, [SEG].", tuple(segments), size=(y1 - y0, x1 - x0))

    return ask


@pytest.mark.parametrize("upright", [False, True])
def test_what_tiles_cut_is_joined(sa2va: Sa2VA, upright: bool):
    size = (300, 700)
    truth = np.zeros((3, *size), bool)
    truth[0, 20:60, 30:640] = True  # through all columns of tiles
    truth[1, 100:130, 40:70] = True  # in one or two
    truth[2, 100:130, 90:120] = True
    if upright:
        size, truth = size[::-1], truth.transpose(0, 2, 1)
    calls: list[Box] = []
    nothing = Answer("No.", "No.", (), reason="nothing", size=size)
    looked = sa2va.engine.run(look_by_tiles(nothing, size, 256, seen_through(truth, calls), several=True))
    assert len(calls) == len(tiles(size, 256)) > 8
    assert sorted(one.mask.area for one in looked) == sorted(mask.sum() for mask in truth)
    assert {one.mask for one in looked} == {Mask.from_array(mask) for mask in truth}
    assert looked.reason is None and looked.text == "Sure."
    (one,) = sa2va.engine.run(look_by_tiles(nothing, size, 256, seen_through(truth, calls), several=False)).segments
    assert one.mask in {Mask.from_array(mask) for mask in truth}


def test_what_tiles_cut_is_joined_along_every_side(sa2va: Sa2VA):
    truth = np.zeros((4, 700, 700), bool)
    truth[0, 100:600, 20:60] = truth[1, 100:600, 640:680] = truth[2, 20:60, 100:600] = truth[3, 640:680, 100:600] = True
    nothing = Answer("No.", "No.", (), reason="nothing", size=(700, 700))
    looked = sa2va.engine.run(look_by_tiles(nothing, (700, 700), 256, seen_through(truth, []), several=True))
    assert {one.mask for one in looked} == {Mask.from_array(mask) for mask in truth} and len(looked.segments) == 4


def test_what_the_whole_picture_shows_uncut_stays_as_it_is(sa2va: Sa2VA):
    """Also where it touches the picture's edges: tiles show parts of it."""
    seen, truth = np.zeros((2, 300, 700), bool)
    seen[:60, :640], truth[:62, :642] = True, True
    whole = Answer("", "", (Segment(1, "it", (Mask.from_array(seen),), 0.5, 1.0),), size=(300, 700))
    (found,) = sa2va.engine.run(look_by_tiles(whole, (300, 700), 256, seen_through([truth], []), several=True))
    assert found.mask == Mask.from_array(seen)


@pytest.mark.parametrize(
    ("size", "box", "window"),
    [
        ((400, 400), (100, 100, 120, 120), (85, 85, 135, 135)),  # 0.75 of the longer side around it
        ((400, 400), (100, 100, 120, 104), (85, 77, 135, 127)),
        ((400, 400), (100, 100, 104, 104), (86, 86, 118, 118)),  # an eighth of the grounding image at least
        ((400, 400), (0, 0, 20, 20), (0, 0, 50, 50)),
        ((400, 400), (380, 390, 400, 400), (350, 350, 400, 400)),
        ((100, 100), (30, 30, 58, 58), (9, 9, 79, 79)),
        ((100, 100), (30, 30, 59, 59), None),
        ((100, 200), (60, 30, 100, 70), (30, 0, 130, 100)),  # half the picture
        ((100, 400), (60, 60, 90, 90), (38, 25, 113, 100)),  # moved up from the lower edge
        ((300, 100), (30, 240, 60, 270), (8, 218, 83, 293)),
    ],
)
def test_windows_are_around_their_objects(sa2va: Sa2VA, size: tuple[int, int], box: Box, window: Box | None):
    mask, calls = np.zeros((1, *size), bool), []
    mask[0, box[1] : box[3], box[0] : box[2]] = True
    answer = Answer("", "", (Segment(1, "it", (Mask.from_array(mask[0]),), 0.5, 1.0),), size=size)
    (found,) = sa2va.engine.run(look_closer(answer, size, 256, seen_through(mask, calls))).segments
    assert calls == ([] if window is None else [window])
    assert found.mask == answer.segments[0].mask and found.score == (0.5 if window is None else 0.8)


def test_another_thing_in_the_window_does_not_replace_the_object(sa2va: Sa2VA):
    size = (400, 400)
    first, other = np.zeros((2, *size), bool)
    first[100:120, 100:120] = other[125:135, 125:135] = True
    answer = Answer("", "", (Segment(7, "it", (Mask.from_array(first),), 0.5, 1.0, span=(0, 2)),), size=size)
    for truth, expected in (([other], first), ([other, first], first), ([], first)):
        (found,) = sa2va.engine.run(look_closer(answer, size, 256, seen_through(truth, [])))
        assert found.mask == Mask.from_array(expected) and (found.id, found.span) == (7, (0, 2))
        assert found.score == (0.8 if len(truth) == 2 else 0.5)


# -------------------------------------------------------------------------------------------- parts of one request


def test_parts_of_a_request_are_computed_together(sa2va: Sa2VA):
    """Also parts of parts; a part that fails ends the request, and others go on."""

    async def encoded(seed: int) -> int:
        return len(await EncodeFrame(Image.fromarray(picture(60, 40, seed))))

    async def nested() -> list[list[int]]:
        return await together([together([encoded(2 * n), encoded(2 * n + 1)]) for n in range(3)])

    async def failing() -> list[int]:
        async def fails() -> int:
            await Pause()
            raise ValueError("this part")

        return await together([encoded(0), fails()])

    with batches(sa2va) as seen:
        found = [*sa2va.engine.map([nested(), failing(), together([])], 3)]
    assert found[0] == [[1, 1]] * 3 and str(found[1]) == "this part" and found[2] == []
    assert seen["frames"] == [7]


def test_parts_of_a_cancelled_request_are_dropped(sa2va: Sa2VA):
    ended: list[str] = []

    async def long() -> None:
        try:
            while True:
                await Pause()
        finally:
            ended.append("long")

    async def quick() -> int:
        await Pause()
        return 1

    requests = sa2va.engine.map([quick(), together([long(), long()]), quick()], 3)
    assert next(requests) == 1
    requests.close()
    assert sa2va.engine.run(quick()) == 1 and ended == ["long", "long"]


# ------------------------------------------------------------------------------------------------------------- matting


@pytest.fixture(scope="module")
def vitmatte(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Small random weights of the published class."""
    torch.manual_seed(0)
    backbone = VitDetConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_channels=4, out_features=["stage2"]
    )
    config = VitMatteConfig(
        backbone_config=backbone, hidden_size=16, convstream_hidden_sizes=[8, 8, 8], fusion_hidden_sizes=[8, 8, 8, 8]
    )
    folder = tmp_path_factory.mktemp("vitmatte")
    VitMatteForImageMatting(config).save_pretrained(folder)
    VitMatteImageProcessorPil().save_pretrained(folder)
    return str(folder)


def test_edges_have_opacity(tiny: Sa2VA, vitmatte: str, tmp_path: Path):
    image = drawn((256, 200), (90, 90, 40, (215, 35, 40)), (200, 150, 30, (40, 75, 215)))
    plain = cast("Answer", tiny.segment(image, "the red circle"))
    found = cast("Answer", tiny.segment(image, "the red circle", refine="matting", matting=vitmatte))
    assert found == plain and plain.segments[0].alpha is None  # masks stay
    marked = cast("Answer", tiny.segment(image, box=(50, 50, 130, 130), refine="matting", matting=vitmatte))
    assert marked.segments[0].alpha is not None
    mask, alpha = found.masks[0], found.segments[0].alpha
    assert alpha is not None and alpha.shape == (200, 256) and alpha.dtype == np.float32
    assert alpha.min() == 0 and alpha.max() == 1
    soft = (alpha > 0) & (alpha < 1)
    assert 200 < soft.sum() < 2000  # a ring around the edge
    assert (alpha[mask & ~soft] == 1).all() and (alpha[~mask & ~soft] == 0).all()
    for segments in (found.segments, plain.segments):
        write_picture({"cutout": tmp_path / "cutout.png"}, image, segments, {})
        with Image.open(tmp_path / "cutout.png") as cut:
            opacity = np.asarray(cut)[..., 3]
        expected = mask * 255 if segments is plain.segments else np.round(alpha * 255)
        assert (opacity == expected).all()


@pytest.mark.parametrize(
    ("square", "edge", "corner"), [(100, 4, (150, 130)), (20, 2, (150, 130)), (1000, 32, (200, 250)), (100, 4, (5, 0))]
)
def test_vitmatte_sees_an_edge_and_what_is_around_it(square: int, edge: int, corner: tuple[int, int]):
    """A twenty-fifth of the root of the area on both sides, from 2 to 32 pixels, and four times as much around it."""
    x, y = corner
    mask = np.zeros((y + square + 200, x + square + 300), bool)
    mask[y : y + square, x : x + square] = True
    sizes: list[tuple[int, int]] = []

    def half(work: Matte) -> torch.Tensor:
        assert work.image.size == work.trimap.size and set(np.unique(np.asarray(work.trimap))) == {0, 128, 255}
        sizes.append(work.image.size)
        return torch.full(work.image.size[::-1], 0.5)

    segment = Segment(1, "it", (Mask.from_array(mask),), 0.5, 1.0)
    image = Image.new("RGB", mask.shape[::-1])
    alpha = answered(with_alpha(image, segment, "vitmatte"), half).alpha
    assert alpha is not None
    width, height = (min(start, 5 * edge) + square + 5 * edge for start in corner)
    scale = min(1.0, 1024 / max(width, height))
    assert sizes == [(round(width * scale), round(height * scale))]
    row = alpha[y + square // 2]
    assert (np.flatnonzero(row == 1)[[0, -1]] == (x + edge, x + square - 1 - edge)).all()
    assert (np.flatnonzero(row)[[0, -1]] == (max(x - edge, 0), x + square - 1 + edge)).all()
    assert set(np.unique(alpha)) == {0, 0.5, 1}


def test_matting_by_vitmatte_itself(tiny: Sa2VA, vitmatte: str):
    """The same numbers as the model of transformers gives for the trimap."""
    from sa2va.checkpoint.vitmatte import VitMatte

    image = Image.fromarray(picture(70, 45))
    trimap = Image.fromarray(np.repeat(np.array([[0, 128, 255]], np.uint8), [23, 24, 23], axis=1).repeat(45, axis=0))
    inputs = VitMatteImageProcessorPil()(images=image, trimaps=trimap, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 4, 64, 96)
    with torch.inference_mode():
        expected = VitMatteForImageMatting.from_pretrained(vitmatte)(**inputs).alphas[0, 0, :45, :70]
    assert torch.equal(VitMatte.load(vitmatte, torch.device("cpu")).alpha(image, trimap), expected)


def test_weights_that_are_not_there_are_named(tiny: Sa2VA, tmp_path: Path):
    image = drawn((128, 128), (60, 60, 30, (215, 35, 40)))
    with pytest.raises(ValueError, match=r"refine='matting' needs the files of a VitMatte model, and matting='.*"):
        tiny.segment(image, "the red circle", refine="matting", matting=str(tmp_path))


# ------------------------------------------------------------------------------------------- what excludes each other


def test_what_does_not_go_together_says_so(sa2va: Sa2VA):
    for call, message in (
        (lambda: sa2va.segment(PICTURE, "x", refine="crf"), "refine is 'sam' or 'matting'; got 'crf'"),
        (lambda: sa2va.segment(PICTURE, "x", refine="sam"), r"this checkpoint lacks; load it with sam2='facebook/"),
        (lambda: sa2va.segment(PICTURE, box=(1, 1, 50, 50), refine="sam"), "this checkpoint lacks"),
        (lambda: sa2va.segment(CLIP, "x", zoom=True), "look at one picture again; ask about frames of a video"),
        (lambda: sa2va.segment(CLIP, "x", refine="matting"), "look at one picture again"),
        (lambda: sa2va.track(CLIP, "x", instances=True), "look at one picture again"),
        (lambda: sa2va.stream("x", zoom=True), "look at one picture again"),
        (lambda: sa2va.chat(PICTURE, "x", zoom=True), r"ask for a phrase again; use segment\(media, phrases, \.\.\.\)"),
        (lambda: sa2va.caption(PICTURE, instances=True), "ask for a phrase again"),
        (lambda: sa2va.segment(PICTURE, points=[(5, 5)], instances=True), "ask for a phrase again"),
        (lambda: sa2va.chat(None, "x", refine="matting"), "look at one picture again"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
