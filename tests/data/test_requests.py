"""MaskRequest wordings: drawn as ever from ours, replaced by a file, and checked before anything is trained."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sa2va
from miniatures import images, videos
from sa2va.data.sample import Sample
from sa2va.processing import requests
from sa2va.processing.requests import SEG_ANSWERS, TRAINING_REQUESTS, TrainingRequests
from sa2va.results.history import Turn
from sa2va.train.config import SOURCES, SourceOptions, TrainConfig
from sa2va.train.presets import preset
from sa2va.train.run import prepare

#: By source that words requests, what writes its miniature.
WRITERS: dict[str, Callable[[Path], object]] = {
    "grefcoco": lambda root: images.write_refer(root, "grefcoco"),
    "reasonseg": images.write_reasonseg,
    "gcg-grandf": lambda root: images.write_gcg(root, "grandf"),
    "osprey-description": lambda root: images.write_osprey(root, "description"),
    "coco": images.write_own_coco,
    "mevis": videos.write_mevis,
    "ref-sav": videos.write_ref_sav,
}
#: SHA-256 of the turns of 40 views of each, taken before the sentences moved into one file.
DRAWN = {
    "grefcoco": "02c19e255bc6451c062e8df0ddff4940f7d45ad71e785285b259ea6b8ccdeb38",
    "reasonseg": "a3d42f38edba0412636f06be3302f2a1c6746d68230f0751f46a7f1598b59cdd",
    "gcg-grandf": "f7eedb45dfb5820298da1a652565b8bb8dd870b047a575958d61b0e36fc7ad34",
    "osprey-description": "94da2c7b3dd686616a2832f827c72fbb928ff5aa94422f8db2f2b0eb210347f2",
    "coco": "c79140b7608b4c737329768100e0acaa202e5367070cce483507263f089621bc",
    "mevis": "2eaba1842327abd584712e2e6c8f42f5fb5d8760fa9b82f67d1b5976f1564644",
    "ref-sav": "5e98c4d1d60133385f46e042f0667536a4efd498a38a46eccdc5f1c0e5dee6a4",
}
#: Other templates of every task.
OTHERS: dict[str, list[str]] = {
    "referring": ["Bitte markiere: {phrase}", "Wo ist {{hier}}: {phrase}"],
    "video_referring": ["Bitte verfolge: {phrase}"],
    "video_description": ["Bitte folge: {phrase}", "Bitte bleib an: {phrase}"],
    "question": ["Frage: {phrase}"],
    "reasoning": ["Denk nach: {phrase}"],
    "gcg": ["Beschreibe alles mit Masken."],
    "caption": ["Beschreibe das Bild."],
    "region": ["Beschreibe bitte {region}."],
    "no_target": ["Das gibt es hier nicht."],
}
#: How sentences made of them begin.
_BEGINNINGS = tuple(
    re.split(r"\{(?:phrase|region)\}", template)[0].format() for pool in OTHERS.values() for template in pool
)


def turns_of(source: SourceOptions) -> list[Turn]:
    opened = source.open().source
    return [turn for index in range(len(opened)) for turn in opened[index].turns]


def wordings(folder: Path, content: Any = OTHERS, name: str = "wordings.yaml") -> str:
    path = folder / name
    path.write_text(json.dumps(content, indent="\t" if name.endswith("json") else None), encoding="utf-8")
    return str(path)


def config(*sources: SourceOptions, folder: Path, words: tuple[str, ...] = ()) -> TrainConfig:
    return TrainConfig("nowhere", str(folder / "run"), sources).with_overrides(words)


@pytest.mark.parametrize("kind", DRAWN)
def test_the_same_seed_draws_the_same_sentences_as_ever(kind: str, tmp_path: Path):
    WRITERS[kind](tmp_path)
    turns = turns_of(SourceOptions(kind, {"root": str(tmp_path), "views": 40}))
    said = json.dumps([[turn.question, turn.answer] for turn in turns])
    assert hashlib.sha256(said.encode()).hexdigest() == DRAWN[kind]


@pytest.mark.parametrize("kind", DRAWN)
def test_a_file_replaces_the_wordings_of_a_source(kind: str, tmp_path: Path):
    WRITERS[kind](tmp_path / "data")
    source = SourceOptions(kind, {"root": str(tmp_path / "data"), "views": 6})
    (worded,) = config(source, folder=tmp_path, words=(f"data.requests={wordings(tmp_path)}",)).data
    ours, theirs = turns_of(source), turns_of(worded)
    assert len(ours) == len(theirs) and all(turn.question.startswith(_BEGINNINGS) for turn in theirs)
    assert not any(turn.question.startswith(_BEGINNINGS) for turn in ours)
    for turn in theirs:
        assert turn.answer not in TRAINING_REQUESTS.no_target  # replaced as well
    if kind in ("mevis", "ref-sav"):
        assert {turn.answer for turn in theirs} <= set(SEG_ANSWERS)


def test_tasks_that_the_file_leaves_out_keep_ours(tmp_path: Path):
    path = wordings(tmp_path, {"caption": OTHERS["caption"]}, "wordings.json")
    read = TrainingRequests.from_file(path)
    assert read.caption == tuple(OTHERS["caption"]) and read.referring == TRAINING_REQUESTS.referring
    assert TrainingRequests.from_file(wordings(tmp_path, vars(TRAINING_REQUESTS))) == TRAINING_REQUESTS


def test_all_sources_of_a_mixture_are_told_and_those_with_questions_of_their_own_keep_them(tmp_path: Path):
    images.write_refer(tmp_path / "data", "refcoco")
    images.write_llava(tmp_path / "data")
    sources = [SourceOptions(kind, {"root": str(tmp_path / "data")}) for kind in ("refcoco", "llava")]
    told = config(*sources, folder=tmp_path, words=(f"data.requests={wordings(tmp_path)}",)).data
    assert [source.requests for source in told] == [str(tmp_path / "wordings.yaml")] * 2
    assert all(turn.question.startswith(_BEGINNINGS) for turn in turns_of(told[0]))
    assert turns_of(told[1]) == turns_of(sources[1])
    one = config(*sources, folder=tmp_path, words=(f"data.0.requests={wordings(tmp_path)}",)).data
    assert one[0] == told[0] and one[1].requests is None


def test_every_source_of_phrases_takes_wordings():
    without = {kind for kind in SOURCES if not SourceOptions(kind).words_requests}
    assert without == {"llava", "video-chat", "chat", "synthetic"}


def test_a_preset_takes_the_file_as_a_word(tmp_path: Path):
    path = wordings(tmp_path)
    (source,) = preset("finetune", ["model=ByteDance/Sa2VA-4B", "data=D", f"data.requests={path}"]).data
    assert source == SourceOptions("annotations", {"root": "D", "views": 100}, requests=path)


class Worded:
    """A source of one's own."""

    def __init__(self, requests: TrainingRequests = TRAINING_REQUESTS):
        self.question = requests.caption[0]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return Sample(str(index), (), (Turn(self.question, "A box."),))


