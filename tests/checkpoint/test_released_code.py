"""Code written for the releases, unedited: what it calls, on folders that name remote code which must never run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from sa2va import Sa2VA, Sa2VAModel, Sa2VAProcessor
from sa2va.media.open import open_media
from sa2va.processing.tokenizer import InternLM2Tokenizer
from sa2va.results.history import Turn
from synthetic_checkpoint import GOLDEN, picture

PICTURE = Image.fromarray(picture(64, 48))
CLIP = [Image.fromarray(picture(64, 48, seed)) for seed in range(6)]
FAMILIES = ["iv25_qwen2", "q25", "q3"]
TOKENS = {"max_new_tokens": 6}
#: What every file of a release may name; each would leave a mark if it ran.
REMOTE = {
    "AutoConfig": "configuration_sa2va_chat.Sa2VAChatConfig",
    "AutoModel": "modeling_sa2va_chat.Sa2VAChatModel",
    "AutoModelForCausalLM": "modeling_sa2va_chat.Sa2VAChatModel",
    "AutoModelForImageTextToText": "modeling_sa2va_chat.Sa2VAChatModel",
    "AutoTokenizer": ["tokenization.Tokenizer", None],
    "AutoProcessor": "processing.Processor",
}


@pytest.fixture(scope="module")
def release(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A released folder whose files all name remote code, which is there too."""

    def write(case: str) -> Path:
        folder = tmp_path_factory.mktemp("release") / case
        shutil.copytree(checkpoint(case), folder)
        for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
            content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
            (folder / name).write_text(json.dumps(content | {"auto_map": REMOTE}))
        for name in ("configuration_sa2va_chat", "modeling_sa2va_chat", "tokenization", "processing"):
            (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nraise SystemExit('remote code')\n")
        return folder

    return write


@pytest.mark.parametrize(
    ("auto", "case"),
    [
        *((AutoModelForCausalLM, case) for case in FAMILIES),
        (AutoModel, "iv25_qwen2"),
        (AutoModelForImageTextToText, "q3"),
    ],
)
def test_the_calls_of_the_releases(release: Callable[[str], Path], load: Callable, auto: Any, case: str):
    path = str(release(case))
    model = auto.from_pretrained(
        path, torch_dtype=torch.float32, low_cpu_mem_usage=True, use_flash_attn=True, trust_remote_code=True
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True, use_fast=False, padding_side="left")
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    assert isinstance(model, Sa2VAModel) and isinstance(processor, Sa2VAProcessor)
    assert tokenizer.padding_side == "left" and tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    given = {"text": "<image>Please segment the dog.", "past_text": "", "mask_prompts": None, **TOKENS}
    result = model.predict_forward(image=PICTURE, tokenizer=tokenizer, processor=processor, **given)
    expected = Sa2VA(load(case), Sa2VAProcessor.from_pretrained(path, model.config)).predict_forward(PICTURE, **given)
    assert result["prediction"] == expected["prediction"]
    assert all(map(np.array_equal, result["prediction_masks"], expected["prediction_masks"]))
    without = model.predict_forward(image=PICTURE, **given)
    assert without["prediction"] == result["prediction"], "its folder has a processor too"
    assert not Path(path, "ran").exists()


def test_words_of_the_config_choose_the_dtype(checkpoint: Callable[[str], Path]):
    path = checkpoint("iv25_qwen2")
    assert AutoModel.from_pretrained(path, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(path, torch_dtype="auto").dtype == torch.float32


def test_tokenizers_with_code_of_their_own(tmp_path: Path):
    """InternLM2 folders name a Python class; the one of this package reads the same file."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sa2va_chat", "auto_map": REMOTE}))
    shutil.copy(GOLDEN / "mllm_internlm2_tok_dp1.model", tmp_path / "tokenizer.model")
    settings = {"tokenizer_class": "InternLM2Tokenizer", "auto_map": REMOTE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenization.py").write_text("raise SystemExit('remote code')\n")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    assert isinstance(tokenizer, InternLM2Tokenizer)


def test_exports_of_sasasa2va_are_known_to_the_auto_classes(release: Callable[[str], Path]):
    path = release("iv25_qwen2")
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(content | {"model_type": "sasasa2va_chat"}))
    assert AutoConfig.from_pretrained(path, trust_remote_code=True).model_type == "sa2va"
    assert not (path / "ran").exists()


def test_other_folders_go_their_usual_way(tmp_path: Path):
    shutil.copy(GOLDEN / "mllm_tiny_tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert type(AutoTokenizer.from_pretrained(tmp_path)).__module__.startswith("transformers.")
    with pytest.raises(OSError, match="nowhere"):
        AutoTokenizer.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "order",
    [
        "import sa2va, transformers",
        pytest.param("import transformers; transformers.AutoTokenizer; import sa2va", marks=pytest.mark.slow),
    ],
)
def test_either_may_be_imported_first(checkpoint: Callable[[str], Path], order: str):
    script = f"{order}\nfrom transformers import AutoTokenizer, AutoProcessor\n" + (
        f"print(type(AutoProcessor.from_pretrained({str(checkpoint('q3'))!r})).__name__)"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "Sa2VAProcessor"


# -- going on talking --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FAMILIES)
@pytest.mark.parametrize("media", [{"image": PICTURE}, {"video": CLIP}, {}])
def test_past_text_goes_on_as_history_does(open_sa2va: Callable[[str], Sa2VA], case: str, media: dict):
    sa2va = open_sa2va(case)
    first = sa2va.predict_forward(text="<image>\nWho?" if media else "Who?", **media, **TOKENS)
    given = {"past_text": first["past_text"], **media, **TOKENS}
    second = sa2va.predict_forward(text="And the dog?", **given)
    shown = CLIP[:5] if "video" in media else list(media.values())
    vision = sa2va.processor.vision(shown, video="video" in media) if shown else None
    ids = sa2va.processor.released_prompt_ids("And the dog?", vision=vision, past_text=first["past_text"])
    history = [Turn("Who?", first["prediction"])]
    expected = sa2va.processor.prompt_ids("And the dog?", vision=vision, history=history)
    decode = sa2va.processor.tokenizer.decode
    assert decode(ids) == decode(expected)
    assert second["past_text"].startswith(first["past_text"])
    third = sa2va.predict_forward(text="Thanks!", **{**given, "past_text": second["past_text"]})
    assert len(re.findall(r"<\|(user\|>|im_start\|>user)\n", third["past_text"])) == 3


# -- regions and media -------------------------------------------------------------------------------------------------


def test_a_region_between_the_samples_is_no_token(sa2va: Sa2VA):
    """As in the released code; ``describe`` gives it the cell that holds it."""
    masks = np.zeros((2, 48, 64), dtype=bool)
    masks[0, 1, 1] = True
    masks[1, :24, :32] = True
    text = "<image>What is region1?"
    result = sa2va.predict_forward(PICTURE, text=text, mask_prompts=[masks], **TOKENS)
    assert "region1<vp></vp>, region2<vp><IMG_CONTEXT>" in result["past_text"]
    nothing = sa2va.predict_forward(PICTURE, text=text, mask_prompts=[masks[:1]], **TOKENS)
    assert "There are 1 part regions in the picture: region1<vp></vp>.\n" in nothing["past_text"]
    for same in (masks, [torch.from_numpy(masks)], [masks.astype(np.float32)]):
        assert (
            sa2va.predict_forward(PICTURE, text=text, mask_prompts=same, **TOKENS)["past_text"] == result["past_text"]
        )
    assert len(sa2va.describe(PICTURE, masks, **TOKENS)) == 2


@pytest.mark.parametrize("masks", [[], [[]], 3, "mask.png", [np.zeros(64, bool)], [None]])
def test_masks_of_another_form_say_which_is_right(sa2va: Sa2VA, masks: Any):
    with pytest.raises(ValueError, match=r"mask_prompts is a list that holds one array \(N, H, W\)"):
        sa2va.predict_forward(PICTURE, text="<image>What?", mask_prompts=masks, **TOKENS)


def test_files_are_opened(sa2va: Sa2VA, tmp_path: Path):
    for index, frame in enumerate(CLIP):
        frame.save(tmp_path / f"{index}.png")
    tokens, text = {"max_new_tokens": 24}, "<image>\nPlease segment the dog."
    expected = sa2va.predict_forward(video=CLIP, text=text, **tokens)
    paths = [str(tmp_path / f"{index}.png") for index in range(len(CLIP))]
    assert len(expected["prediction_masks"]) > 0
    for video in (str(tmp_path), tmp_path, paths, open_media(tmp_path)):
        result = sa2va.predict_forward(video=video, text=text, **tokens)
        assert result["prediction"] == expected["prediction"]
        assert all(map(np.array_equal, result["prediction_masks"], expected["prediction_masks"]))
    both = sa2va.predict_forward(image=PICTURE, video=CLIP, text=text, **tokens)
    assert both["prediction_masks"][0].shape[0] == len(CLIP), "the video counts, as in the released code"
    one = sa2va.predict_forward(image=paths[0], text=text, **tokens)
    assert one["prediction"] == sa2va.predict_forward(image=CLIP[0], text=text, **tokens)["prediction"]


def test_media_that_are_not_there(sa2va: Sa2VA, caplog: pytest.LogCaptureFixture):
    with pytest.raises(ValueError, match=r"video= needs at least one frame.*pattern without matches"):
        sa2va.predict_forward(video=[], text="<image>What?")
    with pytest.raises(ValueError, match="a picture is a path"):
        sa2va.predict_forward(video=[3], text="<image>What?")
    with pytest.raises(ValueError, match="text= as a string, got NoneType"):
        sa2va.predict_forward(PICTURE)
    assert sa2va.predict_forward(image=None, text="<image>What?", **TOKENS)["prediction_masks"] == []
    assert "no picture came with it" in caplog.text
