"""Small models for the tests: synthetic checkpoints in the released layout, written and loaded once per process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import settings
from safetensors.numpy import save_file

from sa2va import Sa2VA, Sa2VAModel, Sa2VAProcessor
from synthetic_checkpoint import SAM2_PREFIX, tensors, weight, write_checkpoint

transformers.logging.disable_progress_bar()
# With several threads, sums come in an order that depends on their number: results would differ by machine.
os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start
torch.set_num_threads(1)
# transformers compiles a pattern for each tensor that it loads, and Python keeps no more than 512 of them.
re._MAXCACHE = 2**14
# A slow machine is no defect; and each run tries other examples, so that few of them become many.
settings.register_profile("quick", deadline=None, max_examples=40)
settings.load_profile("quick")

#: What the chat template of Qwen2.5-VL opens with, and the recordings with it.
QWEN2_5_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a case of the fixtures; tests only read it."""

    @cache
    def write(case: str) -> Path:
        folder = write_checkpoint(tmp_path_factory.mktemp(case), case)
        if case == "q25":
            template = folder / "chat_template.jinja"
            template.write_text(QWEN2_5_SYSTEM + template.read_text())
        return folder

    return write


@pytest.fixture(scope="session")
def load(checkpoint: Callable[[str], Path]) -> Callable[[str], Sa2VAModel]:
    """The float32 model of a case; tests leave it as it is."""
    return cache(lambda case: Sa2VAModel.from_pretrained(checkpoint(case)).eval())


@pytest.fixture(scope="session")
def open_sa2va(checkpoint: Callable[[str], Path], load: Callable[[str], Sa2VAModel]) -> Callable[[str], Sa2VA]:
    """The user's handle on the model of a case; tests leave it as it is."""

    @cache
    def open_case(case: str) -> Sa2VA:
        model = load(case)
        return Sa2VA(model, Sa2VAProcessor.from_pretrained(checkpoint(case), model.config))

    return open_case


@pytest.fixture(scope="session")
def sa2va(open_sa2va: Callable[[str], Sa2VA]) -> Sa2VA:
    """The user's handle on the case most tests use."""
    return open_sa2va("iv25_qwen2")


@pytest.fixture(scope="session")
def tiny() -> Sa2VA:
    """The checkpoint in the package; tests leave it as it is."""
    return Sa2VA.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="session")
def opened() -> dict[str, Sa2VA]:
    """What `opened_once` has opened."""
    return {}


@pytest.fixture
def opened_once(opened: dict[str, Sa2VA], monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is opened once for all commands that open it alike, which takes most of their time."""
    real = Sa2VA.from_pretrained

    def open_once(source: str | Path, **options: Any) -> Sa2VA:
        key = repr((str(source), sorted(options.items())))
        if key not in opened:
            opened[key] = real(source, **options)
        return opened[key]

    monkeypatch.setattr(Sa2VA, "from_pretrained", open_once)


@pytest.fixture(scope="session")
def two_decoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Sa2VA-i checkpoint: the fine-tuned decoder under another name, and beside it an original one."""
    folder = write_checkpoint(tmp_path_factory.mktemp("two_decoders"))
    decoder = SAM2_PREFIX + "sam_mask_decoder."
    weights = tensors("iv25_qwen2")
    for name in [name for name in weights if name.startswith(decoder)]:
        weights[name.replace("sam_mask_decoder.", "sam_mask_decoder_modified.")] = weights[name]
        weights[name] = weight("another/" + name, list(weights[name].shape))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def no_room() -> Callable[[int], AbstractContextManager[None]]:
    """Files cannot grow beyond so many bytes, as if the disk were full then."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
