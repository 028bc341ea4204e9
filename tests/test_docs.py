"""Every Python block of the README and of docs/ runs, in order, on a small checkpoint with real files beside it.

So does every example in a docstring that the API reference shows, on ``tiny`` and the files of examples/.
"""

from __future__ import annotations

import doctest
import functools
import pkgutil
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sa2va
from sa2va.model.generation import GenerationOptions
from sa2va.writers.video_encoder import VideoEncoder
from sa2va.zoo import TINY
from synthetic_checkpoint import picture

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: Names whose docstrings the API reference shows.
REFERENCE = [
    name
    for page in sorted((ROOT / "docs/reference").glob("*.md"))
    for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
]


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def loaded() -> dict[str, sa2va.Sa2VA]:
    """Models by the options that pages load them with."""
    return {}


@pytest.fixture
def desk(tmp_path, monkeypatch, checkpoint, loaded):
    """A working folder with the media the pages speak of, and a small checkpoint behind every hub id."""
    Image.fromarray(picture(320, 240)).save(tmp_path / "street.jpg")
    video = VideoEncoder(tmp_path / "clip.mp4", size=(48, 64), fps=8)
    for seed in range(8):
        video.write(picture(64, 48, seed))
    video.close()
    folder = checkpoint("iv25_qwen2")
    load = sa2va.Sa2VA.from_pretrained

    def opened(_: str, **options):
        key = repr(sorted(options.items()))
        if key not in loaded:
            loaded[key] = load(folder, **options)
        return loaded[key]

    monkeypatch.setattr(sa2va.Sa2VA, "from_pretrained", opened)
    # The weights are noise, so answers would run to the limit.
    short = functools.partial(GenerationOptions, max_new_tokens=24)
    monkeypatch.setattr("sa2va.inference.options.GenerationOptions", short)
    monkeypatch.setattr("sa2va.inference.scene.GenerationOptions", short)
    monkeypatch.setattr("sa2va.inference.predict_forward.GenerationOptions", lambda **_: short())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_blocks_run(page, desk, monkeypatch):
    if page.stem == "checkpoints":
        calls = []
        monkeypatch.setattr(sa2va.Sa2VAModel, "from_parts", classmethod(lambda cls, *parts: calls.append(parts)))
    namespace: dict = {}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), namespace)


def test_the_readme_leaves_what_it_says(desk):
    namespace: dict = {}
    exec(blocks(ROOT / "README.md")[0], namespace)
    assert (desk / "overlay.png").is_file()
    assert (desk / "out.mp4").stat().st_size > 1000
    assert sorted(path.name for path in (desk / "masks").glob("*.png")) == [f"{i:05d}.png" for i in range(8)]
    assert namespace["mask"].dtype == np.bool_
    assert namespace["mask"].shape == (240, 320)


def docstring_examples() -> list[doctest.DocTest]:
    """The examples of every name in the reference and its members, each once."""
    found: dict[tuple[str | None, int | None], doctest.DocTest] = {}
    for name in REFERENCE:
        for test in doctest.DocTestFinder().find(pkgutil.resolve_name(name), name):
            if test.examples:
                found.setdefault((test.filename, test.lineno), test)
    return list(found.values())


@pytest.mark.parametrize("example", docstring_examples(), ids=lambda example: example.name)
def test_docstring_examples_run(example, tmp_path, monkeypatch, tiny):
    for file in ("shapes.png", "shapes.mp4"):
        shutil.copy(ROOT / "examples" / file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sa2va.Sa2VA, "from_pretrained", lambda source, **_: {"tiny": tiny}[source])
    monkeypatch.setattr(sa2va.Sa2VAModel, "from_pretrained", lambda folder: {TINY: tiny.model}[folder])
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)


def test_public_classes_have_an_example():
    names = [f"sa2va.{name}" for name in sa2va.__all__]
    names += ["sa2va.writers.CocoWriter", "sa2va.writers.FrameWriter"]
    names += ["sa2va.train.config.TrainConfig", "sa2va.data.sample.Sample"]
    assert sorted(set(names) - {example.name for example in docstring_examples()}) == []


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
