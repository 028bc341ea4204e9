"""The language model in eight or four bits: which layers are, what masks become of it, and what is refused."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn
from transformers import BitsAndBytesConfig, GPTQConfig
from typer.testing import CliRunner

from sa2va import Sa2VA, Sa2VAModel
from sa2va.cli.commands import app
from sa2va.runtime import require_extra

RED, BLUE, GREEN = (215, 35, 40), (40, 75, 215), (40, 160, 60)
#: Size, background, phrases, and for each what is drawn.
DRAWN = [
    ((128, 128), (190, 195, 200), {
        "the red circle": ("ellipse", (20, 24, 64, 68), RED),
        "the blue square": ("rectangle", (80, 70, 112, 102), BLUE),
    }),
    ((256, 192), (240, 240, 240), {
        "the blue circle": ("ellipse", (20, 20, 90, 90), BLUE),
        "the red square": ("rectangle", (140, 30, 220, 110), RED),
        "the green triangle": ("polygon", [(60, 180), (110, 110), (150, 180)], GREEN),
    }),
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Callable[[str | None], Sa2VA]:
    return cache(lambda quantization: Sa2VA.from_pretrained("tiny", device="cpu", quantization=quantization))


@pytest.fixture(scope="module")
def in_four_bits(checkpoint: Callable[[str], Path]) -> Callable[[str], Sa2VAModel]:
    return cache(lambda case: Sa2VAModel.from_pretrained(checkpoint(case), quantization="nf4"))


def draw(size: tuple[int, int], background: tuple[int, int, int], shapes: Any) -> Image.Image:
    picture = Image.new("RGB", size, background)
    pen = ImageDraw.Draw(picture)
    for kind, place, colour in shapes:
        getattr(pen, kind)(place, fill=colour)
    return picture


def areas(sa2va: Sa2VA, picture: Image.Image, phrases: list[str]) -> list[int]:
    return [
        sum(int(segment.mask.array.sum()) for segment in answer.segments) for answer in sa2va.segment(picture, phrases)
    ]


def quantised_layers(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if type(module).__module__.startswith("bitsandbytes")}


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_masks_keep_their_areas(tiny: Callable[[str | None], Sa2VA], quantization: str):
    for size, background, shapes in DRAWN:
        picture, phrases = draw(size, background, shapes.values()), list(shapes)
        expected = areas(tiny(None), picture, phrases)
        assert min(expected) > 500
        assert areas(tiny(quantization), picture, phrases) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "case",
    [
        "iv25_internlm2",
        "q3",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("iv25_qwen2", "iv35_qwen3", "q25")),
    ],
)
def test_only_the_linear_layers_of_the_language_model_are_quantised(
    load: Callable[[str], Sa2VAModel], in_four_bits: Callable[[str], Sa2VAModel], case: str
):
    plain, ready = load(case), in_four_bits(case)
    expected = {
        name
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("vlm.model.language_model.layers.")
    }
    assert quantised_layers(ready) == expected != set()
    before, after = plain.state_dict(), ready.state_dict()
    for name in before:
        if name.removesuffix(".weight") not in expected:
            assert torch.equal(after[name], before[name]), name


@pytest.mark.parametrize(
    "given",
    [
        BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["language_model.layers.0.mlp"]),
        {
            "quant_method": "bitsandbytes",
            "load_in_8bit": True,
            "llm_int8_skip_modules": ["language_model.layers.0.mlp"],
        },
    ],
)
def test_settings_of_transformers_get_the_list_of_what_stays(
    checkpoint: Callable[[str], Path], in_four_bits: Callable[[str], Sa2VAModel], given: Any
):
    ready = quantised_layers(in_four_bits("iv25_qwen2"))
    own = Sa2VA.from_pretrained(checkpoint("iv25_qwen2"), device="cpu", quantization_config=given)
    left = {name for name in ready if "language_model.layers.0.mlp" not in name}
    # A user's own entry is a beginning or an ending of names, as in transformers; ours stay beside it.
    assert quantised_layers(own.model) in (ready, left)
    assert not any(name.startswith(("sam2", "projection")) for name in quantised_layers(own.model))
    if isinstance(given, BitsAndBytesConfig):
        assert given.llm_int8_skip_modules == ["language_model.layers.0.mlp"]


def test_training_and_inference_quantise_the_same_layers(
    checkpoint: Callable[[str], Path], in_four_bits: Callable[[str], Sa2VAModel], tmp_path: Path
):
    from sa2va.train.config import SourceOptions, TrainConfig
    from sa2va.train.initial_model import load_start

    data = (SourceOptions("rectangles:Rectangles", {"count": 8}),)
    config = TrainConfig(model=str(checkpoint("q3")), output=str(tmp_path), data=data, quantization="nf4")
    trained, _ = load_start(config)
    assert quantised_layers(trained) == quantised_layers(in_four_bits("q3"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int4"}, r"one of \['int8', 'nf4'\], or None; got 'int4'"),
        ({"quantization": "int8", "device": "mps"}, "CUDA and CPU, and the device is mps"),
        ({"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device": "mps"}, "the device is mps"),
        ({"quantization": "nf4", "quantization_config": BitsAndBytesConfig(load_in_4bit=True)}, "not both"),
        ({"quantization_config": GPTQConfig(bits=4)}, 'GPTQConfig cannot leave SAM 2 as it is.*quantization="int8"'),
        ({"device": "cpu", "device_map": "auto"}, "not both"),
        ({"device_map": "abacus"}, "a device is cpu, cuda .* got 'abacus'"),
        ({"device_map": {"": 9}}, "device 9: torch .* sees only cpu"),
        ({"device": "cuda:9"}, "device cuda:9: torch .* sees only cpu"),
    ],
)
def test_what_cannot_be_is_said_with_the_cure(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in options.values())
    with pytest.raises(ValueError, match=message):
        Sa2VA.from_pretrained("tiny", **options)


def test_layers_of_odd_width_are_refused_in_four_bits(
    checkpoint: Callable[[str], Path], load: Callable[[str], Sa2VAModel]
):
    """bitsandbytes reads past the end of their rows, which ends the process or never ends."""
    config = deepcopy(load("iv25_qwen2").config)
    config.get_text_config().intermediate_size = 33
    odd = Sa2VAModel(config)
    folder = checkpoint("iv25_qwen2").parent / "odd"
    odd.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"even width.*33.*take int8"):
        Sa2VAModel.from_pretrained(folder, quantization="nf4")
    assert quantised_layers(Sa2VAModel.from_pretrained(folder, quantization="int8"))


@pytest.mark.parametrize(
    ("missing", "options", "extra"),
    [
        ("bitsandbytes", {"quantization": "int8"}, "quant"),
        ("bitsandbytes", {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)}, "quant"),
        ("accelerate", {"quantization": "nf4"}, "quant"),
        ("accelerate", {"device_map": "auto"}, "multi-gpu"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, missing: str, options: dict[str, Any], extra: str
):
    def import_module(name: str) -> Any:
        if name == missing:
            raise ImportError(name)
        return importlib.__import__(name)

    monkeypatch.setattr("sa2va.runtime.importlib.import_module", import_module)
    with pytest.raises(ImportError, match=rf"pip install 'sa2va\[{extra}\]'"):
        Sa2VA.from_pretrained("nobody/nothing", **options)
    assert require_extra("json", extra)


def test_a_quantised_model_is_no_checkpoint(
    tiny: Callable[[str | None], Sa2VA], checkpoint: Callable[[str], Path], tmp_path: Path
):
    with pytest.raises(ValueError, match="keep the checkpoint it was loaded from"):
        tiny("nf4").model.save_pretrained(tmp_path)
    for file in checkpoint("iv25_qwen2").iterdir():
        (tmp_path / file.name).symlink_to(file)
    content = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": {"load_in_4bit": True}}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="quantised already; load the checkpoint it was made from"):
        Sa2VAModel.from_pretrained(tmp_path)


def test_an_automatic_device_map_changes_no_mask(tiny: Callable[[str | None], Sa2VA]):
    size, background, shapes = DRAWN[0]
    picture = draw(size, background, shapes.values())
    spread = Sa2VA.from_pretrained("tiny", device_map="auto", dtype=torch.float32)
    assert areas(spread, picture, list(shapes)) == pytest.approx(areas(tiny(None), picture, list(shapes)), rel=0.01)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    size, background, shapes = DRAWN[0]
    draw(size, background, shapes.values()).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


MODEL_COMMANDS = {
    "segment": ["segment", "{picture}", "the red circle", "-m", "{model}"],
    "chat": ["chat", "{picture}", "What is this?", "-m", "{model}"],
    "caption": ["caption", "{picture}", "-m", "{model}"],
    "describe": ["describe", "{picture}", "--box", "20,20,60,60", "-m", "{model}"],
    "track": ["track", "{clip}", "the red circle", "--json", "-m", "{model}"],
    "eval": ["eval", "{model}", "synthetic/refer", "--dry-run"],
}


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_every_command_that_loads_a_model_quantises_and_spreads_it(
    monkeypatch: pytest.MonkeyPatch, picture: Path, command: str
):
    class Loaded(Exception):
        pass

    def from_pretrained(name: str, **options: Any) -> Sa2VA:
        assert (options["quantization"], options["device_map"], options["device"]) == ("nf4", "balanced", None)
        raise Loaded

    monkeypatch.setattr(Sa2VA, "from_pretrained", from_pretrained)
    places = {"picture": str(picture), "clip": str(picture.parent), "model": "tiny"}
    words = [word.format(**places) for word in MODEL_COMMANDS[command]]
    result = CliRunner().invoke(app, [*words, "--quantize", "nf4", "--device-map", "balanced"])
    assert "Loaded" in result.output, result.output
    both = CliRunner().invoke(app, [*words, "--device", "cpu", "--device-map", "auto"])
    assert both.exit_code == 2 and "give one" in both.output


def test_quantised_masks_on_the_command_line(picture: Path):
    result = CliRunner().invoke(
        app, ["segment", str(picture), "the red circle", "-m", "tiny", "--device", "cpu", "--quantize", "int8"]
    )
    assert result.exit_code == 0, result.output
    assert "on cpu, float32, int8" in result.output
