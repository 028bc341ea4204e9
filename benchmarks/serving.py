"""Many requests: an open picture against one opened anew, rows written together against one by one, drafts on and off.

    python benchmarks/serving.py                                  # a language model of 0.5 B on the CPU
    python benchmarks/serving.py --size 4b --device cuda          # the shapes of Sa2VA-4B

Weights are random where only time matters, since that does not depend on them; drafts are measured on `tiny`. Every
figure is a ratio against a baseline of the same run, with the passes that were counted and, per part, the floor that
the arithmetic (reading prompts) or the bytes of the weights (writing) would need at the speed of a plain matrix product
and a plain read of memory on this machine.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import InternVLConfig

from sa2va import Request, Sa2VA
from sa2va.model.configuration import Sa2VAConfig, sam2_config
from sa2va.model.families import ADDED_TOKENS, INTERNVL
from sa2va.modeling_sa2va import Sa2VAModel
from sa2va.processing.processor import Sa2VAProcessor
from sa2va.tiny.random_model import tiny_tokenizer

#: Language models: those of Sa2VA-1B (0.5 B) and Sa2VA-4B (3 B).
SIZES = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    | {"num_key_value_heads": 2},
    "4b": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
    | {"num_key_value_heads": 2},
    "toy": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 2},
}
EXAMPLE = Path(__file__).parents[1] / "examples" / "shapes.png"


def build(size: str, device: str, dtype: torch.dtype, tiles: int) -> Sa2VA:
    """A model whose pictures are ``tiles`` tiles and a thumbnail of 256 tokens each. Its encoders are small: they are
    not what is measured here."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    ids: Any = {token: tokenizer.convert_tokens_to_ids(token) for token in (INTERNVL.image_token, ADDED_TOKENS[0])}
    vision = {"image_size": 448, "patch_size": 14, "hidden_size": 192, "intermediate_size": 512}
    vision |= {"num_hidden_layers": 4, "num_attention_heads": 3}
    text = {"model_type": "qwen2", "vocab_size": 151_674, "max_position_embeddings": 32_768, **SIZES[size]}
    vlm = InternVLConfig(vision_config=vision, text_config=text, image_token_id=ids[INTERNVL.image_token])
    sam2 = sam2_config(
        image_size=256, embed_dim=32, num_heads=1, blocks=(1, 2, 4, 1), global_blocks=(4, 6), windows=(8, 4, 8, 4),
        width=128, memory_layers=2, memory_mlp=512,
    )  # fmt: skip
    config = Sa2VAConfig(
        vlm_config=vlm, sam2_config=sam2, seg_token_id=ids[ADDED_TOKENS[0]], template="qwen_chat", max_tiles=tiles
    )
    with torch.device(device):
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = Sa2VAModel(config)
        finally:
            torch.set_default_dtype(previous)
    processor = Sa2VAProcessor(tokenizer, config)
    processor.eos_ids = set()  # every answer is as long as allowed
    return Sa2VA(model.to(device, dtype), processor)


class Meter:
    """Seconds, passes and rows of each part."""

    def __init__(self, sa2va: Sa2VA):
        self._sa2va = sa2va
        self.reset()

    def reset(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.passes: dict[str, int] = defaultdict(int)
        self.tokens: dict[str, int] = defaultdict(int)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        vlm, sam2 = self._sa2va.model.vlm.model, self._sa2va.model.sam2
        parts: list[tuple[Any, Callable[[Any], str]]] = [
            (vlm.vision_tower, lambda _: "vision tower"),
            (vlm.language_model, lambda given: "writing" if given["inputs_embeds"].shape[1] == 1 else "reading"),
            (sam2.vision_encoder.backbone, lambda _: "image encoder"),
            (sam2.mask_decoder, lambda _: "mask decoder"),
        ]
        hooks = []
        for module, name in parts:
            hooks += self._hooks(module, name)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hooks(self, module: Any, name: Callable[[Any], str]) -> list[Any]:
        started: list[float] = []

        def before(_module, _args, kwargs) -> None:
            synchronize(self._sa2va)
            started.append(time.perf_counter())

        def after(_module, _args, kwargs, _output) -> None:
            synchronize(self._sa2va)
            part = name(kwargs)
            self.seconds[part] += time.perf_counter() - started.pop()
            self.passes[part] += 1
            if "inputs_embeds" in kwargs:
                self.tokens[part] += kwargs["inputs_embeds"].shape[:2].numel()

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]


def synchronize(sa2va: Sa2VA) -> None:
    if sa2va.model.device.type == "cuda":
        torch.cuda.synchronize()


def timed(sa2va: Sa2VA, ask: Callable[[], object]) -> float:
    synchronize(sa2va)
    started = time.perf_counter()
    ask()
    synchronize(sa2va)
    return time.perf_counter() - started


