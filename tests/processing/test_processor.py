"""Prompts, regions, clean answers and round trips of the processor."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import PreTrainedTokenizerFast

from sa2va.model.configuration import Sa2VAConfig
from sa2va.model.families import IGNORED_LABEL
from sa2va.processing.conversation import TEMPLATES, template_of
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.processing.regions import region_cells, region_prompt
from sa2va.processing.tokenizer import InternLM2Tokenizer, load_tokenizer
from sa2va.results.history import Turn

GOLDEN = Path(__file__).parents[1] / "golden"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ item.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IMAGE = Image.new("RGB", (150, 97), (200, 30, 60))


def tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    path = str(GOLDEN / "mllm_tiny_tokenizer.json")
    return PreTrainedTokenizerFast(
        tokenizer_file=path, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=chat_template
    )


def internvl_config(template: str | None = "qwen_chat") -> Sa2VAConfig:
    vision = {"image_size": 56, "patch_size": 14}
    vlm = {"model_type": "internvl", "vision_config": vision, "downsample_ratio": 0.5}
    return Sa2VAConfig(vlm_config=vlm, template=template)


def internvl(template: str = "qwen_chat") -> Sa2VAProcessor:
    return Sa2VAProcessor(tokenizer(), internvl_config(template))


def qwen(model_type: str = "qwen3_vl") -> Sa2VAProcessor:
    return Sa2VAProcessor(tokenizer(CHATML), Sa2VAConfig(vlm_config={"model_type": model_type}))


def internlm2(folder: Path) -> Sa2VAProcessor:
    recorded = json.loads((GOLDEN / "mllm_internlm2_tok_dp1.json").read_text())["added"]
    (folder / "tokenizer.model").write_bytes((GOLDEN / "mllm_internlm2_tok_dp1.model").read_bytes())
    added = {i: {"content": token, "special": True, "normalized": False} for i, token in recorded.items()}
    special = [token for i, token in recorded.items() if int(i) > 2]
    config = {"tokenizer_class": "InternLM2Tokenizer", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"additional_special_tokens": special}))
    return Sa2VAProcessor.from_pretrained(folder, internvl_config("internlm2_chat"))


def text_of(processor: Sa2VAProcessor, ids: list[int]) -> str:
    """The prompt with runs of image tokens shown as a count."""
    text = str(processor.tokenizer.decode(ids, skip_special_tokens=False))
    token = processor.family.image_token
    for count in range(ids.count(processor.image_token_id), 0, -1):
        text = text.replace(token * count, f"{{{count}}}")
    return text


# -- vision -----------------------------------------------------------------------------------------------------------


def test_pictures_are_tiled_and_frames_are_not():
    processor = internvl()
    picture, clip = processor.vision([IMAGE]), processor.vision([IMAGE] * 3, video=True)
    assert (picture.pixel_values.shape, picture.tokens_per_image) == ((7, 56, 56, 3), (28,))
    assert (clip.pixel_values.shape, clip.tokens_per_image) == ((3, 56, 56, 3), (4, 4, 4))
    assert picture.pixel_values.dtype == clip.pixel_values.dtype == torch.uint8
    assert (picture.image_grid_thw, picture.video, clip.video) == (None, False, True)


def test_qwen_patches_match_their_grid():
    inputs = qwen().vision([IMAGE, IMAGE.resize((60, 200))], video=True)
    assert inputs.image_grid_thw is not None
    assert inputs.image_grid_thw.dtype == torch.int64
    assert inputs.image_grid_thw.prod(1).sum() == len(inputs.pixel_values)
    assert inputs.tokens_per_image == tuple((inputs.image_grid_thw.prod(1) // 4).tolist())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "got none"),
        ([IMAGE.convert("RGBA")], "RGBA"),
        ([np.zeros((4, 4, 3), np.uint8)], "ndarray"),
        ([IMAGE, IMAGE], "video=True"),
    ],
)
def test_vision_refuses(images: list, message: str):
    with pytest.raises(ValueError, match=message):
        internvl().vision(images)


def test_qwen_refuses_a_splinter():
    with pytest.raises(ValueError, match="2000 x 2 pixels"):
        qwen().vision([Image.new("RGB", (2000, 2))])


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_internvl_prompt_puts_the_picture_on_its_own_line():
    processor = internvl()
    vision, clip = processor.vision([IMAGE]), processor.vision([IMAGE] * 2, video=True)
    start, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    text = text_of(processor, processor.prompt_ids("Where?", vision=vision))
    assert text == f"{start}<img>{{28}}</img>\nWhere?{end}"
    text = text_of(processor, processor.prompt_ids("Where?", vision=clip))
    assert text == f"{start}<img>{{4}}</img>\n<img>{{4}}</img>\nWhere?{end}"
    assert text_of(processor, processor.prompt_ids("Where?", vision=None)) == f"{start}Where?{end}"


def test_qwen_prompt_puts_the_picture_first():
    processor = qwen()
    vision = processor.vision([IMAGE])
    (count,) = vision.tokens_per_image
    text = text_of(processor, processor.prompt_ids("Where?", vision=vision))
    block = f"<|vision_start|>{{{count}}}<|vision_end|>"
    assert text == f"<|im_start|>user\n{block}\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    assert processor.prompt_ids("<image>\nWhere?", vision=vision) == processor.prompt_ids("Where?", vision=vision)


def test_image_mark_is_the_place_of_the_picture():
    processor = internvl()
    vision = processor.vision([IMAGE])
    assert processor.prompt_ids("<image>\nWhere?", vision=vision) == processor.prompt_ids("Where?", vision=vision)
    assert "In <img>{28}</img>, where?" in text_of(processor, processor.prompt_ids("In <image>, where?", vision=vision))


def test_region_text_follows_the_picture():
    processor = internvl()
    vision = processor.vision([IMAGE])
    regions = [np.array([[True, False], [True, True]]), np.array([[False, True], [False, False]])]
    text = text_of(processor, processor.prompt_ids("What is region1?", vision=vision, regions=regions))
    assert "</img>\nThere are 2 part regions in the picture: region1<vp>{3}</vp>, region2<vp>{1}</vp>.\nWhat" in text
    marked = processor.prompt_ids("<image>What is region1?", vision=vision, regions=regions)
    assert marked == processor.prompt_ids("What is region1?", vision=vision, regions=regions)


CONVERSATION = (Turn("Where is the dog?", "Sure, [SEG].<|im_end|>"), Turn("And the cat?", "\nNot here."))


@pytest.mark.parametrize("name", [*TEMPLATES, "qwen2_5_vl", "qwen3_vl", "internlm2"])
def test_a_conversation_begins_with_the_prompts_of_its_turns(name: str, tmp_path: Path):
    makers = {
        "qwen2_5_vl": lambda: qwen(name),
        "qwen3_vl": lambda: qwen(name),
        "internlm2": lambda: internlm2(tmp_path),
    }
    processor = makers.get(name, lambda: internvl(name))()
    vision = processor.vision([IMAGE.resize((60, 60))])
    prompts = [
        processor.prompt_ids(question, vision=vision, history=CONVERSATION[:k])
        for k, question in enumerate(["Where is the dog?", "And the cat?", "Thanks!"])
    ]
    for shorter, longer in pairwise(prompts):
        assert longer[: len(shorter)] == shorter
    ids, labels, _ = processor.encode_turns(CONVERSATION, vision)
    assert ids == prompts[2][: len(ids)]
    assert ids.count(processor.image_token_id) == sum(vision.tokens_per_image)
    bos = processor.tokenizer.bos_token_id
    assert [i for i, token in enumerate(ids) if token == bos] == ([0] if bos is not None else [])
    learnt = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED_LABEL]
    assert [label for label in labels if label != IGNORED_LABEL] == learnt
    suffix = processor.template.suffix if processor.template else "<|im_end|>"
    encode = processor.tokenizer.encode
    answers = [f"Sure, [SEG].{suffix}", f"\nNot here.{suffix}"]
    assert learnt == [i for answer in answers for i in encode(answer, add_special_tokens=False)]


def test_answers_may_come_with_or_without_their_end():
    processor = internvl("phi3_chat")
    prompts = {
        tuple(processor.prompt_ids("And?", vision=None, history=[Turn("Who?", answer)]))
        for answer in ("Me.", "Me.<|end|>", "Me.<|im_end|>", "Me.<|end|><|im_end|>")
    }
    assert len(prompts) == 1
    assert "Me.<|end|>\n<|user|>\nAnd?" in text_of(processor, list(prompts.pop()))


def test_braces_in_a_question_stay():
    processor = internvl()
    assert "{input} {0} {}" in text_of(processor, processor.prompt_ids("{input} {0} {}", vision=None))


def test_released_prompt_continues_a_past_text():
    processor = internvl()
    vision = processor.vision([IMAGE])
    past = str(processor.tokenizer.decode(processor.prompt_ids("<image>Who?", vision=vision))) + "Me.<|im_end|>\n"
    ids = processor.released_prompt_ids("And?", vision=vision, past_text=past)
    assert ids == processor.prompt_ids("And?", vision=vision, history=[Turn("<image>Who?", "Me.")])
    with pytest.raises(ValueError, match="past_text"):
        processor.released_prompt_ids("And?", vision=vision, past_text=past, regions=[np.ones((2, 2), dtype=bool)])
    with pytest.raises(ValueError, match="28"):
        processor.released_prompt_ids("And?", vision=None, past_text=past)


def test_qwen_past_text_is_part_of_the_message_and_ignored_beside_pictures():
    processor = qwen()
    vision = processor.vision([IMAGE])
    assert "user\nHi. Who?<|im_end|>" in text_of(
        processor, processor.released_prompt_ids("Who?", vision=None, past_text="Hi. ")
    )
    plain = processor.released_prompt_ids("Who?", vision=vision)
    assert processor.released_prompt_ids("Who?", vision=vision, past_text="Hi. ") == plain


@pytest.mark.parametrize(
    ("question", "picture", "history", "message"),
    [
        ("<image>a<image>b", True, (), "at most one <image>"),
        ("<image>a", False, (), "no picture"),
        ("<image>a", True, (Turn("x", "y"),), "later question"),
        ("a<IMG_CONTEXT>", True, (), "29 <IMG_CONTEXT>"),
        ("a<IMG_CONTEXT>", False, (), "1 <IMG_CONTEXT>"),
    ],
)
def test_prompt_refuses(question: str, picture: bool, history: tuple[Turn, ...], message: str):
    processor = internvl()
    vision = processor.vision([IMAGE]) if picture else None
    with pytest.raises(ValueError, match=message):
        processor.prompt_ids(question, vision=vision, history=history)


def test_regions_refuse():
    processor, grid = internvl(), np.ones((2, 2), dtype=bool)
    picture, clip = processor.vision([IMAGE]), processor.vision([IMAGE], video=True)
    wrong = [(clip, grid), (None, grid), (picture, np.ones((3, 3), bool)), (picture, grid * 1), (picture, ~grid)]
    for vision, region in wrong:
        with pytest.raises(ValueError, match="region"):
            processor.prompt_ids("What?", vision=vision, regions=[region])
    for ask in (qwen().prompt_ids, qwen().released_prompt_ids):
        with pytest.raises(ValueError, match="cannot describe regions"):
            ask("What?", vision=None, regions=[grid])


def test_a_template_that_rewrites_the_past_is_refused():
    processor = qwen()
    processor.tokenizer.chat_template = "{{ messages | length }} turns" + CHATML
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        processor.prompt_ids("b", vision=None, history=[Turn("a", "c")])


def test_no_turns_is_refused():
    with pytest.raises(ValueError, match="at least one turn"):
        internvl().encode_turns([], None)


# -- regions ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([2, 12, 16]), st.integers(0, 2**32 - 1))
def test_region_cells_are_nearest_samples(height: int, width: int, cells: int, seed: int):
    """A mask that is the outer product of two random lines is sampled like torch samples it."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.random(height) < 0.5, rng.random(width) < 0.5
    rows[0] = columns[0] = True
    lines = [torch.from_numpy(line[None, None].astype(np.float32)) for line in (rows, columns)]
    expected = [torch.nn.functional.interpolate(line, cells, mode="nearest")[0, 0].numpy() > 0 for line in lines]
    assert np.array_equal(region_cells(np.outer(rows, columns), (height, width), cells), np.outer(*expected))


