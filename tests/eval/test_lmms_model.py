"""The lmms-eval plugin against lmms-eval's real base classes and registry, on a small random checkpoint."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sa2va import Sa2VA
from sa2va.eval.lmms import manifests
from synthetic_checkpoint import picture

REASON = "lmms-eval is not installed: pip install 'sa2va[lmms]'"
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
TASK, SPLIT = "some-task", "test"
SHORT = {"max_new_tokens": 6, "temperature": 0, "do_sample": False}


def declared() -> dict[str, str]:
    """The entry points that the package's metadata has."""
    return tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]["lmms_eval.models"]


def test_the_package_declares_the_plugin():
    assert declared() == {"sa2va": "sa2va.eval.lmms:manifests"}


def test_a_missing_harness_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "lmms_eval.models.registry_v2", None)
    with pytest.raises(ImportError, match=r"pip install 'sa2va\[lmms\]'"):
        manifests()


def test_the_id_resolves_through_the_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in a new process after installation: metadata on the path, nothing imported by hand."""
    registry_v2 = pytest.importorskip("lmms_eval.models.registry_v2", reason=REASON)
    info = tmp_path / "plugin_under_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-under-test\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in declared().items()]
    (info / "entry_points.txt").write_text("\n".join(["[lmms_eval.models]", *lines, ""]))
    monkeypatch.syspath_prepend(tmp_path)
    registry = registry_v2.ModelRegistryV2()
    registry.load_entrypoint_manifests(overwrite=True)
    resolved = registry.resolve("sa2va")
    assert (resolved.model_id, resolved.model_type) == ("sa2va", "chat")
    assert registry.get_model_class("sa2va").__name__ == "Sa2VALmms"


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], Path]) -> Any:
    module = pytest.importorskip("sa2va.eval.lmms_model", reason=REASON, exc_type=ImportError)
    options = {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    return module.Sa2VALmms.create_from_arg_string(f"pretrained={checkpoint('iv25_qwen2')},num_frames=3", options)


@pytest.fixture
def run(model: Any) -> Callable[..., list[str]]:
    """Documents and their messages through the harness's own request type."""
    instance = pytest.importorskip("lmms_eval.api.instance", reason=REASON).Instance

    def answers(*messages: list[dict[str, Any]], **generation: Any) -> list[str]:
        model.task_dict[TASK] = {SPLIT: messages}
        metadata = {"task": TASK, "doc_id": 0, "repeats": 1}
        return model.generate_until(
            [
                instance("generate_until", ("", list, SHORT | generation, number, TASK, SPLIT), 0, metadata)
                for number in range(len(messages))
            ]
        )

    return answers


def ask(words: str, *media: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*media, {"type": "text", "text": words}]}]


def image(seed: int = 0) -> dict[str, Any]:
    return {"type": "image", "url": Image.fromarray(picture(60, 40, seed))}


def test_answers_are_those_of_chat_in_order(run: Callable[..., list[str]], sa2va: Sa2VA, tmp_path: Path):
    for number in range(6):
        Image.fromarray(picture(60, 40, number)).save(tmp_path / f"{number}.png")
    clip = {"type": "video", "url": str(tmp_path)}
    frames = [picture(60, 40, number) for number in (0, 2, 5)]
    found = run(
        ask("What is it?", image()),
        ask("What happens?", clip),
        ask("And then?", clip),  # the same clip: answered together with the one before
        ask("Who are you?"),
        ask("Which is it?", image(0), image(2), image(5)),
    )
    expected = [
        sa2va.chat(picture(60, 40, 0), "What is it?", max_new_tokens=6),
        sa2va.chat(frames, "What happens?", max_new_tokens=6),
        sa2va.chat(frames, "And then?", max_new_tokens=6),
        sa2va.chat(None, "Who are you?", max_new_tokens=6),
        sa2va.chat(frames, "Which is it?", max_new_tokens=6),
    ]
    assert found == [answer.text for answer in expected]
    assert len(set(found)) > 1


def test_questions_about_one_file_share_its_encoding(
    run: Callable[..., list[str]], model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "picture.png"
    Image.fromarray(picture(60, 40)).save(path)
    asked: list[object] = []
    plain = model.sa2va.answers

    def noting(requests, *, ahead):
        return plain((asked.append(request.question) or request for request in requests), ahead=ahead)

    monkeypatch.setattr(model.sa2va, "answers", noting)
    run(*(ask(words, {"type": "image", "url": str(path)}) for words in ("One?", "Two?", "Three?", "Four?", "Five?")))
    assert asked == [["One?", "Two?"], ["Three?", "Four?"], "Five?"]


def test_earlier_turns_are_part_of_the_request(run: Callable[..., list[str]], sa2va: Sa2VA):
    first = ask("What is it?", image())
    later = [*first, {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}, *ask("What colour?")]
    turns = tuple(sa2va.chat(picture(60, 40), "What is it?", max_new_tokens=1).history)
    history = (type(turns[0])("What is it?", "A dog."),)
    answer = sa2va.chat(picture(60, 40), "What colour?", history=history, max_new_tokens=6)
    assert run(later) == [answer.text]


def test_answers_end_where_a_task_says(run: Callable[..., list[str]]):
    (whole,) = run(ask("What is it?", image()))
    end = whole[len(whole) // 2]
    assert end.strip()
    assert run(ask("What is it?", image()), until=[end]) == [whole.split(end, 1)[0]]
    assert run(ask("What is it?", image()), until=end) == [whole.split(end, 1)[0]]


def test_system_prompts_and_beams_are_reported_once(
    run: Callable[..., list[str]], model: Any, caplog: pytest.LogCaptureFixture
):
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    model._warned.clear()
    plain, *prompted = run(ask("Hello"), [system, *ask("Hello")], [system, *ask("Hello")], num_beams=3)
    assert prompted == [plain, plain]
    assert [record.message for record in caplog.records if record.name == "sa2va"] == [
        "beams are not searched: the likeliest token is taken",
        "system prompts are left out: the model was trained without one",
    ]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "audio", "url": "a.wav"}, "got 'audio'"),
        ({"type": "video", "url": "/nowhere/a.mp4"}, "No such file"),
        ({"type": "image", "url": "/nowhere/a.png"}, "No such file"),
    ],
)
def test_errors_name_the_document(run: Callable[..., list[str]], part: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=rf"some-task, test, document 1: .*{message}"):
        run(ask("Hello"), ask("What?", part))


@pytest.mark.parametrize("options", [{"batch_size": "auto"}, {"batch_size": 0}, {"key_frames": "last"}])
def test_wrong_options_are_refused(options: dict[str, Any]):
    module = pytest.importorskip("sa2va.eval.lmms_model", reason=REASON, exc_type=ImportError)
    with pytest.raises(ValueError, match="must be"):
        module.Sa2VALmms(**options)


def test_what_is_not_offered_says_so(model: Any):
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="choose a generate_until task"):
            method([])


def test_memory_is_given_back(checkpoint: Callable[[str], Path]):
    module = pytest.importorskip("sa2va.eval.lmms_model", reason=REASON, exc_type=ImportError)
    model = module.Sa2VALmms(str(checkpoint("iv25_qwen2")), device="cpu")
    model.clean()
    assert model.sa2va is None


def test_pictures_are_read_as_they_are(run: Callable[..., list[str]]):
    """A transparent picture and an array answer like their RGB picture."""
    rgb = Image.fromarray(picture(60, 40))
    sources = [rgb, rgb.convert("RGBA"), np.asarray(rgb)]
    assert len(set(run(*(ask("What?", {"type": "image", "url": one}) for one in sources)))) == 1
