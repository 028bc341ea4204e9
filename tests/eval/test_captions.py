"""Caption metrics: what Java gives, what is said where it is missing, and how answers become captions."""

from __future__ import annotations

import pytest

from sa2va.eval.captions import caption_scores, plain_caption, region_caption, why_no_java_metrics

CAPTIONS = {"a": "a man rides a red bike", "b": "", "c": "two dogs\nplay in the snow", "d": "a brown bear"}
REFERENCES = {
    "a": ["a man riding a red bicycle"],
    "b": ["a cat on a sofa"],
    "c": ["two dogs are playing in the snow", "dogs"],
    "d": ["a brown bear"],
}


def test_without_java_a_notice_says_what_is_missing_and_what_is_reported(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name: None)
    scores = caption_scores(CAPTIONS, REFERENCES)
    assert set(scores.values) == {"word_f1"}
    (notice,) = scores.notices
    assert "METEOR and CIDEr were not computed" in notice and "Java" in notice and "word F1" in notice
    assert scores.samples["d"] == 1.0 and scores.samples["b"] == 0.0


def test_without_the_package_a_notice_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'sa2va[eval]'" in caption_scores(CAPTIONS, REFERENCES).notices[0]


def test_a_java_that_fails_is_a_notice_too(monkeypatch):
    monkeypatch.setattr("sa2va.eval.captions.why_no_java_metrics", lambda: "")

    def fail(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr("sa2va.eval.captions._coco_caption_scores", fail)
    scores = caption_scores(CAPTIONS, REFERENCES)
    assert "PermissionError: read-only" in scores.notices[0]
    assert set(scores.values) == {"word_f1"}


def test_a_broken_java_is_a_notice_too(monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap")
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    scores = caption_scores(CAPTIONS, REFERENCES)
    assert "the tokenizer gave" in scores.notices[0]
    assert set(scores.values) == {"word_f1"}


@pytest.mark.slow
@pytest.mark.skipif(bool(why_no_java_metrics()), reason="needs pycocoevalcap and Java")
def test_meteor_and_cider_are_those_of_pycocoevalcap():
    scores = caption_scores(CAPTIONS, REFERENCES)
    assert scores.notices == ()
    assert set(scores.values) == {"meteor", "cider", "word_f1"}
    assert scores.samples["d"] == 1.0  # METEOR of the very words
    assert scores.samples["b"] == 0.0
    assert 0.5 < scores.samples["a"] < 1
    from pycocoevalcap.cider.cider import Cider

    # The tokens of these captions, written out by hand.
    given = {"a": [CAPTIONS["a"]], "b": [""], "c": ["two dogs play in the snow"], "d": [CAPTIONS["d"]]}
    assert scores.values["cider"] == pytest.approx(float(Cider().compute_score(REFERENCES, given)[0]))


@pytest.mark.parametrize("references", [{}, {"a": ["x"]}, {**REFERENCES, "a": []}])
def test_every_caption_needs_a_reference(references):
    with pytest.raises(ValueError, match="at least one reference"):
        caption_scores(CAPTIONS, references)


@pytest.mark.parametrize(
    ("answer", "description"),
    [
        ("region1 is a man in red", "a man in red"),
        ("Region1: this is island style", "this is island style"),
        ("The region marked by region1 is a dog.", "a dog."),
        ("In the image, region1 shows a cat", "a cat"),
        ("It is a dog in the image.", "a dog."),
        ("It's a small bird", "a small bird"),
        ("Sure, region1 in the picture is a bench", "a bench"),
        ("<p> A bus </p> [SEG]<|im_end|>", "A bus"),
        ("this is his list", "this is his list"),
        ("the man it is about", "the man it is about"),
        ("region10 is a man", "region10 is a man"),
        ("region1", "region1"),
        ("it is.", "it is."),
    ],
)
def test_only_the_template_around_a_description_goes(answer, description):
    assert region_caption(answer) == description


def test_a_grounded_caption_loses_its_tags():
    raw = "<s>\n<p> A man </p> [SEG] walks  <p> his dog </p> [SEG].<|im_end|>"
    assert plain_caption(raw) == "A man walks his dog ."
