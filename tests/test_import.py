"""``import sa2va`` is light and quiet, its names resolve, and the source keeps its promises about safety."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sa2va

SOURCE = Path(sa2va.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)


def test_import_is_light_and_quiet():
    heavy = {"torch", "transformers", "numpy", "PIL", "av", "safetensors", "pycocotools"}
    result = run_python(f"import sys, sa2va; print(sorted({heavy!r} & set(sys.modules)))")
    assert result.stdout.strip() == "[]"
    assert result.stderr == ""


def test_results_need_no_torch():
    names = "Answer, Frame, Mask, Segment, Track"
    result = run_python(f"import sys\nfrom sa2va import {names}\nprint({{'torch', 'transformers'}} & set(sys.modules))")
    assert (result.stdout.strip(), result.stderr) == ("set()", "")


def test_transformers_reads_its_model_files_once():
    script = """if True:
        import sys, sa2va
        read = []
        sys.addaudithook(lambda event, of: event == "open" and read.append(str(of[0])))
        from transformers.models.bert import BertConfig
        sources = [path for path in read if path.endswith("modeling_bert.py")]
        print(len(sources), BertConfig.__name__)
    """
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1", "BertConfig"]


def test_every_public_name_resolves():
    assert len(sa2va.__all__) == len(set(sa2va.__all__)) >= 10
    for name in sa2va.__all__:
        assert getattr(sa2va, name).__name__ == name
        assert name in dir(sa2va)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Sam3'"):
        _ = sa2va.Sam3


def test_the_version_is_one_of_a_release():
    assert re.fullmatch(r"\d+\.\d+\.\d+", sa2va.__version__)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"\.cuda\(", "devices come from the parameters"),
        (r"trust_remote_code\s*=\s*True", "nothing runs remote code"),
        (r"\bpickle\.loads?\(", "pickles run code when they are read"),
        (r"(?<!\.)\b(eval|exec)\(", "text is not code"),
        (r"os\.system|shell=True", "no shell"),
        (r"^\s*print\(", "a library prints nothing"),
    ],
)
def test_the_source_does_without(pattern: str, why: str):
    found = [
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(pattern, line) and "cli" not in path.parts
    ]
    assert not found, f"{why}: {found}"


def test_torch_load_reads_weights_only():
    calls = [match for path in FILES for match in re.findall(r"torch\.load\((.*)", path.read_text())]
    assert calls
    assert all("weights_only=True" in call for call in calls)


def test_only_registries_know_the_drawn_world():
    importing = [
        str(path.relative_to(SOURCE))
        for path in FILES
        if "tiny" not in path.relative_to(SOURCE).parts
        and re.search(r"^\s*(from|import) sa2va\.tiny\b", path.read_text(), re.MULTILINE)
    ]
    assert not importing, "they name it as text, 'package.module:name', and import it when they are asked for it"