def picture(seed: int, side: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def machine(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """(FLOP/s of a matrix product, bytes/s of a matrix read for one vector)."""
    side = 4096 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    wide = torch.randn(16384, 4096, device=device).to(dtype)
    vector = torch.randn(4096, 1, device=device).to(dtype)
    best = []
    for product, work in (((a, b), 2 * side**3), ((wide, vector), wide.nbytes)):
        times = []
        for _ in range(5):
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            product[0] @ product[1]
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        best.append(work / min(times))
    return best[0], best[1]


def open_picture(sa2va: Sa2VA, tiles: int, repeats: int) -> None:
    print(f"\nAn open picture (prompts of about {(tiles + 1) * 256} tokens), seconds to the first token")
    side = 448 * int(tiles**0.5 + 0.999)
    scenes = [sa2va.open(picture(seed, side)) for seed in range(repeats)]
    one = {"max_new_tokens": 1}
    fresh = [timed(sa2va, lambda scene=scene: scene.chat("What is the blue star?", **one)) for scene in scenes]
    again = [timed(sa2va, lambda scene=scene: scene.chat("Where is the red car?", **one)) for scene in scenes]
    print(f"  first question {min(fresh):.3f}; second {min(again):.3f}: {min(fresh) / min(again):.1f}x")
    history = sa2va.chat(None, "What is the blue star?", max_new_tokens=16).history
    with sa2va.open(scenes[0].media) as scene:
        for turn in range(4):
            history = scene.chat(f"And what is number {turn}?", history=history, max_new_tokens=16).history
        fifth = timed(sa2va, lambda: scene.chat("And now?", history=history, **one))
    anew = timed(sa2va, lambda: sa2va.chat(scenes[0].media, "And now?", history=history, **one))
    print(f"  turn 5 read anew {anew:.3f}; in its conversation {fifth:.3f}: {anew / fifth:.1f}x")


def together(sa2va: Sa2VA, rows: int, flops: float, bandwidth: float) -> None:
    print(f"\n{rows} pictures, one after another and together (prompts of about 300 tokens)")
    sa2va.processor.max_tiles = 1
    pictures = [picture(seed, 448) for seed in range(rows)]
    text = sa2va.model.vlm.model.language_model
    weights = sum(parameter.numel() for parameter in text.layers.parameters())
    size = next(text.parameters()).element_size()
    meter = Meter(sa2va)
    for tokens in (8, 64):
        found = {}
        for name, ahead in (("one by one", 1), ("together", rows)):
            meter.reset()
            requests = [Request(one, question="What is it?", options={"max_new_tokens": tokens}) for one in pictures]
            with meter.measuring():
                seconds = timed(sa2va, lambda: list(sa2va.answers(requests, ahead=ahead)))  # noqa: B023
            found[name] = (seconds, dict(meter.seconds), dict(meter.passes), dict(meter.tokens))
            reading, writing = meter.seconds["reading"], meter.seconds["writing"]
            print(
                f"  {tokens:2} tokens, {name:10}: {rows / seconds:6.2f} pictures/s, {rows * tokens / seconds:7.1f}"
                f" tokens/s; reading {reading:.2f} s ({meter.passes['reading']} passes, floor"
                f" {2 * weights * meter.tokens['reading'] / flops:.2f}), writing {writing:.2f} s"
                f" ({meter.passes['writing']} passes, floor"
                f" {meter.passes['writing'] * weights * size / bandwidth:.2f}), vision tower"
                f" {meter.seconds['vision tower']:.2f} s ({meter.passes['vision tower']}),"
                f" the rest {seconds - sum(meter.seconds.values()):.2f} s"
            )
        alone, joint = found["one by one"], found["together"]
        print(f"     whole {alone[0] / joint[0]:.2f}x, writing {alone[1]['writing'] / joint[1]['writing']:.2f}x")


def drafts(device: str) -> None:
    print("\nDrafts (`tiny`, referring answers about an open picture)")
    tiny = Sa2VA.from_pretrained("tiny", device=device)
    phrases = ["the letter Z", "the blue car", "something with wheels", "the black cloud"]
    meter = Meter(tiny)
    for name, uses in (("without", False), ("with", True)):
        with tiny.open(EXAMPLE) as scene:
            scene.segment("the yellow cloud")
            (media,) = scene._encoded.values()
            meter.reset()
            seconds = 0.0
            for phrase in phrases:
                if not uses:
                    media.answers.clear()
                with meter.measuring():
                    seconds += timed(tiny, lambda: scene.segment(phrase))  # noqa: B023
        passes = (meter.passes["reading"] + meter.passes["writing"]) / len(phrases)
        print(f"  {name:7}: {passes:.1f} passes and {1000 * seconds / len(phrases):.0f} ms an answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="float32 on the CPU, bfloat16 elsewhere")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tiles", type=int, default=6, help="tiles of the open picture, beside its thumbnail")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype or ("float32" if arguments.device == "cpu" else "bfloat16"))
    sa2va = build(arguments.size, arguments.device, dtype, arguments.tiles)
    flops, bandwidth = machine(arguments.device, dtype)
    print(
        f"{arguments.size} language model, {dtype}, {arguments.device}, {torch.get_num_threads()} threads:"
        f" matrix product {flops / 1e9:.0f} GFLOP/s, weights read at {bandwidth / 1e9:.1f} GB/s"
    )
    with torch.inference_mode():
        sa2va.chat(None, "Hello?", max_new_tokens=2)
        open_picture(sa2va, arguments.tiles, arguments.repeats)
        together(sa2va, arguments.rows, flops, bandwidth)
    drafts(arguments.device)


if __name__ == "__main__":
    main()