def test_a_box_is_the_mask_of_the_pixels_it_touches():
    mask = np.zeros((90, 120), dtype=bool)
    mask[10:41, 30:90] = True
    cells = region_cells(mask, (90, 120))
    assert np.array_equal(region_cells((30.0, 10.2, 89.5, 40.5), (90, 120)), cells)
    assert np.array_equal(region_cells(np.array([30, 10, 90, 41]), (90, 120)), cells)
    assert np.array_equal(region_cells(mask.astype(np.uint8) * 255, (90, 120)), cells)
    assert region_cells((-50, -50, 500, 500), (90, 120)).all()


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((14.5, 13.4, 16, 16), slice(13, 16), slice(14, 16)),
        ((-3, 10, 1, 15.5), slice(10, 16), 0),
        ((12.5, -9, 300, 0.5), 0, slice(12, 16)),
        ((7.5, 14, 8, 200), slice(14, 16), 7),
        ((0, 0, 2, 1), 0, slice(0, 2)),
    ],
)
def test_a_box_may_end_at_the_edge_of_the_picture_or_beyond(box, rows, columns):
    expected = np.zeros((16, 16), dtype=bool)
    expected[rows, columns] = True
    assert np.array_equal(region_cells(box, (16, 16)), expected)


def test_a_box_of_the_only_row_is_in_pixels():
    assert np.argwhere(region_cells((0, 0, 1, 1), (1, 120))).size


