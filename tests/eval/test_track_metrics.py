"""What is measured of a track besides J&F, on cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sa2va.eval.track_metrics import after_absence, identity_swaps, track_outcome


def clip(*places: str) -> np.ndarray:
    """Bool (N, T, 4, 24): per object a string of T places of a 4 x 4 block, or ``.`` where it is not to be seen."""
    masks = np.zeros((len(places), len(places[0]), 4, 24), bool)
    for one, text in zip(masks, places, strict=True):
        for frame, place in zip(one, text, strict=True):
            if place != ".":
                frame[:, 4 * int(place) : 4 * int(place) + 4] = True
    return masks


def test_frames_after_an_absence():
    seen = np.array([int(one) for one in "0011011000001100"], bool)
    assert np.flatnonzero(after_absence(seen)).tolist() == [12, 13]
    assert np.flatnonzero(after_absence(seen, least=1)).tolist() == [5, 6, 12, 13]
    assert not after_absence(seen, least=6).any()
    assert not after_absence(np.array([0] * 9 + [1] * 3, bool)).any()  # it enters late, and was never lost


def test_a_mask_that_goes_over_to_another_object_and_back():
    objects = clip("0000000", "1111111", "2222222")
    assert identity_swaps(clip("00.1110")[0], objects) == 2
    assert identity_swaps(clip("0000000")[0], objects) == 0
    assert identity_swaps(clip("1111111")[0], objects) == 0  # wrong throughout, but it never swaps
    assert identity_swaps(clip("0.2.1.0")[0], objects) == 3
    assert identity_swaps(clip("0555550")[0], objects) == 0  # on the background between
    assert identity_swaps(clip(".......")[0], objects) == 0


def test_a_mask_is_on_an_object_from_half_of_their_union_on():
    objects = clip("00", "11")
    half = np.zeros((2, 4, 24), bool)
    half[0, :, :4] = True
    half[1, :, 4:6] = True  # IoU 8 / 16
    assert identity_swaps(half, objects) == 1
    half[1, 0, 4] = False  # 7 / 16
    assert identity_swaps(half, objects) == 0


def test_a_track_against_the_truth():
    #                 lost for five frames, then back
    objects = clip("000.....00", "5555555555")
    found = clip("000.33..50")[0]
    outcome = track_outcome(found, objects, 0)
    # Right: three at the start, three of five empty ones, the last.
    assert (outcome.j, outcome.f, outcome.jf) == pytest.approx((0.7, 0.7, 0.7))
    assert outcome.reappeared == pytest.approx(0.5)
    assert (outcome.absent, outcome.false) == (5, 2)
    assert outcome.swaps == 2


def test_an_object_that_is_always_there():
    objects = clip("0000", "1111")
    outcome = track_outcome(objects[0], objects, 0)
    assert (outcome.jf, outcome.reappeared, outcome.absent, outcome.false, outcome.swaps) == (1, None, 0, 0, 0)


def test_shapes_that_do_not_fit():
    objects = clip("0000")
    with pytest.raises(ValueError, match=r"expected objects \(N, T, H, W\) that hold number 1"):
        track_outcome(objects[0], objects, 1)
    with pytest.raises(ValueError, match="expected bool arrays of one shape"):
        track_outcome(objects[0, :2], objects, 0)
