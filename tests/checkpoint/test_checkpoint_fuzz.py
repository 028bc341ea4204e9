"""Whatever stands in a JSON file of a checkpoint: it loads, or one ``ValueError`` says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sa2va import Sa2VAModel, Sa2VAProcessor
from sa2va.checkpoint.adapter import open_adapter, write_adapter
from sa2va.checkpoint.conversion import convert
from sa2va.checkpoint.loading import open_checkpoint
from sa2va.processing.processor_settings import ProcessorSettings
from sa2va.untrusted import read_json_object

QUICK = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
#: JSON text that a file may hold where another value is expected.
VALUES = st.sampled_from(
    [
        *("null", "true", "false", "0", "1", "-1", "2", "7", "64", "1000000", "2147483648", "9223372036854775807"),
        *("9" * 400, "1e999", "-1e999", "NaN", "0.0", "-0.5", "0.3", "1e308", "1e-320"),
        *('""', '"x"', '"64"', '"float32"', '"\\u0000"', '"\\ud800"', '"../../etc/passwd"', '"{{ 1/0 }}"'),
        *(
            "[]",
            "{}",
            "[[]]",
            "[1, 2]",
            "[-1, 0, 1]",
            '["x"]',
            '{"x": 1}',
            '{"model_type": "bert"}',
            "[" * 70 + "]" * 70,
        ),
        *("[" * 3000 + "]" * 3000, "[1e999]", '{"type": 5}', '{"rope_type": "linear"}', "[null, null, null]"),
    ]
)


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a parsed file; of long lists and vocabularies to the first few."""
    yield path
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in list(keys)[:60]:
        yield from places(content[key], (*path, key))


def mutated(text: str, data: st.DataObject) -> str:
    """The file with one or two values replaced, or a key removed, or cut off."""
    content = json.loads(text)
    if data.draw(st.integers(0, 19)) == 0:
        return text[: data.draw(st.integers(0, len(text) - 1))]
    replaced: dict[str, str] = {}
    for number in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(content))))
        mark = f"@@{number}@@"
        replaced[json.dumps(mark)] = data.draw(VALUES)
        if not path:
            content = mark
            continue
        place = content
        for key in path[:-1]:
            place = place[key]
        if isinstance(place, dict) and data.draw(st.integers(0, 5)) == 0:
            del place[path[-1]]
        else:
            place[path[-1]] = mark
    result = json.dumps(content)
    for mark, value in replaced.items():
        result = result.replace(mark, value)
    return result


def check(path: Path, data: st.DataObject, load: Callable[[Path], object]) -> None:
    """Load with a mutation of the file, which is put back afterwards."""
    whole = path.read_text()
    path.write_text(mutated(whole, data))
    try:
        load(path.parent)
    except ValueError as error:
        assert str(error)
    finally:
        path.write_text(whole)


def open_all(folder: Path) -> None:
    found = open_checkpoint(folder)
    ProcessorSettings.read(folder, found.config)


@pytest.fixture(scope="module")
def folders(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of this module's own, by case, ``native`` or ``sharded`` of that case, and ``adapter``."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        case, _, kind = name.partition(" ")
        if name not in made:
            folder = tmp_path_factory.mktemp("fuzz") / "folder"
            if name == "adapter":
                tensors = {"vlm.x.lora_A.weight": [[1.0]], "vlm.x.lora_B.weight": [[1.0]]}
                write_lora(folder, tensors)
            elif kind:
                convert(checkpoint(case), folder, "native" if kind == "native" else "released", max_shard_bytes=2**20)
            else:
                shutil.copytree(checkpoint(case), folder)
            made[name] = folder
        return made[name]

    return get


def write_lora(folder: Path, tensors: dict[str, Any]) -> None:
    import torch

    named = {name: torch.tensor(value) for name, value in tensors.items()}
    write_adapter(folder, named, base="", rank=1, alpha=1.0, dropout=0.0, targets="x", whole_modules=[])


@pytest.mark.parametrize(
    "name", ["iv25_qwen2", "iv25_internlm2", "iv35_qwen3", "q25", "q3", "iv25_qwen2 native", "q3 native"]
)
def test_any_config(folders: Callable[[str], Path], name: str):
    folder = folders(name)

    @QUICK
    @given(st.data())
    def run(data: st.DataObject) -> None:
        check(folder / "config.json", data, open_all)

    run()


def test_any_index(folders: Callable[[str], Path]):
    folder = folders("iv25_qwen2 sharded")

    @QUICK
    @given(st.data())
    def run(data: st.DataObject) -> None:
        check(folder / "model.safetensors.index.json", data, open_all)

    run()


PROCESSOR_FILES = {
    "q25": ["tokenizer_config.json", "tokenizer.json", "preprocessor_config.json"],
    "q3 native": ["processor_config.json"],
    "iv25_qwen2 native": ["processor_config.json", "tokenizer_config.json"],
}
#: Files that a release may add, of the form it adds them in.
ADDED_FILES = {
    "chat_template.json": {"chat_template": "{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}"},
    "added_tokens.json": {"[SEG]": 457},
    "special_tokens_map.json": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<p>"]},
    "generation_config.json": {"eos_token_id": [442], "temperature": 0.5},
    "processor_config.json": {"image_processor": {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}},
}


@pytest.mark.parametrize(
    ("name", "file"),
    [(name, file) for name, files in PROCESSOR_FILES.items() for file in files]
    + [("q25", file) for file in ADDED_FILES],
)
def test_any_file_of_the_processor(
    folders: Callable[[str], Path], load: Callable[[str], Sa2VAModel], name: str, file: str
):
    folder, config = folders(name), load(name.split()[0]).config
    added = file in ADDED_FILES and not (folder / file).exists()
    if added:
        (folder / file).write_text(json.dumps(ADDED_FILES[file]))

    def read(folder: Path) -> None:
        processor = Sa2VAProcessor.from_pretrained(folder, config)
        processor.prompt_ids("hi", vision=None)

    @QUICK
    @given(st.data())
    def run(data: st.DataObject) -> None:
        check(folder / file, data, read)

    try:
        run()
    finally:
        if added:
            (folder / file).unlink()


def test_any_config_of_an_adapter(folders: Callable[[str], Path]):
    folder = folders("adapter")

    @QUICK
    @given(st.data())
    def run(data: st.DataObject) -> None:
        check(folder / "adapter_config.json", data, open_adapter)

    run()


@QUICK
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_json_object(path), dict)
    except ValueError as error:
        assert str(path) in str(error)