def test_a_region_between_the_samples_gets_the_cell_that_holds_it():
    mask = np.zeros((160, 320), dtype=bool)
    mask[23:28, 105:110] = True  # Samples are at multiples of 10 and 20.
    mask[31, 5] = True
    cells = region_cells(mask, (160, 320))
    assert np.argwhere(cells).tolist() == [[2, 5]]


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (np.zeros((90, 120), dtype=bool), "empty"),
        (np.ones((120, 90), dtype=bool), "90 x 120"),
        (np.ones((90, 120)), "float64"),
        (np.ones((1, 90, 120), dtype=bool), "shape"),
        ((30, 10, 30, 20), "x0 < x1"),
        ((30, 10, 20, 40), "x0 < x1"),
        ((0, 0, float("nan"), 40), "x0 < x1"),
        ((200, 10, 220, 40), "outside"),
        ((120, 10, 130, 40), "outside"),  # It begins where the picture ends.
        ((30, 90, 60, 99), "outside"),
        ((-9, 10, 0, 40), "outside"),
        ((30, -9, 60, 0), "outside"),
        ((0, 0, 1, 1), "shares"),
        ((0.2, 0.1, 0.5, 0.9), "shares"),
        ((1, 2, 3), "shape"),
    ],
)
def test_region_cells_refuse(region, message: str):
    with pytest.raises(ValueError, match=message):
        region_cells(region, (90, 120))


