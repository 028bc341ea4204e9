"""Grounded captions on GranDf: a description of a picture whose phrases carry masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sa2va.data.datasets.gcg import GcgTruth, gcg_truth_files, read_gcg_truth
from sa2va.eval.benchmark import BenchmarkSpec, Expected, Item, Prediction, Query, Scores
from sa2va.eval.benchmarks.file_benchmark import FileBenchmark, masks_of, picture, row
from sa2va.eval.benchmarks.published import GCG_VAL
from sa2va.eval.captions import caption_scores, plain_caption, word_f1
from sa2va.eval.grounded import EncoderSimilarity, Grounded, Similarity, average_precision, greedy_miou, phrase_recall
from sa2va.processing.requests import GCG_BENCHMARK_REQUEST

#: Where under the data root a text encoder is looked for.
ENCODER = "bert-base-uncased"
_PROTOCOL = (
    "Each picture is asked for a brief description with interleaved masks; every mask of the answer counts, with the "
    "phrase before it. As GLaMM defined them: AP and AP50 (COCO mask AP, one class, all scores 1, at most 100 masks a "
    "picture, in the order of the file); mIoU (masks matched best first, mean over matched pairs, then over pictures: "
    "masks without a partner do not count against it); recall (share of true phrases matched best first with IoU and "
    "similarity of the phrases of at least 0.5, where a picture's matching stops at its first pair that falls short); "
    "METEOR and CIDEr of the caption without its tags. Similarity is the cosine of mean last hidden states of "
    "bert-base-uncased; two empty masks have IoU 0."
)


class GroundedCaptions(FileBenchmark[GcgTruth]):
    """One caption per picture.

    Args:
        split: ``"val"`` or ``"test"``. entries: the pictures.
        encoder: folder of the text encoder that recall is defined with; None where there is none.
    """

    def __init__(self, split: str, entries: Sequence[GcgTruth], encoder: Path | None = None):
        super().__init__(f"gcg/{split}", _PROTOCOL, "caption", entries)
        self.encoder = encoder

    def item(self, entry: GcgTruth) -> Item:
        """One picture with its one request."""
        (name,) = self.ids(entry)
        return Item(name, picture(entry.image, entry.size), False, entry.size, (Query(name, GCG_BENCHMARK_REQUEST),))

    def ids(self, entry: GcgTruth) -> Sequence[str]:
        """``benchmark/picture``."""
        return [f"{self.name}/{entry.id}"]

    def expected(self, query_id: str) -> Expected:
        """The caption and its masks."""
        entry, _ = self.find(query_id)
        return Expected(entry.caption, tuple((mask,) for mask in entry.masks()))

    def count(self, predictions: Mapping[str, Prediction]) -> Scores:
        """AP50, mIoU, recall, METEOR, CIDEr."""
        true, predicted, references = {}, {}, {}
        for entry in self.entries:
            (name,) = self.ids(entry)
            true[name] = Grounded(entry.masks(), entry.labels)
            masks = tuple(one for (one,) in masks_of(predictions[name], entry.size, 1))
            predicted[name] = Grounded(masks, predictions[name].phrases)
            references[name] = [entry.caption]
        ap, ap50 = average_precision(_masks(predicted), _masks(true))
        mious = {name: greedy_miou(predicted[name].masks, one.masks) for name, one in true.items()}
        recall, notices = self._recall(predicted, true)
        captions = caption_scores({name: plain_caption(predictions[name].raw_text) for name in true}, references)
        values = {"ap50": ap50, "ap": ap, "miou": float(np.mean(list(mious.values()))), **recall, **captions.values}
        return Scores(values, {}, mious, "ap50", (*notices, *captions.notices))

    def _recall(
        self, predicted: Mapping[str, Grounded], true: Mapping[str, Grounded]
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        similarity: Similarity = word_f1
        if self.encoder is not None:
            similarity = EncoderSimilarity(self.encoder)
            similarity.prepare(phrase for one in (*predicted.values(), *true.values()) for phrase in one.phrases)
        recall, _ = phrase_recall(predicted, true, similarity)
        if self.encoder is not None:
            return {"recall": recall}, ()
        notice = (
            f"recall was not computed: it needs the text encoder bert-base-uncased in a local folder, {ENCODER}/ under "
            "the data root; recall_words is reported instead, which compares phrases by the words they share and is "
            "not comparable with it"
        )
        return {"recall_words": recall}, (notice,)


def _masks(grounded: Mapping[str, Grounded]) -> dict[str, Sequence]:
    return {name: one.masks for name, one in grounded.items()}


def open_gcg(split: str, root: Path, encoder: Path | None = None) -> GroundedCaptions:
    """The benchmark of a split.

    Args:
        root: the folder that holds ``glamm_data``.
        encoder: folder of a text encoder; None takes ``root/bert-base-uncased`` where that exists.
    """
    beside = root / ENCODER
    if encoder is None and (beside / "config.json").is_file():
        encoder = beside
    return GroundedCaptions(split, read_gcg_truth(root, split), encoder)


def _files(split: str, root: Path) -> Mapping[Path, str]:
    return gcg_truth_files(root, split)


ROWS: tuple[BenchmarkSpec, ...] = (
    row("gcg/val", "GCG on GranDf val", partial(open_gcg, "val"), partial(_files, "val"), GCG_VAL),
    row("gcg/test", "GCG on GranDf test", partial(open_gcg, "test"), partial(_files, "test")),
)