class Derived(Worded):
    def __init__(self, **options: Any):
        super().__init__(**options)


def make_worded(requests: TrainingRequests) -> Worded:
    return Worded(requests)


@pytest.mark.parametrize("name", ["Worded", "Derived", "make_worded"])
def test_a_source_of_ones_own_gets_them_by_the_name_of_its_parameter(name: str, tmp_path: Path):
    source = SourceOptions(f"{__name__}:{name}", requests=wordings(tmp_path))
    assert [turn.question for turn in turns_of(source)] == OTHERS["caption"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"referring": ["Find it."]}, r"task 'referring', template 'Find it\.' lacks the placeholder \{phrase\}"),
        (
            {"region": ["Say {phrase}."]},
            r"'region', template 'Say \{phrase\}\.' has .* \{phrase\}; .* takes .*\{region",
        ),
        (
            {"caption": ["Say {phrase}."]},
            r"'caption', .*has the placeholder \{phrase\}; this task takes no placeholder",
        ),
        ({"question": ["{}"]}, r"'question', .*has the placeholder \{\};.* \{phrase\}"),
        ({"question": ["{phrase!r:>9}"]}, r"has the placeholder \{phrase!r:>9\}"),
        ({"question": ["{phrase.real}"]}, r"has the placeholder \{phrase\.real\}"),
        ({"gcg": ["What {is this?"]}, r"'gcg', .* is no template: .*write \{\{ and \}\}"),
        ({"referring": ["Where is {phrase}? [SEG]"]}, r"'referring', .* holds \[SEG\], a token of the model's own"),
        ({"referring": ["<image>{phrase}"]}, "holds <image>"),
        ({"no_target": [" "]}, "'no_target', template ' ' says nothing"),
        ({"caption": []}, "task 'caption' needs a list of at least one template"),
        ({"caption": "Say it."}, r"task 'caption' needs a list .*got 'Say it\.'"),
        ({"caption": [3]}, "expected a template of task 'caption' as a string, got int"),
        ({"captoin": ["Say it."]}, "unknown task 'captoin'; did you mean 'caption'"),
        ({"x": ["Say it."]}, "unknown task 'x'; expected one of .*'video_referring'"),
        (["Say it."], "must hold settings as 'name: value', got list"),
    ],
)
@pytest.mark.parametrize("name", ["wordings.yaml", "wordings.json"])
def test_what_is_wrong_with_a_file_is_said_before_a_model_is_loaded(
    content: Any, message: str, name: str, tmp_path: Path
):
    images.write_refer(tmp_path / "data", "refcoco")
    source = SourceOptions("refcoco", {"root": str(tmp_path / "data")}, requests=wordings(tmp_path, content, name))
    with pytest.raises(ValueError, match=rf"(?s)^\S*{name}\b.*{message}"):
        prepare(config(source, folder=tmp_path))


def test_a_file_that_is_missing_or_of_no_use_is_said(tmp_path: Path):
    with pytest.raises(ValueError, match=r"gone\.yaml do not exist; expected"):
        config(SourceOptions("llava", requests="gone.yaml"), folder=tmp_path).check()
    source = SourceOptions("llava", {"root": str(tmp_path)}, requests=wordings(tmp_path))
    with pytest.raises(ValueError, match="llava has none: its questions stand in it; leave it out"):
        config(source, folder=tmp_path).check()


def test_templates_are_checked_in_python_too():
    with pytest.raises(ValueError, match=r"task 'referring', template 'It\.' lacks the placeholder \{phrase\}"):
        TrainingRequests(referring=("It.",))


def test_request_strings_are_typed_in_one_file():
    constants = [value for name, value in vars(requests).items() if name.isupper() and isinstance(value, str | tuple)]
    typed = {text for value in constants for text in ([value] if isinstance(value, str) else value) if " " in text}
    assert len(typed) > 15 and requests.GCG_REQUEST in typed
    typed |= {template for pool in vars(TRAINING_REQUESTS).values() for template in pool} | {"[SEG]", "<image>"}
    package = Path(sa2va.__file__).parent
    homes = {"[SEG]": "model/families.py"}
    for path in package.rglob("*.py"):
        own = path.relative_to(package).as_posix()
        texts = {node.value for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Constant)}
        found = {text for text in typed & texts if own != homes.get(text, "processing/requests.py")}
        assert not found, f"{own} types {found}; take them from processing/requests.py"