def test_region_prompt():
    one = "\nThere are 1 part regions in the picture: region1<vp>##</vp>.\n"
    assert region_prompt([2], "#") == one


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text", "phrases"),
    [
        ("Sure, [SEG].<|im_end|>", "Sure.", [None]),
        ("Sure,  [SEG] .", "Sure.", [None]),
        ("Sure, it is [SEG].", "Sure, it is.", [None]),
        ("[SEG]", "", [None]),
        ("The dog ([SEG]) and the cat ( [SEG] ) sit.", "The dog and the cat sit.", [None, None]),
        ("See [SEG] and more.", "See and more.", [None]),
        ("<p> The dog </p> [SEG] and <p> a cat </p> [SEG] sit.", "The dog and a cat sit.", ["The dog", "a cat"]),
        ("<p>  The dog  </p>   [SEG]  and  <p>  cat  </p>   [SEG] .", "The dog and cat.", ["The dog", "cat"]),
        ("I see <p>two dogs</p> [SEG], [SEG].", "I see two dogs.", ["two dogs", "two dogs"]),
        ("<p> dog </p> runs. [SEG]", "dog runs.", [None]),
        ("<p> dog </p> [SEG] [SEG] it [SEG]", "dog it", ["dog", "dog", None]),
        ("<p> </p> [SEG] x", "x", [None]),
        ("A <p>dog, </p> [SEG].", "A dog,.", ["dog,"]),
        ("The <p>dog [SEG]</p> x", "The dog x", [None]),
        ("A <p> big <|im_end|> dog</p> [SEG].", "A big dog.", ["big dog"]),
        ("A <p><|im_end|> dog</p> [SEG].", "A dog.", ["dog"]),
        ("The <p>red [SEG] car</p> [SEG] goes.", "The red car goes.", [None, "red car"]),
        (
            "<think>a</think>\n\n  code:\n    x = 1 , 2 !\n<|im_end|>",
            "<think>a</think>\n\n  code:\n    x = 1 , 2 !",
            [],
        ),
        ("Two lines [SEG]\nhere", "Two lines\nhere", [None]),
        ("<|im_start|>\nHi <img><IMG_CONTEXT></img> <vp></vp>you", "Hi you", []),
        ("plain text , as it was .", "plain text , as it was .", []),
    ],
)
def test_clean(raw: str, text: str, phrases: list[str | None]):
    clean, found = internvl().clean(raw)
    assert clean == text
    assert [phrase and phrase[0] for phrase in found] == phrases
    assert all(clean[slice(*phrase[1])] == phrase[0] for phrase in found if phrase)


