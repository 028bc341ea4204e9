"""AP, greedy mIoU and phrase recall of grounded captions against plain definitions, and their corner cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import BertConfig, BertModel, BertTokenizerFast

from sa2va.eval.captions import word_f1
from sa2va.eval.grounded import (
    EncoderSimilarity,
    Grounded,
    average_precision,
    found_phrases,
    greedy_miou,
    iou_matrix,
    phrase_recall,
)
from sa2va.masks.mask import Mask

SHAPE = (10, 12)
several = st.lists(arrays(np.bool_, SHAPE), max_size=4)


def box(x0: int, x1: int) -> Mask:
    """Columns x0 to x1 of the picture."""
    mask = np.zeros(SHAPE, bool)
    mask[:, x0:x1] = True
    return Mask.from_array(mask)


def same(one: str, other: str) -> float:
    return float(one == other)


def plain_ious(rows, columns):
    return [[(r & c).sum() / max((r | c).sum(), 1) for c in columns] for r in rows]


@settings(max_examples=50)
@given(several, several)
def test_miou_matches_the_best_pair_first(predicted, true):
    ious = {(r, c): iou for r, row in enumerate(plain_ious(predicted, true)) for c, iou in enumerate(row)}
    matched = []
    while ious and max(ious.values()) > 0:
        row, column = max(ious, key=lambda pair: (ious[pair], -pair[0], -pair[1]))
        matched.append(ious[row, column])
        ious = {pair: iou for pair, iou in ious.items() if pair[0] != row and pair[1] != column}
    expected = np.mean(matched) if matched else 0.0
    ours = [[Mask.from_array(mask) for mask in masks] for masks in (predicted, true)]
    assert greedy_miou(*ours) == pytest.approx(expected)


@settings(max_examples=50)
@given(several, several)
def test_iou_matrix_is_that_of_pixels(rows, columns):
    ours = iou_matrix(*[[Mask.from_array(mask) for mask in masks] for masks in (rows, columns)])
    assert ours.shape == (len(rows), len(columns))
    np.testing.assert_allclose(ours, np.reshape(plain_ious(rows, columns), ours.shape))


def test_masks_without_a_partner_do_not_count_against_miou():
    assert greedy_miou([box(0, 4), box(10, 12)], [box(0, 4)]) == 1.0
    assert greedy_miou([box(0, 4)], [box(0, 2), box(6, 8)]) == 0.5
    assert greedy_miou([], [box(0, 4)]) == 0.0
    assert greedy_miou([box(0, 0)], [box(0, 0)]) == 0.0  # two empty masks


def test_masks_of_two_pictures_are_not_compared():
    with pytest.raises(ValueError, match="one picture"):
        iou_matrix([box(0, 4)], [Mask.from_array(np.ones((4, 4), bool))])


def test_a_phrase_is_found_with_its_mask_and_its_words():
    true = Grounded((box(0, 4), box(6, 10)), ("a dog", "a cat"))
    assert found_phrases(Grounded((box(6, 10), box(0, 4)), ("a cat", "a dog")), true, same) == 2
    assert found_phrases(Grounded((box(0, 1),), ("a dog",)), true, same) == 0  # IoU 0.25
    assert found_phrases(Grounded((), ()), true, same) == 0


def test_matching_stops_at_the_first_pair_that_falls_short():
    true = Grounded((box(0, 4), box(6, 10)), ("a dog", "a cat"))
    wrong_word_first = Grounded((box(0, 4), box(6, 9)), ("a horse", "a cat"))
    assert found_phrases(wrong_word_first, true, same) == 0
    wrong_word_last = Grounded((box(0, 3), box(6, 10)), ("a horse", "a cat"))
    assert found_phrases(wrong_word_last, true, same) == 1


def test_recall_is_over_all_true_phrases():
    true = {
        "a": Grounded((box(0, 4), box(6, 10)), ("a dog", "a cat")),
        "b": Grounded((), ()),
        "c": Grounded((box(0, 2),), ("x",)),
    }
    predicted = {"a": Grounded((box(0, 4),), ("a dog",)), "b": Grounded((), ()), "c": Grounded((box(0, 2),), ("x",))}
    assert phrase_recall(predicted, true, same) == (2 / 3, {"a": 0.5, "b": 1.0, "c": 1.0})


def test_phrases_and_masks_come_in_pairs():
    with pytest.raises(ValueError, match="phrase per mask"):
        Grounded((box(0, 1),), ())


def test_average_precision_of_easy_cases():
    true = {"a": [box(0, 4), box(6, 10)], "b": [box(2, 8)]}
    assert average_precision(true, true) == (pytest.approx(1.0), pytest.approx(1.0))
    assert average_precision({"a": [], "b": []}, true) == (0.0, 0.0)
    # IoU 0.75 of one of three objects: found at 0.5, 0.55, ..., 0.75, and recall never passes a third
    ap, ap50 = average_precision({"a": [box(0, 3)], "b": []}, true)
    assert ap50 == pytest.approx(34 / 101)
    assert ap == pytest.approx(0.6 * 34 / 101)


def test_average_precision_goes_by_order_where_scores_are_equal():
    true = {"a": [box(0, 4)]}
    right_first, _ = average_precision({"a": [box(0, 4), box(6, 8)]}, true)
    wrong_first, _ = average_precision({"a": [box(6, 8), box(0, 4)]}, true)
    assert (right_first, wrong_first) == (pytest.approx(1.0), pytest.approx(0.5))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random text encoder of twenty words in a local folder."""
    folder = tmp_path_factory.mktemp("encoder")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "the",
        "red",
        "blue",
        "dog",
        "cat",
        "car",
        "on",
        "grass",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_an_encoder_compares_mean_states(encoder):
    similarity = EncoderSimilarity(encoder)
    model, tokenizer = BertModel.from_pretrained(encoder).eval(), BertTokenizerFast.from_pretrained(encoder)

    @torch.inference_mode()
    def mean_state(phrase):
        return model(**tokenizer(phrase, return_tensors="pt")).last_hidden_state[0].mean(0)

    phrases = ["a red dog on the grass", "a cat", "the blue car", ""]
    similarity.prepare(phrases)
    for one in phrases:
        assert similarity(one, one) == pytest.approx(1.0, abs=1e-6)
        for other in phrases:
            expected = torch.cosine_similarity(mean_state(one), mean_state(other), dim=0)
            assert similarity(one, other) == pytest.approx(float(expected), abs=1e-5)
    assert similarity("a red dog", "the blue car") < 1


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        EncoderSimilarity(tmp_path)


def test_words_in_common():
    assert word_f1("A red dog.", "a red dog") == 1.0
    assert word_f1("a dog", "the cat") == 0.0
    assert word_f1("a red dog", "a dog") == pytest.approx(0.8)
    assert word_f1("dog dog dog", "dog") == pytest.approx(0.5)
    assert word_f1("", "dog") == 0.0
