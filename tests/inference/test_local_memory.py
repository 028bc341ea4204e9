"""``memory="local"``: objects are looked for around where they were, and in the whole picture now and then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sa2va import Sa2VAModel
from sa2va.inference import local_memory
from sa2va.inference.local_memory import LocalMemory
from sa2va.model import local_attention, memory_attention
from sa2va.model.local_attention import block_side
from sa2va.model.mask_decoder import FrameFeatures, MaskPrediction
from sa2va.model.memory import FrameMemory, MemoryBank, attend, encode_memory
from synthetic_checkpoint import noise


@pytest.fixture(scope="module")
def model(load: Callable[[str], Sa2VAModel]) -> Sa2VAModel:
    return load("iv25_qwen2")


def features_of(model: Sa2VAModel, seed: int) -> FrameFeatures:
    config, side = model.sam2.config, model.sam2.image_size
    assert isinstance(side, int)
    width = config.mask_decoder_config.hidden_size
    fine, middle, top = (
        torch.from_numpy(noise(f"local {seed} {stride}", (1, width, side // stride, side // stride))).float()
        for stride in (4, 8, 16)
    )
    return FrameFeatures(fine, middle, top)


def found(model: Sa2VAModel, *boxes: tuple[int, int, int, int] | None, presence: float = 0.5) -> MaskPrediction:
    """Objects that fill boxes of low-resolution pixels (top, bottom, left, right), or nothing."""
    sam2, count = model.sam2, len(boxes)
    assert isinstance(sam2.image_size, int)
    candidates = torch.full((count, 3, sam2.image_size // 4, sam2.image_size // 4), -0.5)
    for row, box in enumerate(boxes):
        if box is not None:
            candidates[row, :, box[0] : box[1], box[2] : box[3]] = 0.5
    best, pointer = torch.zeros(count, dtype=torch.long), sam2.no_object_pointer.detach().expand(count, -1)
    return MaskPrediction(candidates, torch.full((count, 3), 0.9), best, torch.full((count,), presence), pointer)


def bank_of(model: Sa2VAModel, count: int) -> MemoryBank:
    bank = MemoryBank()
    for index in range(2):
        prediction = found(model, *[(4, 9, 3 + row, 12 + row) for row in range(count)])
        bank = bank.add_prompted(encode_memory(model.sam2, features_of(model, index), prediction, index))
    return bank


@torch.inference_mode()
def test_with_blocks_of_one_cell_it_is_memory_attention(model: Sa2VAModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local_attention, "block_side", lambda grid: 1)
    bank, top = bank_of(model, 3), features_of(model, 2).top
    corners = torch.tensor([[0, 0], [1, 2], [2, 1]])
    windows = corners
    whole, around = attend(model.sam2, bank, top, 2), attend(model.sam2, bank, top, 2, windows_K2=windows)
    torch.testing.assert_close(around, whole, atol=2e-5, rtol=2e-5)
    monkeypatch.setattr(local_attention, "_PAIRS_PER_CHUNK", 1)  # one object at a time
    torch.testing.assert_close(attend(model.sam2, bank, top, 2, windows_K2=windows), around, atol=2e-5, rtol=2e-5)


@torch.inference_mode()
def test_what_is_far_is_seen_coarsely_and_counts_as_much(model: Sa2VAModel, monkeypatch: pytest.MonkeyPatch):
    """In a picture that is the same all over, blocks lose nothing but where their cells are."""
    bank, top = bank_of(model, 2), features_of(model, 2).top[..., :1, :1].expand(-1, -1, 8, 8)
    windows = torch.zeros(2, 2, dtype=torch.long)

    def error() -> Tensor:
        return (attend(model.sam2, bank, top, 2, windows_K2=windows) - attend(model.sam2, bank, top, 2)).abs().mean()

    counted = error()
    assert counted < 0.2 * attend(model.sam2, bank, top, 2).std()
    plain = torch.zeros_like(local_attention._Cut.of(windows, 8).weights())
    monkeypatch.setattr(local_attention._Cut, "weights", lambda cut: plain)
    assert counted < error()


@torch.inference_mode()
def test_blocks_without_detail_lose_nothing(model: Sa2VAModel, monkeypatch: pytest.MonkeyPatch):
    """Where the cells of a block are alike and no cell has a place, its token stands for all of them."""
    for module in (local_attention, memory_attention):
        monkeypatch.setattr(module, "QUERY_POSITION_SHARE", 0.0)
    no_place = (torch.ones(64, 128), torch.zeros(64, 128))
    bank, windows = bank_of(model, 3), torch.tensor([[0, 0], [1, 2], [2, 1]])
    top = features_of(model, 2).top[..., :4, :4].repeat_interleave(2, -1).repeat_interleave(2, -2)
    with model.sam2.memory_attention.rotary_emb.register_forward_hook(lambda *_: no_place):
        whole, around = attend(model.sam2, bank, top, 2), attend(model.sam2, bank, top, 2, windows_K2=windows)
    torch.testing.assert_close(around, whole, atol=2e-5, rtol=2e-5)


@torch.inference_mode()
def test_every_cell_is_seen_around_an_object_only(model: Sa2VAModel, monkeypatch: pytest.MonkeyPatch):
    """All cells of another block are changed alike."""
    monkeypatch.setattr(local_attention, "QUERY_POSITION_SHARE", 0.0)
    bank, top = bank_of(model, 3), features_of(model, 2).top
    windows = [[0, 0], [1, 2], [2, 1]]
    with model.sam2.memory_attention.layer_norm.register_forward_hook(lambda _, given, __: given[0]):  # as it comes
        change = attend(model.sam2, bank, top, 2, windows_K2=torch.tensor(windows)) - top
    blocks = change.unflatten(3, (4, 2)).unflatten(2, (4, 2))
    closely = blocks.std(dim=(3, 5)).mean(dim=1) > 1e-4
    for seen, (row, column) in zip(closely, windows, strict=True):
        assert seen[row : row + 2, column : column + 2].all() and seen.sum() == 4


@pytest.mark.parametrize(("prompted", "read"), [((0, 10, 30), [10, 30, 14, 15]), ((30,), [30, 13, 14, 15])])
def test_the_nearest_frames_are_read_and_all_pointers_stay(prompted: tuple[int, ...], read: list[int]):
    bank = MemoryBank(
        *(
            tuple(FrameMemory(index, torch.zeros(1, 1, 1), torch.zeros(1, 1)) for index in indices)
            for indices in (prompted, range(12, 16))
        )
    )
    near = bank.near(19, prompted=2, frames=4)
    frames = [*near.prompted, *near.tracked]
    assert [frame.index for frame in frames] == [*prompted, *range(12, 16)]
    assert [frame.index for frame in frames if frame.features is not None] == read


def test_at_full_size_three_cells_in_ten_are_left():
    cut = local_attention._Cut.of(torch.zeros(1, 2, dtype=torch.long), 64)
    assert cut.tokens(torch.zeros(1, 64**2, 1)).shape[1] == 1216


def looked(
    model: Sa2VAModel, monkeypatch: pytest.MonkeyPatch, answers: dict[int, MaskPrediction], start: MaskPrediction
) -> dict[int, tuple[int, int]]:
    """In each frame how many objects are looked for in the whole picture, and how many around where they were."""
    sam2 = model.sam2
    asked: dict[int, tuple[int, int]] = {}
    rows: list[Tensor] = []

    def attended(sam2, bank, top, index: int, *, backward: bool, windows_K2: Tensor | None = None) -> Tensor:
        count, before = len(bank.prompted[0].pointer), asked.get(index, (0, 0))
        asked[index] = (before[0] + count, before[1]) if windows_K2 is None else (before[0], before[1] + count)
        rows.append(bank.prompted[0].pointer[:, 0].round().long())
        return top.expand(count, -1, -1, -1)

    def decoded(sam2, decoder, features, tokens, *, conditioned_NChw) -> MaskPrediction:
        which = torch.cat(rows)
        rows.clear()
        return answers[len(asked)][which]

    monkeypatch.setattr(local_memory, "attend", attended)
    monkeypatch.setattr(local_memory, "decode_masks", decoded)
    features = features_of(model, 0)
    numbers = torch.arange(len(start.pointer), dtype=start.pointer.dtype)[:, None].expand_as(start.pointer)
    start = MaskPrediction(start.candidates, start.ious, start.best, start.presence, numbers)
    memory = LocalMemory().prompt(sam2, features, start, 0)
    with torch.inference_mode():
        for index in range(1, len(answers) + 1):
            prediction, memory = memory.track(sam2, sam2.mask_decoder, features, index)
            torch.testing.assert_close(prediction.logits, answers[index].logits)
    return asked


def test_the_whole_picture_is_looked_at_now_and_then_and_for_what_is_lost_or_large(
    model: Sa2VAModel, monkeypatch: pytest.MonkeyPatch
):
    side = 4 * features_of(model, 0).top.shape[-1]
    small, large = (0, 4, side - 4, side), (0, side // 2 + 1, 2, 5)
    seen, grown = found(model, small, small), found(model, small, large)
    lost = MaskPrediction(seen.candidates, seen.ious, seen.best, torch.tensor([-0.5, 0.5]), seen.pointer)
    answers = {index: seen for index in range(1, 18)} | {3: lost, 5: grown}
    asked = looked(model, monkeypatch, answers, seen)
    assert asked == {index: (0, 2) for index in answers} | {
        3: (1, 2),  # not seen around its place: looked for again
        4: (1, 1),  # lost in frame 3
        5: (1, 2),  # found beyond its window
        6: (1, 1),  # too large in frame 5
        16: (2, 0),  # every sixteenth
    }


def test_what_reaches_out_of_its_window_is_looked_for_again(model: Sa2VAModel, monkeypatch: pytest.MonkeyPatch):
    """What is taken is what the look at the whole picture finds, for that object alone."""
    side = 4 * features_of(model, 0).top.shape[-1]
    small, also_far = (0, 4, 0, 4), (0, 4, 0, side)
    start, stray = found(model, small, small), found(model, small, also_far)
    whole: list[int] = []

    def attended(sam2, bank, top, index: int, *, backward: bool, windows_K2: Tensor | None = None) -> Tensor:
        whole.append(windows_K2 is None)
        return top.expand(len(bank.prompted[0].pointer), -1, -1, -1)

    monkeypatch.setattr(local_memory, "attend", attended)
    answers = iter([stray, found(model, (4, 8, 0, 4))])
    monkeypatch.setattr(local_memory, "decode_masks", lambda *_, **__: next(answers))
    memory = LocalMemory().prompt(model.sam2, features_of(model, 0), start, 0)
    with torch.inference_mode():
        prediction, _ = memory.track(model.sam2, model.sam2.mask_decoder, features_of(model, 1), 1)
    assert whole == [False, True]
    torch.testing.assert_close(prediction.logits[0], start.logits[0])
    torch.testing.assert_close(prediction.logits[1], found(model, (4, 8, 0, 4)).logits[0])


def test_windows_hold_their_objects(model: Sa2VAModel):
    grid = features_of(model, 0).top.shape[-1]
    blocks, cells = grid // block_side(grid), 4 * block_side(grid)
    last = (blocks - blocks // 2, blocks - blocks // 2)
    side = 4 * grid
    places = local_memory.Places.of(
        0, found(model, (0, 1, 0, 1), (side - 1, side, side - 1, side), (0, side, 0, side), None), grid
    )
    assert [one.corner for one in places.objects[:2]] == [(0, 0), last]
    assert [one.fits for one in places.objects] == [True, True, False, True]
    assert all(row <= blocks // 2 < row + blocks // 2 for row in places.objects[3].corner)  # around the middle
    for start in range(0, side - cells, 3):
        (one,) = local_memory.Places.of(0, found(model, (start, start + 1, 5, 6)), grid).objects
        row, column = one.corner
        assert row <= start // cells < row + blocks // 2 and column <= 5 // cells < column + blocks // 2


def test_objects_are_in_the_middle_of_their_windows(model: Sa2VAModel):
    grid, side = 64, 4 * features_of(model, 0).top.shape[-1]
    blocks = grid // block_side(grid)
    block = side // blocks
    assert block >= 1
    for start in range(blocks // 4, 3 * blocks // 4 - 1):
        box = (start * block, (start + 2) * block, 0, block)
        ((row, column),) = (one.corner for one in local_memory.Places.of(0, found(model, box), grid).objects)
        assert abs(row + blocks / 4 - (start + 1)) <= 0.5 and column == 0


def test_windows_move_on_with_their_objects(model: Sa2VAModel):
    grid = features_of(model, 0).top.shape[-1]
    block = 4 * block_side(grid)
    before = local_memory.Places.of(2, found(model, (0, 2 * block, 0, block)), grid)
    here = found(model, (block, 3 * block, 0, block))
    (still,) = local_memory.Places.of(3, here, grid).objects
    (moving,) = local_memory.Places.of(3, here, grid, before).objects
    (back,) = local_memory.Places.of(1, here, grid, before).objects  # time runs backwards
    assert still.middle == pytest.approx((2.0, 0.5))
    assert moving.corner == back.corner == (still.corner[0] + 1, still.corner[1])
    (speck,) = local_memory.Places.of(3, found(model, (0, 1, block, block + 1)), grid).objects
    assert speck.middle == pytest.approx((0.5 / block, 1 + 0.5 / block))
    (slower,) = local_memory.Places.of(6, here, grid, before).objects
    assert slower.corner[0] <= moving.corner[0]