def test_clean_takes_out_stop_words_that_are_plain_text():
    assert internvl("phi3_chat").clean("Yes, [SEG].<|end|>")[0] == "Yes."


FRAGMENTS = ["<p>", "</p>", "[SEG]", "<|im_end|>", " ", "  ", "\n", "dog", "A", ",", ".", "(", ")", ":", "é "]
PROCESSOR = internvl()


@given(st.lists(st.sampled_from(FRAGMENTS)).map("".join))
def test_clean_keeps_words_and_spans(raw: str):
    clean, found = PROCESSOR.clean(raw)
    assert len(found) == raw.count("[SEG]")
    assert all(token not in clean for token in ("<p>", "</p>", "[SEG]", "<|im_end|>"))
    assert all(clean[slice(*phrase[1])] == phrase[0] for phrase in found if phrase)
    bare = raw
    for token in ("<p>", "</p>", "[SEG]", "<|im_end|>"):
        bare = bare.replace(token, "")
    assert [c for c in clean if c.isalpha()] == [c for c in bare if c.isalpha()]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_clean_leaves_text_without_tokens_alone(raw: str):
    if not any(token in raw for token in ("<", "[SEG]")):
        assert PROCESSOR.clean(raw) == (raw.strip(), [])


# -- files ------------------------------------------------------------------------------------------------------------


