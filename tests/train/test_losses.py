"""Losses against numbers made by hand and against the formulas of the released recipe, written out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sa2va.data.encode import resize_masks
from sa2va.model.mask_decoder import MaskPrediction
from sa2va.train.losses import (
    LossOptions,
    LossWeights,
    bce_per_mask,
    dice_per_mask,
    focal_per_mask,
    frame_shares,
    iou_error,
    low_resolution_targets,
    mask_losses,
    sample_points,
    text_loss,
    uncertain_points,
)

FLOAT32_EPSILON = 1.1920929e-07


def prediction(pairs: int, side: int = 8, seed: int = 0) -> MaskPrediction:
    generator = torch.Generator().manual_seed(seed)
    ious = torch.rand(pairs, 3, generator=generator)
    return MaskPrediction(
        candidates=3 * torch.randn(pairs, 3, side, side, generator=generator),
        ious=ious,
        best=ious.argmax(dim=1),
        presence=torch.randn(pairs, generator=generator),
        pointer=torch.zeros(pairs, 4),
    )


def targets(pairs: int, side: int = 8, seed: int = 1) -> Tensor:
    return (torch.rand(pairs, side, side, generator=torch.Generator().manual_seed(seed)) > 0.6).float()


def shares(objects: list[int], frames: list[int]) -> Tensor:
    return torch.tensor(frame_shares(objects, frames))


# -- single formulas ---------------------------------------------------------------------------------------------------


def test_cross_entropy_and_dice_by_hand():
    logits = torch.tensor([[0.0, math.log(3), -math.log(3)]])  # probabilities 1/2, 3/4, 1/4
    goal = torch.tensor([[1.0, 1.0, 0.0]])
    assert bce_per_mask(logits, goal).item() == pytest.approx((math.log(2) + 2 * math.log(4 / 3)) / 3)
    assert dice_per_mask(logits, goal).item() == pytest.approx(1 - (2 * 1.25 + 1) / (1.5 + 2 + 1))
    assert dice_per_mask(torch.full((1, 9), -40.0), torch.zeros(1, 9)).item() == pytest.approx(0)


def test_focal_by_hand():
    assert focal_per_mask(torch.zeros(1, 1), torch.ones(1, 1)).item() == pytest.approx(0.25 * 0.25 * math.log(2))
    sure_and_wrong = focal_per_mask(torch.tensor([[math.log(3)]]), torch.zeros(1, 1)).item()
    assert sure_and_wrong == pytest.approx(0.75 * (3 / 4) ** 2 * math.log(4))


def test_text_loss_by_hand():
    logits = torch.zeros(1, 4, 2)
    logits[0, 1] = torch.tensor([0.0, math.log(3)])
    labels = torch.tensor([[-100, -100, 1, 0]])
    term = text_loss(logits, labels)
    # position 1 gives token 1 three quarters, position 2 gives token 0 a half; position 0 predicts nothing learnt
    assert term.count.item() == 2
    assert term.mean().item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert text_loss(logits[:, 1:3].reshape(2, 2), labels).total == term.total


def test_text_without_labels_is_zero_with_a_gradient():
    logits = torch.randn(1, 3, 5, requires_grad=True)
    loss = text_loss(logits, torch.full((1, 3), -100)).mean()
    loss.backward()
    assert loss == 0
    assert logits.grad is not None and not logits.grad.any()


def test_iou_error_by_hand():
    masks = torch.full((1, 3, 2, 2), -1.0)
    masks[0, 0, 0] = 1  # upper half
    masks[0, 1] = 1  # everything
    goal = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    guess = MaskPrediction(masks, torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([0]), torch.zeros(1), torch.zeros(1, 1))
    # true IoU 1/2, 1/4, 0
    assert iou_error(guess, goal).item() == pytest.approx((0 + 0.25 + 0.5) / 3)


def test_presence_and_iou_look_at_present_objects():
    guess, goal = prediction(2), targets(2)
    goal[1] = 0
    guess.presence[:] = torch.tensor([math.log(3), math.log(3)])
    options = LossOptions(weights=LossWeights(bce=0, dice=0, iou=1, presence=1))
    terms = mask_losses(guess, goal, shares([2], [1]), options)
    assert terms["presence"].mean().item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-3)
    assert terms["iou"].mean().item() == pytest.approx(iou_error(guess, goal)[0].item() / 2, rel=1e-3)


# -- points ------------------------------------------------------------------------------------------------------------


def test_points_between_cells_are_bilinear_and_zero_outside():
    grid = torch.tensor([[[1.0, 3.0], [5.0, 7.0]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.5, 0.5], [0.5, 0.25], [0.0, 0.0]]])
    # a corner of the map lies half a cell from one centre in both directions: a quarter of that cell
    assert sample_points(grid, points).tolist() == [[1.0, 3.0, 4.0, 2.0, 0.25]]


def test_points_are_repeatable_and_mostly_unsure():
    ramp = torch.linspace(-4, 4, 64).expand(2, 64, 64).contiguous()  # the boundary is the vertical middle

    def draw(seed: int) -> Tensor:
        return uncertain_points(ramp, 1000, generator=torch.Generator().manual_seed(seed))

    points = draw(3)
    assert points.shape == (2, 1000, 2)
    assert ((points >= 0) & (points < 1)).all()
    assert torch.equal(points, draw(3)) and not torch.equal(points, draw(4))
    distance = (points[..., 0] - 0.5).abs()
    # of 3,000 uniform points the 750 nearest the middle lie within an eighth of the width on either side; a few are in
    # the corners, where the zeros outside make logits small
    assert (distance[:, :750] < 0.14).float().mean() > 0.99
    assert (distance[:, 750:] > 0.14).float().mean() > 0.6


@given(st.integers(1, 700), st.integers(1, 40), st.sampled_from([1, 7, 32, 256]))
def test_targets_are_resized_as_torch_does(height: int, width: int, side: int):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    where = (rows * width + columns).double()[None, None]
    assert torch.equal(resize_masks(where, side), F.interpolate(where, size=(side, side), mode="nearest"))


def test_targets_are_ordered_by_sample_object_frame():
    first = torch.zeros(2, 2, 4, 4, dtype=torch.bool)
    first[1, 0] = True
    second = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    stacked = low_resolution_targets([first, None, second], 4)
    assert stacked.mean(dim=(1, 2)).tolist() == [0, 0, 1, 0, 1]


# -- the released recipe -----------------------------------------------------------------------------------------------


def released(logits_NP: Tensor, goal_NP: Tensor) -> tuple[float, float]:
    """The two mask losses as the reference computes them for N masks of P points, weights included."""
    n, p = logits_NP.shape
    error = F.binary_cross_entropy_with_logits(logits_NP, goal_NP, reduction="sum")
    bce = 2.0 * error / (n * p + 1e-4 + FLOAT32_EPSILON)
    q = logits_NP.sigmoid()
    overlap = 1 - (2 * (q * goal_NP).sum(1) + 1) / (q.sum(1) + goal_NP.sum(1) + 1)
    return bce.item(), (0.5 * overlap.sum() / (n + 1e-4 + FLOAT32_EPSILON)).item()


def test_the_defaults_are_those_of_the_released_recipe():
    weights = LossWeights(text=1.0, bce=2.0, dice=0.5, focal=0.0, iou=0.0, presence=0.0)
    assert LossOptions() == LossOptions(weights, points=12544, oversample=3.0, importance=0.75)


def test_points_are_chosen_as_the_options_say():
    guess, goal = prediction(5), targets(5)
    wanted = {"oversample": 2.0, "importance": 0.5}
    terms = mask_losses(guess, goal, shares([5], [1]), LossOptions(points=40, **wanted), torch.Generator())
    spots = uncertain_points(guess.logits, 40, **wanted, generator=torch.Generator())
    bce, _ = released(sample_points(guess.logits, spots), sample_points(goal, spots))
    assert 2.0 * terms["bce"].mean().item() == pytest.approx(bce, rel=1e-6)


@pytest.mark.parametrize("points", [None, 12544])
def test_five_objects_per_frame_give_the_released_losses(points: int | None):
    guess, goal = prediction(5 * 3), targets(5 * 3)
    options = LossOptions(points=points)
    terms = mask_losses(guess, goal, shares([5, 5], [2, 1]), options, torch.Generator().manual_seed(5))
    logits, aims = guess.logits.flatten(1), goal.flatten(1)
    if points:
        spots = uncertain_points(guess.logits, points, generator=torch.Generator().manual_seed(5))
        logits, aims = sample_points(guess.logits, spots), sample_points(goal, spots)
    bce, dice = released(logits, aims)
    assert options.weights.bce * terms["bce"].mean().item() == pytest.approx(bce, rel=1e-6)
    assert options.weights.dice * terms["dice"].mean().item() == pytest.approx(dice, rel=1e-6)


def test_one_object_counts_as_its_five_copies():
    guess, goal = prediction(6), targets(6)  # a frame with one object, a frame with five
    terms = mask_losses(guess, goal, shares([1, 5], [1, 1]), LossOptions(points=None))
    repeated = torch.tensor([0, 0, 0, 0, 0, 1, 2, 3, 4, 5])
    bce, dice = released(guess.logits[repeated].flatten(1), goal[repeated].flatten(1))
    assert 2.0 * terms["bce"].mean().item() == pytest.approx(bce, rel=1e-5)
    assert 0.5 * terms["dice"].mean().item() == pytest.approx(dice, rel=1e-4)


def test_more_than_five_objects_are_the_mean_over_all_draws_of_five():
    guess, goal = prediction(7), targets(7)
    term = mask_losses(guess, goal, shares([7], [1]), LossOptions(points=None))["dice"].mean().item()
    per_mask = dice_per_mask(guess.logits.flatten(1), goal.flatten(1))
    assert term == pytest.approx(per_mask.mean().item(), rel=1e-4)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), min_size=1, max_size=6))
def test_every_frame_with_objects_counts_once(samples: list[tuple[int, int]]):
    objects, frames = [k for k, _ in samples], [f for _, f in samples]
    found = frame_shares(objects, frames)
    assert len(found) == sum(k * f for k, f in samples)
    assert sum(found) == pytest.approx(sum(f for k, f in samples if k))


def test_objects_that_are_not_known_in_a_frame_have_no_share_of_it():
    known = torch.tensor([[True, True, False], [True, False, False]])
    assert frame_shares([2, 1], [3, 1], [known, None]) == [0.5, 1.0, 0.0, 0.5, 0.0, 0.0, 1.0]


# -- candidates --------------------------------------------------------------------------------------------------------


def learning_candidates(options: LossOptions) -> Tensor:
    guess, goal = prediction(4), targets(4)
    logits = guess.candidates.requires_grad_()
    terms = mask_losses(guess, goal, shares([4], [1]), options, torch.Generator().manual_seed(0))
    torch.stack([term.mean() for term in terms.values()]).sum().backward()
    assert logits.grad is not None
    reached = logits.grad.abs().sum(dim=(2, 3)) > 0
    assert (reached.sum(dim=1) == 1).all()
    return reached.int().argmax(dim=1)


def test_the_candidate_with_the_highest_predicted_iou_learns():
    assert torch.equal(learning_candidates(LossOptions()), prediction(4).best)


def test_the_candidate_with_the_least_loss_learns():
    weights = LossWeights(bce=0, dice=1, focal=20)
    learnt = learning_candidates(LossOptions(weights=weights, points=None, candidate="best"))
    flat, goal = prediction(4).candidates.flatten(2), targets(4).flatten(1)[:, None].expand(-1, 3, -1)
    losses = 20 * focal_per_mask(flat, goal) + dice_per_mask(flat, goal)
    assert torch.equal(learnt, losses.argmin(dim=1))


def test_a_loss_without_weight_is_not_computed():
    assert set(mask_losses(prediction(1), targets(1), shares([1], [1]), LossOptions())) == {"bce", "dice"}


def test_masks_are_wanted_where_a_loss_of_them_has_a_weight():
    nothing = LossWeights(text=1, bce=0, dice=0)
    assert LossWeights().masks and not nothing.masks
    assert all(replace(nothing, **{name: 1.0}).masks for name in ("bce", "dice", "focal", "iou", "presence"))
