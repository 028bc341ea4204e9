"""Overlays, palette masks, cut-outs and contact sheets: what must and what must not change in the picture."""

from __future__ import annotations

import io
import itertools
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sa2va.masks.mask import Mask, Segment
from sa2va.visualization import labels, overlay
from sa2va.visualization.colors import ObjectColors

HEIGHT, WIDTH = 60, 90
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def rectangle(y0: int, y1: int, x0: int, x1: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def segment(number: int, mask: np.ndarray, phrase: str = "a thing") -> Segment:
    return Segment(number, phrase, (Mask.from_array(mask),), 0.9, 0.9, color=overlay.color(number))


def drawn(segments: list[Segment], picture: np.ndarray = PICTURE, **options) -> np.ndarray:
    return np.asarray(overlay.overlay(picture, segments, **options)).astype(int)


@given(arrays(np.bool_, (3, 12, 15)), st.floats(0, 1), st.booleans())
def test_the_background_is_never_touched(masks, alpha, contour):
    picture = PICTURE[:12, :15]
    out = drawn([segment(i, mask) for i, mask in enumerate(masks)], picture, alpha=alpha, contour=contour, labels=False)
    outside = ~masks.any(axis=0)
    np.testing.assert_array_equal(out[outside], picture[outside])


def test_the_fill_is_a_blend_of_picture_and_colour():
    mask = rectangle(10, 40, 20, 60)
    out = drawn([segment(3, mask)], alpha=0.25, contour=False, labels=False)
    expected = PICTURE * 0.75 + np.array(overlay.color(3)) * 0.25
    np.testing.assert_allclose(out[mask], expected[mask], atol=1.1)


@given(st.permutations([1, 2, 3]))
def test_overlaps_mix_evenly_whatever_the_order_and_do_not_overflow(order):
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    masks = {1: rectangle(0, 60, 0, 60), 2: rectangle(20, 60, 10, 90), 3: rectangle(30, 50, 0, 90)}
    segments = [segment(number, masks[number]) for number in order]
    out = drawn(segments, white, alpha=0.5, contour=False, labels=False)
    mean = np.mean([overlay.color(number) for number in (1, 2, 3)], axis=0)
    np.testing.assert_allclose(out[40, 30], 127.5 + mean / 2, atol=2.5)
    two = np.mean([overlay.color(1), overlay.color(2)], axis=0)
    np.testing.assert_allclose(out[25, 30], 127.5 + two / 2, atol=2.5)


def lines(out: np.ndarray, number: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Where the dark and the coloured line of a contour are."""
    return (out == 16).all(axis=2), (out == overlay.color(number)).all(axis=2)


def test_the_contour_runs_along_the_inside_dark_then_in_the_full_colour():
    out = drawn([segment(1, rectangle(10, 50, 20, 80))], alpha=0.0, labels=False)
    dark, bright = lines(out)
    np.testing.assert_array_equal(dark, rectangle(10, 50, 20, 80) & ~rectangle(11, 49, 21, 79))
    np.testing.assert_array_equal(bright, rectangle(11, 49, 21, 79) & ~rectangle(12, 48, 22, 78))
    assert (out == PICTURE)[~dark & ~bright].all()


def test_where_an_object_is_too_thin_for_two_lines_it_is_in_its_colour():
    thin = rectangle(10, 40, 20, 60) | rectangle(40, 41, 40, 80)
    dark, bright = lines(drawn([segment(1, thin)], alpha=0.0, labels=False))
    assert bright[40, 62:80].all() and not dark[40, 62:].any()
    assert dark[10, 21:59].all() and bright[11, 22:58].all()


def test_without_a_contour_nothing_but_the_fill_is_drawn():
    assert (drawn([segment(1, rectangle(10, 50, 20, 80))], alpha=0.0, contour=False, labels=False) == PICTURE).all()


def test_the_contour_grows_with_the_picture_and_stays_open_at_its_edge():
    big = np.zeros((1200, 1200, 3), np.uint8)
    out = drawn([segment(1, rectangle(0, 600, 0, 600, (1200, 1200)))], big, alpha=0.0, labels=False)
    dark, bright = lines(out)
    assert dark[300].sum() == 2 and bright[300].sum() == 3  # only the right border of the mask
    assert not (dark | bright)[:590, 0].any()


def widened(mask: np.ndarray, steps: int) -> np.ndarray:
    """A pixel more on every side, so many times; at corners too in every other step."""
    for step in range(steps):
        wide = mask.copy()
        wide[:, 1:] |= mask[:, :-1]
        wide[:, :-1] |= mask[:, 1:]
        rows = wide.copy() if step % 2 else mask
        wide[1:] |= rows[:-1]
        wide[:-1] |= rows[1:]
        mask = wide
    return mask


@pytest.mark.parametrize("size", [(40, 63), (40, 64), (40, 65), (33, 200), (601, 700)])
def test_the_contour_is_found_step_by_step(size):
    coarse = np.random.default_rng(1).random((size[0] // 8 + 1, size[1] // 8 + 1)) < 0.7
    mask = np.kron(coarse, np.ones((8, 8), bool))[: size[0], : size[1]]
    first, second = max(1, round(min(size) / 600)), max(1, round(min(size) / 400))
    core = ~widened(~mask, first)
    thin = mask & ~widened(core, first + 1)
    bright = (core & widened(~core, second)) | thin
    found = lines(drawn([segment(1, mask)], np.zeros((*size, 3), np.uint8), alpha=0.0, labels=False))
    np.testing.assert_array_equal(found, [mask & ~core & ~thin, bright])


def test_a_single_pixel_is_seen():
    out = drawn([segment(1, rectangle(7, 8, 9, 10))], labels=False)
    assert tuple(out[7, 9]) == overlay.color(1)
    assert (out != PICTURE).any(axis=2).sum() == 1


def test_an_empty_mask_draws_nothing_not_even_a_label():
    assert (drawn([segment(1, np.zeros((HEIGHT, WIDTH), bool))]) == PICTURE).all()
    assert (drawn([]) == PICTURE).all()


def test_the_picture_given_is_not_changed_and_may_be_of_any_mode():
    picture = Image.fromarray(PICTURE)
    overlay.overlay(picture, [segment(1, rectangle(10, 50, 20, 80))])
    np.testing.assert_array_equal(np.asarray(picture), PICTURE)
    for mode in ("L", "P", "RGBA"):
        assert overlay.overlay(picture.convert(mode), []).mode == "RGB"


def test_painting_in_place_is_drawing():
    segments = [segment(1, rectangle(10, 50, 20, 80)), segment(2, rectangle(0, 30, 0, 40))]
    canvas = PICTURE.copy()
    overlay.ClipOverlay().paint(canvas, segments)
    np.testing.assert_array_equal(canvas, drawn(segments))


@given(arrays(np.bool_, (4, 14, 19)), st.floats(0, 1))
def test_every_pixel_is_mixed_with_the_mean_of_the_colours_that_cover_it(masks, alpha):
    picture = PICTURE[:14, :19]
    out = drawn([segment(i, m) for i, m in enumerate(masks, 1)], picture, alpha=alpha, contour=False, labels=False)
    colors = np.array([overlay.color(number) for number in range(1, 5)], float)
    covering = masks.sum(axis=0)
    mean = np.einsum("khw,kc->hwc", masks, colors) / np.maximum(covering, 1)[..., None]
    np.testing.assert_allclose(out[covering > 0], (picture + alpha * (mean - picture))[covering > 0], atol=1.6)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"\(60, 90\), got \(5, 5\)"):
        drawn([segment(1, np.ones((5, 5), bool))])
    with pytest.raises(ValueError, match="alpha"):
        drawn([], alpha=2.0)
    with pytest.raises(ValueError, match="float64"):
        overlay.overlay(cast(Any, PICTURE / 255), [])


def plates(text_of: list[labels.Label], size: tuple[int, int]) -> np.ndarray:
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    labels.LabelLayout().draw(canvas, text_of)
    return canvas


def test_labels_of_crowded_objects_stay_inside_and_apart():
    boxes = [(10, 10, 60, 60), (30, 20, 80, 70), (590, 5, 639, 60), (0, 440, 60, 479), (600, 440, 639, 479)]
    names = ["a person", "another person", "the one at the corner", "floor", "end"]
    colors = [overlay.color(number) for number in range(1, 6)]
    wanted = [labels.Label(name, "#", color, box) for name, color, box in zip(names, colors, boxes, strict=True)]
    together = plates(wanted, (640, 480))
    for label in wanted:
        alone = (together == label.color).all(axis=2)
        rows, columns = np.flatnonzero(alone.any(axis=1)), np.flatnonzero(alone.any(axis=0))
        plate = together[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        # Nothing but the plate, its text and its rounded corners: no other plate's colour gets in.
        for other in wanted:
            assert other is label or not (plate == other.color).all(axis=2).any()
        assert rows[-1] - rows[0] > 12 and columns[-1] - columns[0] > 12


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0, 0, 640, 480), (639, 479, 640, 480), (300, 200, 303, 203)])
def test_a_label_is_complete_wherever_its_object_is(box):
    out = plates([labels.Label("the object", "#1", (255, 180, 0), box)], (640, 480))
    reference = plates([labels.Label("the object", "#1", (255, 180, 0), (300, 200, 340, 240))], (640, 480))
    assert out.any(axis=2).sum() == reference.any(axis=2).sum()


def test_a_label_too_long_is_cut_and_one_without_room_left_out():
    canvas = plates([labels.Label("word " * 100, "#1", (255, 180, 0), (20, 40, 60, 60))], (160, 120))
    assert canvas.any()
    assert not plates([labels.Label("word", "#1", (255, 180, 0), (0, 0, 4, 4))], (8, 8)).any()


def test_letters_no_font_has_fall_back_to_the_id():
    unknown = "\U0010fffd\U0010fffc"  # private use: in no font
    box, color = (20, 40, 60, 60), (255, 180, 0)
    fallen = plates([labels.Label(unknown, "#7", color, box)], (160, 120))
    np.testing.assert_array_equal(fallen, plates([labels.Label("#7", "#7", color, box)], (160, 120)))


def test_plates_contrast_with_their_text():
    for number in range(1, 20):
        out = plates([labels.Label("MMM", "#1", overlay.color(number), (200, 400, 600, 600))], (1600, 1200))
        ink = 255 if (out == 255).all(axis=2).any() else 0
        assert contrast(np.full(3, ink), np.array(overlay.color(number))) >= 4.5


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """Contrast ratio of WCAG 2; 4.5 is what it asks of text."""
    first, second = (float(linear(color) @ [0.2126, 0.7152, 0.0722]) + 0.05 for color in (a, b))
    return max(first, second) / min(first, second)


def linear(color: np.ndarray) -> np.ndarray:
    color = color / 255
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


# Full dichromacy after Machado, Oliveira and Fernandes (2009), on linear RGB.
EYES = {
    "normal": np.eye(3),
    "protan": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deutan": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritan": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def lab(color: np.ndarray, eye: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(eye @ linear(color), 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", EYES)
def test_the_first_eight_colours_differ_for_every_kind_of_eye(eye):
    seen = [lab(np.array(overlay.color(number)), EYES[eye]) for number in range(1, 9)]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 20


def disc(x: int, y: int, radius: int, size: tuple[int, int]) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.hypot(rows - y, columns - x) < radius


# Background, object: those of the picture in the README, and light, dark and grey ones.
SCENES = {
    "yellow on green": ((160, 190, 140), (250, 215, 70)),
    "orange on teal": ((90, 120, 115), (235, 130, 40)),
    "blue on sky": ((150, 200, 240), (40, 90, 220)),
    "white on white": ((250, 250, 250), (235, 235, 235)),
    "black on black": ((8, 8, 8), (25, 22, 20)),
    "grey on grey": ((120, 120, 120), (135, 130, 128)),
    "red on red": ((180, 30, 30), (220, 50, 40)),
}


@pytest.mark.parametrize("scene", SCENES)
def test_a_colour_is_chosen_away_from_the_object_and_what_is_around_it(scene):
    around, own = (np.array(value) for value in SCENES[scene])
    mask = disc(60, 40, 25, (80, 120))
    picture = np.where(mask[..., None], own, around).astype(np.uint8)
    unmarked = Segment(1, "it", (Mask.from_array(mask),), 0.9, 0.9)
    out = drawn([unmarked], picture, labels=False)
    (colored,) = ObjectColors().apply(picture, [unmarked])
    line, filled = lab(np.array(colored.color), EYES["normal"]), lab(out[40, 60], EYES["normal"])
    assert (out[40, 85 - 2 : 85] == colored.color).all(axis=1).any()
    for other in (own, around):
        assert np.linalg.norm(line - lab(other, EYES["normal"])) > 45
    before = lab(own, EYES["normal"])
    # The fill is seen, does not bring the object nearer to its surroundings, and leaves it most of its own colour.
    assert np.linalg.norm(filled - before) > 10
    apart = np.linalg.norm(before - lab(around, EYES["normal"]))
    assert np.linalg.norm(filled - lab(around, EYES["normal"])) > min(apart, 15)
    assert np.hypot(*filled[1:]) > 0.6 * np.hypot(*before[1:])


def test_each_object_of_a_crowd_has_a_colour_of_its_own_and_keeps_it():
    size = (80, 400)
    segments = [Segment(i, "", (Mask.from_array(disc(12 + 25 * i, 40, 10, size)),), 0.9, 0.9) for i in range(15)]
    pictures = RNG.integers(0, 256, (3, *size, 3), dtype=np.uint8)
    colors = ObjectColors()
    assert (
        colors.apply(pictures[0], [Segment(3, "", (Mask.from_array(np.zeros(size, bool)),), 0.9, 0.9)])[0].color is None
    )
    seen = [[one.color for one in colors.apply(picture, segments)] for picture in pictures]
    assert len(set(seen[0])) == 15 and seen[0] == seen[1] == seen[2]


def plate_of(before: np.ndarray, after: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The box of what is all in one colour and no line: the plate."""
    rows, columns = np.nonzero((after == color).all(axis=2) & (before != color).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def shown_plate(clip: overlay.ClipOverlay, mask: np.ndarray) -> tuple[int, int, int, int]:
    picture = np.zeros((*mask.shape, 3), np.uint8)
    without = drawn([segment(2, mask)], picture, labels=False)
    return plate_of(without, np.asarray(clip.draw(picture, [segment(2, mask)])), overlay.color(2))


def test_a_label_is_at_the_largest_part_of_its_object_and_inside_a_very_large_one():
    size = (240, 320)
    small, large = rectangle(10, 20, 5, 15, size), rectangle(150, 180, 200, 230, size)
    x0, y0, x1, y1 = shown_plate(overlay.ClipOverlay(), small | large)
    assert abs((x0 + x1) / 2 - 215) < 45 and abs((y0 + y1) / 2 - 165) < 35
    x0, y0, x1, y1 = shown_plate(
        overlay.ClipOverlay(), rectangle(0, 100, 0, 20, size) | rectangle(100, 240, 0, 320, size)
    )
    assert y0 > 100 and y1 < 240 and x0 > 0 and x1 < 320


def test_a_label_stands_still_while_its_mask_flickers_and_follows_a_moving_object():
    size, clip = (240, 320), overlay.ClipOverlay()
    shapes = [rectangle(100 + k % 2, 140 - k % 3, 100 - k % 2, 150 + k % 3, size) for k in range(12)]
    assert len({shown_plate(clip, mask) for mask in shapes}) == 1
    # Two halves behind a pole, now the one and now the other larger: the label stays with the first.
    halves = [rectangle(40, 60, 40, 80 + k % 2 * 10, size) | rectangle(40, 60, 220, 265, size) for k in range(8)]
    clip = overlay.ClipOverlay()
    assert len({shown_plate(clip, mask)[0] // 60 for mask in halves}) == 1
    clip = overlay.ClipOverlay()
    moved = [shown_plate(clip, rectangle(100, 140, 20 + 4 * k, 70 + 4 * k, size))[0] for k in range(40)]
    assert max(abs(b - a) for a, b in itertools.pairwise(moved)) <= 5 and moved[-1] - moved[0] > 120


def test_an_object_the_model_doubts_has_a_question_mark():
    mask = Mask.from_array(rectangle(60, 100, 100, 160, (160, 240)))
    black = np.zeros((160, 240, 3), np.uint8)
    sure, doubted = (drawn([Segment(1, "it", (mask,), score, 0.9)], black) for score in (0.2, 0.19))
    asked = drawn([Segment(1, "it ?", (mask,), 0.9, 0.9)], black)
    assert (doubted == asked).all() and (doubted != sure).any()


def test_colours_are_stable_and_defined_for_every_id():
    assert overlay.color(5) == overlay.color(5)
    assert len({overlay.color(number) for number in range(100)}) > 90
    assert all(0 <= value <= 255 for number in (-3, 0, 10**6) for value in overlay.color(number))


def test_palette_png_is_mode_p_with_the_davis_palette():
    masks = np.stack([rectangle(0, 30, 0, 40), rectangle(20, 60, 30, 90)])
    file = io.BytesIO()
    overlay.palette_png(masks).save(file, "PNG")
    picture = Image.open(file)
    assert picture.mode == "P"
    index = np.asarray(picture)
    np.testing.assert_array_equal(index, np.where(masks[1], 2, np.where(masks[0], 1, 0)))
    palette = picture.getpalette()
    assert palette is not None
    # The first entries of the well-known table, and its last.
    assert [tuple(palette[3 * i : 3 * i + 3]) for i in (0, 1, 2, 3, 4, 8, 255)] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (64, 0, 0),
        (224, 224, 192),
    ]


def test_palette_png_takes_the_colours_of_overlays():
    masks = [rectangle(0, 10, 0, 10), rectangle(20, 30, 0, 10)]
    picture = overlay.palette_png(masks, [2, 7], [(1, 2, 3), None])
    palette = picture.getpalette() or []
    assert palette[6:9] == [1, 2, 3] and palette[21:24] == overlay.davis_palette()[21:24] and palette[:3] == [0, 0, 0]
    with pytest.raises(ValueError, match="shorter"):
        overlay.palette_png(masks, [2, 7], [None])


def test_palette_png_takes_indices_and_refuses_wrong_ones():
    mask = rectangle(0, 10, 0, 10)
    assert np.asarray(overlay.palette_png([mask], [200])).max() == 200
    for masks, indices in (([mask], [0]), ([mask], [256]), ([mask], [1, 2]), ([], None)):
        with pytest.raises(ValueError, match="expected one"):
            overlay.palette_png(masks, indices)
    with pytest.raises(ValueError, match="bool"):
        overlay.palette_png(cast(Any, [mask.astype(np.uint8)]))


def test_cutout_is_transparent_outside_and_unchanged_inside():
    mask = rectangle(10, 40, 20, 60)
    out = np.asarray(overlay.cutout(PICTURE, Mask.from_array(mask)))
    assert out.shape == (HEIGHT, WIDTH, 4)
    np.testing.assert_array_equal(out[mask][:, :3], PICTURE[mask])
    assert (out[mask][:, 3] == 255).all()
    assert not out[~mask].any()


def test_cutout_keeps_soft_opacity():
    opacity = np.full((HEIGHT, WIDTH), 0.5, np.float32)
    out = np.asarray(overlay.cutout(PICTURE, opacity))
    assert set(np.unique(out[..., 3])) == {128}
    with pytest.raises(ValueError, match="got"):
        overlay.cutout(PICTURE, opacity[:5])


def test_contact_sheet_places_every_picture():
    pictures = [np.full((40, 80, 3), value, np.uint8) for value in (10, 60, 110, 160, 210)]
    sheet = np.asarray(overlay.contact_sheet(pictures, 3))
    counts = [(sheet == value).all(axis=2).sum() for value in (10, 60, 110, 160, 210)]
    assert counts == [40 * 80] * 5
    labelled = overlay.contact_sheet([Image.fromarray(p) for p in pictures], 3, ["a", "b", "c", "d", "e"])
    assert labelled.height > sheet.shape[0]
    with pytest.raises(ValueError, match="one label per picture"):
        overlay.contact_sheet(pictures, 3, ["a"])
    with pytest.raises(ValueError, match="at least one"):
        overlay.contact_sheet([], 3)