def test_saved_processors_load_without_a_config(tmp_path: Path):
    for name, processor in (("internvl", internvl("phi3_chat")), ("qwen2_5", qwen("qwen2_5_vl")), ("qwen3", qwen())):
        processor.save_pretrained(tmp_path / name)
        loaded = Sa2VAProcessor.from_pretrained(tmp_path / name)
        assert loaded.settings == processor.settings
        vision = processor.vision([IMAGE])
        assert torch.equal(loaded.vision([IMAGE]).pixel_values, vision.pixel_values)
        assert loaded.prompt_ids("Who?", vision=vision) == processor.prompt_ids("Who?", vision=vision)


def test_internlm2_processor_round_trip(tmp_path: Path):
    (tmp_path / "source").mkdir()
    processor = internlm2(tmp_path / "source")
    processor.save_pretrained(tmp_path / "saved")
    loaded = Sa2VAProcessor.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded.tokenizer, InternLM2Tokenizer)
    ids = processor.prompt_ids("Where is the dog?", vision=None, history=CONVERSATION)
    assert loaded.prompt_ids("Where is the dog?", vision=None, history=CONVERSATION) == ids
    assert (loaded.seg_token_id, loaded.eos_ids) == (609, (2,))


def test_fields_follow_from_the_config():
    processor = internvl("internlm2-chat")
    assert (processor.tile_side, processor.tokens_per_tile, processor.cells) == (56, 4, 2)
    assert (processor.grounding_side, processor.template) == (1024, TEMPLATES["internlm2_chat"])
    assert (processor.seg_token_id, processor.eos_ids, processor.stop_words) == (457, (442,), ("<|im_end|>",))
    assert (qwen().tile_side, qwen().stop_words, qwen().template) == (None, (), None)


def test_released_qwen_folder(tmp_path: Path):
    """The template of the processor's file wins over the tokenizer's; the normalisation is the folder's."""
    tokenizer("not this one").save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}))
    config = Sa2VAConfig(vlm_config={"model_type": "qwen2_5_vl"})
    processor = Sa2VAProcessor.from_pretrained(tmp_path, config)
    assert processor.prompt_ids("Who?", vision=None) == qwen().prompt_ids("Who?", vision=None)
    pixels = processor.vision([Image.new("RGB", (644, 644), (51, 51, 51))]).pixel_values
    torch.testing.assert_close(pixels, torch.full_like(pixels, 0.2))
    with pytest.raises(ValueError, match="pass the model's config"):
        Sa2VAProcessor.from_pretrained(tmp_path)


def test_code_of_a_checkpoint_never_runs(tmp_path: Path):
    internlm2(tmp_path)
    trap = tmp_path / "ran"
    (tmp_path / "tokenization_internlm2.py").write_text(f"open({str(trap)!r}, 'w')\nclass InternLM2Tokenizer: pass\n")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert isinstance(load_tokenizer(tmp_path), InternLM2Tokenizer)
    assert not trap.exists()


@pytest.mark.parametrize(("config", "message"), [({"tokenizer_class": "Evil"}, "'Evil'"), ({}, "no tokenizer")])
def test_unknown_and_missing_tokenizers(tmp_path: Path, config: dict, message: str):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_lacks_something_is_refused():
    file = json.loads((GOLDEN / "mllm_tiny_tokenizer.json").read_text())
    file["added_tokens"] = [token for token in file["added_tokens"] if token["content"] != "<vp>"]
    from tokenizers import Tokenizer

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(file)), eos_token="<|im_end|>")
    with pytest.raises(ValueError, match=r"\['<vp>'\].*add_sa2va_tokens"):
        Sa2VAProcessor(plain, internvl_config())
    with pytest.raises(ValueError, match="chat_template"):
        Sa2VAProcessor(tokenizer(), Sa2VAConfig(vlm_config={"model_type": "qwen3_vl"}))
    with pytest.raises(ValueError, match=r"config\.template"):
        Sa2VAProcessor(tokenizer(), internvl_config(None))
    with pytest.raises(ValueError, match="unknown chat template 'alpaca'"):
        template_of("alpaca")


def test_light_modules_stay_light():
    code = (
        "import sys, sa2va.processing.regions, sa2va.processing.conversation\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
