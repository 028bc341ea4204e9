"""The command line on real files: what it writes can be used, what it prints can be read, and it ends as it should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from sa2va import Answer, Frame, Mask, Sa2VA, Segment, Track, zoo
from sa2va.cli import arguments as options
from sa2va.cli import doctor, main
from sa2va.cli.console import Interrupts, LogProgress, Screen, explanation, printable
from sa2va.cli.describe import read_mask
from sa2va.cli.output import show_found
from sa2va.visualization.overlay import davis_palette
from sa2va.writers.video_encoder import VideoEncoder
from synthetic_checkpoint import picture

COMMANDS = ("segment", "track", "chat", "caption", "describe", "models", "convert", "demo", "doctor")
PHRASES = ["the red car", "the dog"]
#: With this many tokens the synthetic model points at one thing or two.
SHORT = ("--max-new-tokens", "6")


@pytest.fixture(scope="session")
def model(checkpoint: Callable[[str], Path]) -> str:
    return str(checkpoint("iv25_qwen2"))


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, model: str, opened_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder, with the synthetic model as the default one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SA2VA_MODEL", model)


@pytest.fixture
def street(tmp_path: Path) -> str:
    """A picture file of 160 x 240 pixels (height x width)."""
    Image.fromarray(picture(240, 160)).save("street.png")
    return "street.png"


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """A folder of 8 frames of 160 x 240 pixels."""
    return write_clip("clip", 8)


def write_clip(folder: str, count: int) -> str:
    Path(folder).mkdir()
    for number in range(count):
        Image.fromarray(picture(240, 160, number)).save(f"{folder}/{number:03d}.png")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    """Run a command in this process. Returns what it printed: (standard output, standard error)."""
    capsys.readouterr()
    got = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert got == code, printed.err
    return printed.out, printed.err


def assert_refused(printed: tuple[str, str], *words: str) -> None:
    """One line on standard error that says why, nothing on standard output, no traceback."""
    out, err = printed
    lines = err.strip().splitlines()
    assert not out
    assert lines[-1].startswith("error: ") and "Traceback" not in err
    assert all(word in lines[-1] for word in words), lines[-1]


def pixels_of(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def video_frames(path: str | Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


# ---------------------------------------------------------------------------------------------- help and start


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sa2va.cli import main; status = main(['--help']) or main(['segment', '--help']);"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'av'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


def test_what_was_imported_is_not_searched_for_garbage_again(street: str) -> None:
    code = (
        "import gc; from sa2va.cli import main;"
        f"status = main(['segment', '{street}', 'the star', '--model', 'tiny', '-o', 'out']);"
        "print(status, gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 True True", done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, command, "--help")
    assert f"$ sa2va {command}" in out
    assert "--json" in out and "--quiet" in out and "--debug" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from sa2va import __version__

    assert run(capsys, "--version")[0] == f"sa2va {__version__}\n"


# ---------------------------------------------------------------------------------------------------- pictures


def test_segment_writes_files_that_agree(capsys: pytest.CaptureFixture[str], street: str, sa2va: Sa2VA) -> None:
    out, err = run(
        capsys, "segment", street, *PHRASES, "-o", "out", "--save", "overlay,masks,objects,cutout,json", *SHORT
    )
    expected = sa2va.segment(street, PHRASES, max_new_tokens=6)
    record = json.loads(Path("out/result.json").read_text())
    segments = [segment for answer in record["answers"] for segment in answer["segments"]]
    assert [Answer.from_json(json.dumps(answer)) for answer in record["answers"]] == expected
    assert [answer["request"] for answer in record["answers"]] == PHRASES
    assert segments and record["size"] == [160, 240]
    assert sorted(record["outputs"]) == sorted(
        str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()
    )

    masks = {segment["id"]: Mask.from_rle(segment["masks"][0]).array for segment in segments}
    with Image.open("out/masks.png") as palette:
        colors = palette.getpalette() or []
        assert palette.mode == "P" and colors[:3] == [0, 0, 0] and colors[30:] == davis_palette()[30:]
    index = np.zeros((160, 240), np.uint8)
    for number, mask in masks.items():
        index[mask] = number
    assert (pixels_of("out/masks.png") == index).all()
    for segment in segments:
        (path,) = Path("out/objects").glob(f"{segment['id']:03d}-{segment['phrase'].replace(' ', '-')}.png")
        assert (pixels_of(path) == masks[segment["id"]] * 255).all()
    cutout = pixels_of("out/cutout.png")
    assert ((cutout[..., 3] == 255) == (index > 0)).all()
    overlay = pixels_of("out/overlay.png")
    assert overlay.shape == (160, 240, 3) and (overlay != picture(240, 160)).any()
    for segment in segments:  # an object has one colour in all of them
        assert colors[3 * segment["id"] : 3 * segment["id"] + 3] == segment["color"]
        assert (overlay[masks[segment["id"]]] == segment["color"]).all(axis=1).any()
    assert "object 1" in out and "wrote out" in err


def test_json_is_alone_on_standard_output(capsys: pytest.CaptureFixture[str], street: str) -> None:
    out, _ = run(capsys, "segment", street, *PHRASES, "-o", "out", "--json", *SHORT)
    printed, written = json.loads(out), json.loads(Path("out/result.json").read_text())
    assert printed.pop("seconds") > 0
    assert printed == written
    out, err = run(capsys, "segment", street, "x", "--json", "--quiet", *SHORT)
    assert json.loads(out)["outputs"] == [] and not err


def test_nothing_found_is_said_and_not_made_up(capsys: pytest.CaptureFixture[str], street: str) -> None:
    Path("out").mkdir()
    Path("out/overlay.png").write_bytes(b"of a run before")
    out, err = run(capsys, "segment", street, "the moon", "-o", "out", "--overwrite", "--max-new-tokens", "1")
    assert "the moon" in out and "nothing" in out
    (answer,) = json.loads(Path("out/result.json").read_text())["answers"]
    assert answer["segments"] == [] and answer["reason"]
    assert not pixels_of("out/masks.png").any()
    # An overlay would look like the unmarked source.
    assert not Path("out/overlay.png").exists() and "nothing was found, so there is no overlay" in err


def test_one_file_by_its_ending(capsys: pytest.CaptureFixture[str], street: str) -> None:
    run(capsys, "segment", street, "x", "-o", "deep/answer.json", *SHORT)
    run(capsys, "segment", street, "x", "-o", "overlay.jpg", *SHORT)
    assert json.loads(Path("deep/answer.json").read_text())["outputs"] == ["deep/answer.json"]
    assert pixels_of("overlay.jpg").shape == (160, 240, 3)
    assert sorted(path.name for path in Path().iterdir()) == ["deep", "overlay.jpg", "street.png"]


def test_results_are_never_replaced_unasked(capsys: pytest.CaptureFixture[str], street: str) -> None:
    request = ("segment", street, "-o", "out", "--save", "objects,json", "--quiet", *SHORT)
    run(capsys, *request, "a red car", "the moon")
    Path("out/mine.txt").write_text("keep me")
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert_refused(run(capsys, *request, "a dog", code=2), "out", "--overwrite")
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
    run(capsys, *request, "a dog", "--overwrite")
    names = [path.name for path in Path("out/objects").iterdir()]
    assert names and all("a-dog" in name for name in names)
    assert Path("out/mine.txt").read_text() == "keep me"


def test_threshold_and_cleanup_reach_the_masks(capsys: pytest.CaptureFixture[str], street: str, sa2va: Sa2VA) -> None:
    from sa2va.masks.mask_ops import Cleanup

    out, _ = run(
        capsys, "segment", street, "x", "--json", "--threshold", "0.9", "--cleanup", "fill_holes=20,dilate=1.5", *SHORT
    )
    expected = sa2va.segment(street, "x", threshold=0.9, cleanup=Cleanup(fill_holes=20, dilate=1.5), max_new_tokens=6)
    assert isinstance(expected, Answer)
    areas = [segment["area"] for segment in json.loads(out)["answers"][0]["segments"]]
    assert areas == [segment.mask.area for segment in expected.segments]
    plain = sa2va.segment(street, "x", max_new_tokens=6)
    assert isinstance(plain, Answer) and areas != [segment.mask.area for segment in plain.segments]


def test_second_looks_reach_the_masks(capsys: pytest.CaptureFixture[str], street: str, clip: str, sa2va: Sa2VA) -> None:
    def found(answer: Answer | list[Answer]) -> list[tuple[float, int]]:
        assert isinstance(answer, Answer)
        return [(segment.score, segment.mask.area) for segment in answer.segments]

    out, _ = run(capsys, "segment", street, "x", "--json", "--instances", *SHORT)
    told = [(segment["score"], segment["area"]) for segment in json.loads(out)["answers"][0]["segments"]]
    assert told == found(sa2va.segment(street, "x", instances=True, max_new_tokens=6))
    assert told != found(sa2va.segment(street, "x", max_new_tokens=6))
    assert_refused(run(capsys, "segment", clip, "x", "--zoom", code=2), "--zoom", "give a picture, not a video")
    assert_refused(run(capsys, "segment", street, "x", "--refine", "sam", *SHORT, code=2), "sam2=", "--sam2")
    matting = ("--refine", "matting", "--matting", "nowhere")
    assert_refused(run(capsys, "segment", street, "x", *matting, *SHORT, code=2), "VitMatte", "'nowhere'")


def test_caption(capsys: pytest.CaptureFixture[str], street: str, sa2va: Sa2VA) -> None:
    out, _ = run(capsys, "caption", street, "-o", "out", *SHORT)
    expected = sa2va.caption(street, max_new_tokens=6)
    (answer,) = json.loads(Path("out/result.json").read_text())["answers"]
    assert Answer.from_json(json.dumps(answer)) == expected
    assert printable(expected.text) in out
    assert "\x01" not in out


def test_describe_boxes_and_masks(capsys: pytest.CaptureFixture[str], street: str, sa2va: Sa2VA) -> None:
    mask = np.zeros((160, 240), bool)
    mask[20:60, 30:100] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save("mask.png")
    out, _ = run(capsys, "describe", street, "--mask", "mask.png", "--box", "5,5,60,50", "--json", *SHORT)
    expected = sa2va.describe(street, [(5, 5, 60, 50), mask], max_new_tokens=6)
    regions = json.loads(out)["regions"]
    assert [row["region"] for row in regions] == ["box 5,5,60,50", "mask mask.png"]
    assert [row["text"] for row in regions] == expected


def test_mask_files_of_every_kind(tmp_path: Path) -> None:
    mask = np.zeros((9, 12), bool)
    mask[2:5, 3:9] = True
    ones = mask.astype(np.uint8)
    palette = Image.fromarray(ones * 7)
    palette.putpalette(davis_palette())
    transparent = Image.fromarray(np.dstack([picture(12, 9), ones * 255]))
    kinds = {"white": ones * 255, "ones": ones, "rgb": np.repeat(ones[..., None] * 255, 3, 2)}
    pictures = {name: Image.fromarray(array) for name, array in kinds.items()} | {"p": palette, "rgba": transparent}
    pictures["bits"] = Image.fromarray(ones * 255).convert("1")
    for name, image in pictures.items():
        image.save(f"{name}.png")
        assert (read_mask(Path(f"{name}.png")) == mask).all(), name


# -------------------------------------------------------------------------------------------------------- chat


def test_chat_once(capsys: pytest.CaptureFixture[str], street: str, sa2va: Sa2VA) -> None:
    out, _ = run(capsys, "chat", street, "who?", *SHORT)
    assert out.startswith(printable(sa2va.chat(street, "who?", max_new_tokens=6).text))
    out, _ = run(capsys, "chat", "-", "who?", "--json", *SHORT)
    (answer,) = json.loads(out)["answers"]
    assert answer["text"] == sa2va.chat(None, "who?", max_new_tokens=6).text and answer["size"] is None


def test_chat_by_lines_remembers(
    capsys: pytest.CaptureFixture[str], street: str, sa2va: Sa2VA, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("who?\n\nand what?\n"))
    out, _ = run(capsys, "chat", street, "--json", *SHORT)
    with sa2va.open(street) as scene:
        first = scene.chat("who?", max_new_tokens=6)
        second = scene.chat("and what?", history=first.history, max_new_tokens=6)
    answers = [Answer.from_json(json.dumps(json.loads(line)["answers"][0])) for line in out.splitlines()]
    assert answers == [first, second]


def test_conversation_commands(
    capsys: pytest.CaptureFixture[str], street: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["/save", "who?", "/save talk", "/save talk", "/new", "and what?", "/save fresh", "/what", "/quit", "never"]
    lines = iter(typed)
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    _, err = run(capsys, "chat", street, *SHORT)
    assert next(lines) == "never"
    turns = [
        json.loads(Path(f"{folder}/result.json").read_text())["answers"][0]["history"] for folder in ("talk", "fresh")
    ]
    assert [[turn["question"] for turn in history] for history in turns] == [["who?"], ["and what?"]]
    assert "say where" in err and "error: talk is not empty" in err and Path("talk/masks.png").exists()


def test_save_chooses_what_a_conversation_writes(
    capsys: pytest.CaptureFixture[str], street: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["who?", "/save", "/quit"])
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    _, err = run(capsys, "chat", street, "-o", "talk", "--save", "masks", *SHORT)
    assert "error: " not in err
    assert [path.name for path in Path("talk").iterdir()] == ["masks.png"]


# ------------------------------------------------------------------------------------------------------- video


def test_track_writes_files_that_agree(capsys: pytest.CaptureFixture[str], clip: str, sa2va: Sa2VA) -> None:
    out, err = run(capsys, "track", clip, *PHRASES, "-o", "out", "--save", "overlay,masks,json,jsonl", *SHORT)
    expected = sa2va.track(clip, PHRASES, max_new_tokens=6).results()
    assert [Frame.from_json(line) for line in Path("out/frames.jsonl").read_text().splitlines()] == expected
    assert [frame.shape for frame in video_frames("out/overlay.mp4")] == [(160, 240, 3)] * 8
    annotations = json.loads(Path("out/annotations.json").read_text())
    assert annotations["info"]["complete"] and annotations["videos"][0]["length"] == 8
    for number, frame in enumerate(expected):
        index = np.zeros((160, 240), np.uint8)
        for place, segment in enumerate(frame.segments, start=1):
            index[segment.mask.array] = place
        assert (pixels_of(f"out/masks/{number:05d}.png") == index).all()
    record = json.loads(Path("out/run.json").read_text())
    assert record["complete"] and record["frames"] == record["frames_total"] == 8
    assert [row["id"] for row in record["objects"]] == [segment.id for segment in expected[0].segments]
    assert not record["reasons"] and "in 8 of 8 frames" in out and "frames/s" in err


def test_track_options_reach_the_tracker(capsys: pytest.CaptureFixture[str], clip: str, sa2va: Sa2VA) -> None:
    chosen = ("--key-frames", "1,2", "--mode", "released", "--stride", "2", "--max-frames", "3", "--threshold", "0.7")
    out, _ = run(capsys, "track", clip, "x", "--json", *chosen, *SHORT)
    expected = sa2va.track(
        clip,
        "x",
        key_frames=[1, 2],
        mode="released",
        threshold=0.7,
        sampling={"stride": 2, "max_frames": 3},
        max_new_tokens=6,
    ).results()
    assert [Frame.from_json(line) for line in out.splitlines()] == expected and len(expected) == 3
    out, _ = run(capsys, "track", clip, "x", "--json", "--ask-every", "4", "--check-presence", *SHORT)
    expected = sa2va.track(clip, "x", ask_every=4, check_presence=True, max_new_tokens=6).results()
    assert [Frame.from_json(line) for line in out.splitlines()] == expected
    out, _ = run(capsys, "track", clip, "x", "--json", "--best", *SHORT)
    expected = sa2va.track(clip, "x", ask_every=15, max_new_tokens=6).results()
    assert [Frame.from_json(line) for line in out.splitlines()] == expected
    _, err = run(capsys, "track", clip, "x", "--json", "--mode", "consistent", *SHORT, code=2)
    assert "which this checkpoint lacks" in err and "--sam2" in err


def test_video_file_in_and_out(capsys: pytest.CaptureFixture[str]) -> None:
    file = VideoEncoder("clip.mp4", size=(160, 240), fps=Fraction(25, 2))
    for number in range(10):
        file.write(picture(240, 160, number))
    file.close()
    run(capsys, "track", "clip.mp4", "x", "-o", "out.mp4", "--start", "2", "--end", "0.6s", *SHORT)
    with av.open("out.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == Fraction(25, 2)
        assert len(list(container.decode(stream))) == 6  # frames 2 to 7: frame 8 is at 0.64 s
    assert_refused(run(capsys, "track", "clip.mp4", "x", "-o", "out.mp4", *SHORT, code=2), "out.mp4", "--overwrite")


def test_segment_follows_a_clip_as_track_does(capsys: pytest.CaptureFixture[str], clip: str) -> None:
    run(capsys, "segment", clip, "x", "-o", "a", "--save", "jsonl", *SHORT)
    run(capsys, "track", clip, "x", "-o", "b", "--save", "jsonl", *SHORT)
    assert Path("a/frames.jsonl").read_bytes() == Path("b/frames.jsonl").read_bytes() != b""


def test_a_phrase_that_nothing_is_followed_for(capsys: pytest.CaptureFixture[str], clip: str) -> None:
    command = ("track", clip, "the moon", "-o", "out", "--save", "overlay,masks", "--max-new-tokens", "1")
    out, err = run(capsys, *command)
    assert "the moon" in out and "nothing" in out
    assert list(json.loads(Path("out/run.json").read_text())["reasons"]) == ["the moon"]
    assert not any(pixels_of(path).any() for path in Path("out/masks").glob("0*.png"))
    assert not Path("out/overlay.mp4").exists() and "nothing was found, so there is no overlay" in err
    assert "already complete" in run(capsys, *command, "--resume")[1]


def test_a_score_the_model_doubts_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    mask = Mask.from_array(np.ones((4, 4), bool))
    segments = tuple(Segment(number, "it", (mask,), score, 1.0) for number, score in ((1, 0.2), (2, 0.1)))
    show_found(Screen(), [Answer("", "", segments)], None)
    first, second = capsys.readouterr().out.splitlines()
    assert "score 0.20" in first and "doubtful" not in first and "score 0.10 doubtful" in second


def test_caption_of_a_clip(capsys: pytest.CaptureFixture[str], clip: str, sa2va: Sa2VA) -> None:
    run(capsys, "caption", clip, "-o", "out", *SHORT)
    expected = sa2va.caption(clip, max_new_tokens=6)
    (answer,) = json.loads(Path("out/result.json").read_text())["answers"]
    assert Answer.from_json(json.dumps(answer)) == expected
    assert len(list(Path("out/masks").glob("*.png"))) == 8
    # A clip in which nothing was found would look like its source.
    assert Path("out/overlay.mp4").exists() == any(mask.area for one in expected.segments for mask in one.masks)


# ---------------------------------------------------------------------------------------- stopping and resuming


@pytest.fixture
def stopped_run() -> list[str]:
    """The arguments of a run of 48 frames into out/ that got SIGINT in the middle."""
    write_clip("long", 48)
    arguments = ["track", "long", "x", "-o", "out", "--save", "overlay,masks,json,jsonl", *SHORT]
    with open("stdout", "w") as out, open("stderr", "w") as err:
        if (child := os.fork()) == 0:  # quicker than a process that imports everything anew
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.stdout, sys.stderr = out, err
            code = 1
            try:
                code = main(arguments)
            finally:
                out.flush()
                err.flush()
                os._exit(code)
    while not Path("out/masks/00003.png").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), Path("stderr").read_text()
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    told = Path("stderr")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130, told.read_text()
    assert "--resume" in told.read_text() and "Traceback" not in told.read_text() and not Path("stdout").read_text()
    return arguments


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_interrupt_leaves_valid_files_and_resume_completes_them(
    capsys: pytest.CaptureFixture[str], stopped_run: list[str]
) -> None:
    record = json.loads(Path("out/run.json").read_text())
    done = record["frames"]
    assert 4 <= done < 48 and not record["complete"]
    assert len(video_frames("out/overlay.mp4")) == done
    assert len(Path("out/frames.jsonl").read_text().splitlines()) == done
    annotations = json.loads(Path("out/annotations.json").read_text())
    assert not annotations["info"]["complete"] and annotations["videos"][0]["length"] == done
    pngs = {path: path.stat().st_mtime_ns for path in Path("out/masks").glob("*.png")}
    assert len(pngs) == done

    assert_refused(run(capsys, *stopped_run, "--resume", "--threshold", "0.6", code=2), "threshold", "--overwrite")
    run(capsys, *stopped_run, "--resume")
    assert {path: path.stat().st_mtime_ns for path in pngs} == pngs
    whole = [argument if argument != "out" else "whole" for argument in stopped_run]
    run(capsys, *whole)
    for path in Path("whole").rglob("*"):
        if path.is_file() and path.name not in ("run.json", "overlay.mp4"):
            assert (Path("out") / path.relative_to("whole")).read_bytes() == path.read_bytes(), path
    resumed, uninterrupted = video_frames("out/overlay.mp4"), video_frames("whole/overlay.mp4")
    assert len(resumed) == len(uninterrupted) == 48  # x264 with several threads does not always choose the same bits
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(resumed, uninterrupted, strict=True)) < 5
    assert json.loads(Path("out/run.json").read_text())["complete"]

    before = Path("out/overlay.mp4").stat().st_mtime_ns
    _, err = run(capsys, *stopped_run, "--resume")
    assert "already complete" in err and "loading" not in err
    assert Path("out/overlay.mp4").stat().st_mtime_ns == before


def stops_after(count: int, error: type[BaseException]) -> Callable[..., Track]:
    """A stand-in for ``Sa2VA.track`` that breaks off after some frames of 160 x 240 pixels."""

    def frames() -> Iterator[tuple[Frame, np.ndarray]]:
        mask = Mask.from_array(np.ones((160, 240), bool))
        for index in range(count):
            yield Frame(index, index / 10, (160, 240), (Segment(1, "x", (mask,), 0.5, 0.5),)), picture(240, 160, index)
        raise error

    return lambda *_, **__: Track(frames(), size=(160, 240))


@pytest.mark.parametrize(("known", "length"), [(0, 5), (5, 5), (9, 9)])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_run_that_breaks_off_never_shortens_an_earlier_one(
    known: int,
    length: int,
    error: type[BaseException],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = ("track", write_clip("clip", 12), "x", "-o", "out", "--save", "overlay,masks,json,jsonl")
    if known:
        monkeypatch.setattr(Sa2VA, "track", stops_after(known, KeyboardInterrupt))
        run(capsys, *request, code=130)
    monkeypatch.setattr(Sa2VA, "track", stops_after(5, error))
    run(capsys, *request, "--resume", code=130 if error is KeyboardInterrupt else 2)
    assert len(video_frames("out/overlay.mp4")) == length
    assert json.loads(Path("out/annotations.json").read_text())["videos"][0]["length"] == length
    assert json.loads(Path("out/run.json").read_text())["frames"] == length
    lines = Path("out/frames.jsonl").read_text().splitlines()
    assert len(list(Path("out/masks").glob("0*.png"))) == len(lines) == length
    assert not list(Path("out").rglob(".*"))


@pytest.mark.parametrize("there", [False, True])
def test_a_run_without_a_frame_leaves_nothing(
    there: bool, capsys: pytest.CaptureFixture[str], clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sa2VA, "track", stops_after(0, KeyboardInterrupt))
    if there:
        Path("out").mkdir()
    _, err = run(capsys, "track", clip, "x", "-o", "out", "--save", "overlay,masks,json,jsonl", code=130)
    assert "stopped after 0 of 8 frames" in err
    assert Path("out").exists() == there and not list(Path().glob("out/*"))


def test_a_signal_waits_for_held_work() -> None:
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs start with it ignored
    done = []
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.held():
            signal.raise_signal(signal.SIGTERM)
            done.append("frame")
        assert interrupts.exit_code == 128 + signal.SIGTERM
        with interrupts.held(then_raise=False):
            signal.raise_signal(signal.SIGINT)
            done.append("close")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert done == ["frame", "close"]
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_of_nothing_starts_and_of_something_else_refuses(capsys: pytest.CaptureFixture[str], clip: str) -> None:
    request = ("track", clip, "x", "--save", "jsonl", "--resume", *SHORT)
    run(capsys, *request, "-o", "new")
    assert len(Path("new/frames.jsonl").read_text().splitlines()) == 8
    Path("other").mkdir()
    Path("other/thesis.txt").write_text("...")
    assert_refused(run(capsys, *request, "-o", "other", code=2), "no run to resume")
    assert_refused(run(capsys, "track", clip, "x", "-o", "a.mp4", "--resume", code=2), "-o FOLDER")
    assert_refused(run(capsys, *request, "-o", "new", "--overwrite", code=2), "give one")


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["segment", "missing.png", "x"], ["no such file", "missing.png"]),
        (["track", "missing.mp4", "x", "-o", "out"], ["no such file", "missing.mp4"]),
        (["segment", "text.png", "x"], ["text.png", "not a picture"]),
        (["segment", "street.png", " "], ["phrase"]),
        (["segment", "street.png", "x", "-o", "out.avi"], ["out.avi", ".png"]),
        (["segment", "street.png", "x", "-o", "text.png/out"], ["text.png"]),
        (["segment", "street.png", "x", "-o", "out", "--save", "overlay,gif"], ["--save", "cutout"]),
        (["segment", "street.png", "x", "--save", "overlay"], ["-o OUT"]),
        (["segment", "street.png", "x", "-o", "a.png", "--save", "overlay"], ["--save"]),
        (["segment", "street.png", "x", "--threshold", "1"], ["--threshold"]),
        (["segment", "street.png", "x", "--cleanup", "polish"], ["--cleanup", "fill_holes"]),
        (["segment", "street.png", "x", "-m", "nowhere"], ["nowhere"]),
        (["segment", "street.png", "x", "-m", ""], ["--model", "SA2VA_MODEL"]),
        (["segment", "street.png", "x", "-m", "Sa2VA-Qwen3-VL-4B-SAM3"], ["SAM3"]),
        (["segment", "street.png", "x", "--device", "abacus"], ["--device"]),
        (["track", "street.png", "x"], ["-o OUT", "--json"]),
        (["track", "street.png", "x", "-o", "o", "--key-frames", "last"], ["--key-frames"]),
        (["track", "street.png", "x", "-o", "o", "--key-frames", "0,1"], ["--key-frames", "0 to 0"]),
        (["track", "street.png", "x", "-o", "o", "--start", "soon"], ["--start"]),
        (["track", "street.png", "x", "-o", "o", "--ask-every", "1"], ["--ask-every", "at least 2", "scene"]),
        (
            ["track", "street.png", "x", "-o", "o", "--ask-every", "9", "--key-frames", "0"],
            ["--ask-every", "leave out"],
        ),
        (["track", "street.png", "x", "-o", "o", "--stride", "2", "--fps", "3"], ["stride", "fps"]),
        (["chat", "-", "hello", "-o", "out"], ["SOURCE"]),
        (["describe", "street.png"], ["--box", "--mask"]),
        (["describe", "street.png", "--box", "1,2,3"], ["--box"]),
        (["describe", "street.png", "--mask", "missing.png"], ["missing.png"]),
        (["convert", "nowhere", "new"], ["nowhere"]),
        (["convert", "Sa2VA-1B", "."], ["empty folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str], street: str
) -> None:
    Path("text.png").write_text("this is no picture")
    assert_refused(run(capsys, *arguments, code=2), *words)
    assert sorted(path.name for path in Path().iterdir()) == ["street.png", "text.png"]


def test_ctrl_c_before_a_command_begins_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sa2va.cli.commands.app", interrupted)
    assert main(["models"]) == 130


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Missing argument" in run(capsys, "segment", code=2)[1]
    assert "No such option" in run(capsys, "models", "--colour", code=2)[1]


def test_defects_exit_with_1_and_debug_shows_where(
    capsys: pytest.CaptureFixture[str], street: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Sa2VA, "segment", broken)
    _, err = run(capsys, "segment", street, "x", code=1)
    assert "error: ZeroDivisionError: a defect" in err and "Traceback" not in err and "--debug" in err
    _, err = run(capsys, "segment", street, "x", "--debug", code=1)
    assert "Traceback" in err and "in broken" in err


def test_where_nobody_sees_a_bar_a_line_a_minute_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clock = iter([0.0, 30.0, 60.0, 90.0, 120.0])
    monkeypatch.setattr("sa2va.cli.console.perf_counter", lambda: next(clock))
    progress = LogProgress(Screen(), "tracking", "frames")
    for done in (100, 200, 300, 400):
        progress.show(done, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "tracking: 200/1000 frames, 3.3 a second, 0:04:00 left",
        "tracking: 400/1000 frames, 3.3 a second, 0:03:00 left",
    ]


def test_explanations() -> None:
    assert explanation(FileNotFoundError(2, "No such file or directory", "a.png")) == "no such file or directory: a.png"
    assert explanation(ValueError("two\n lines")) == "two lines"
    assert "smaller model" in explanation(MemoryError())
    assert printable("a\x1b[31mb\n") == "a\ufffd[31mb\n"


def test_only_present_devices() -> None:
    assert options.checked_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="sees only"):
        options.checked_device("meta")


# ------------------------------------------------------------------------------------- models, convert, doctor


def test_models_lists_the_ten_released_and_others(capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(run(capsys, "models", "--json")[0])
    rows = {row["name"]: row for row in record["models"]}
    manifests = sorted((Path(__file__).parents[1] / "golden").glob("manifest_Sa2VA-*.json"))
    assert len(manifests) == 10 == len(zoo.RELEASED)
    for path in manifests:
        manifest = json.loads(path.read_text())
        row = rows[manifest["model"]]
        assert row["hub_id"] == f"ByteDance/{manifest['model']}" and row["loads"]
        assert abs(row["size"] - manifest["num_elements"] / 1e9) <= 0.05
        assert all(50 < row[score] < 90 for score in ("refcoco", "refcoco_plus", "refcocog", "mevis", "davis17"))
    assert rows["Sa2VA-i-4B"]["davis17"] == 78.6 and not rows["Sa2VA-Qwen3-VL-4B-SAM3"]["loads"]
    for name in ("Sa2VA-Qwen3-VL-4B-SAM3", "Sa2VA-LLaVA-1.5-7B"):
        assert rows[name]["hub_id"] == f"HarborYuan/{name}"
    out, err = run(capsys, "models")
    assert all(name in out for name in rows) and "model card" in err


def test_zoo_names_stand_for_hub_ids() -> None:
    assert zoo.resolve("sa2va-4b") == "ByteDance/Sa2VA-4B"
    assert zoo.resolve("someone/else") == "someone/else"
    Path("Sa2VA-4B").mkdir()
    assert zoo.resolve("Sa2VA-4B") == "Sa2VA-4B"


def test_convert_there_and_back(capsys: pytest.CaptureFixture[str], model: str) -> None:
    record = json.loads(run(capsys, "convert", model, "native", "--json")[0])
    assert record["layout"] == "native"
    _, err = run(capsys, "convert", "native", "back", "--to", "released")
    assert "released layout" in err
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (model, "back"))
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    assert before.keys() != load_file("native/model.safetensors").keys()


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    report = json.loads(run(capsys, "doctor", "--json")[0])
    assert report["ok"] and [check["error"] for check in report["checks"]] == [None] * len(doctor.CHECKS)
    assert (
        report["versions"]["torch"] and report["devices"]["default"] and "libx264 yes" in report["codecs"]["encoders"]
    )

    def broken() -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(doctor, "CHECKS", {"good": lambda: None, "bad": broken})
    monkeypatch.setattr(doctor, "_version", lambda package: None if package == "supervision" else "1")
    out, err = run(capsys, "doctor", code=1)
    assert "pip install 'sa2va[vision]'" in out
    assert "ok  good" in out and "FAILED  bad" in out and "no luck" in out and "error: " in err


def test_doctor_says_what_makes_each_start_slow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {})
    for keeps_none, kept in ((True, "nowhere"), (True, __file__), (False, "nowhere")):
        monkeypatch.setattr("sys.dont_write_bytecode", keeps_none)
        monkeypatch.setattr(doctor, "cache_from_source", lambda _, kept=kept: kept)
        told = "unset PYTHONDONTWRITEBYTECODE" in json.loads(run(capsys, "doctor", "--json")[0])["versions"]["python"]
        assert told == (keeps_none and kept == "nowhere")


# ----------------------------------------------------------------------------------------------------- options


def test_option_texts() -> None:
    assert options.parse_key_frames("first") == "first" and options.parse_key_frames("4,0,12") == [4, 0, 12]
    assert [options.parse_bound("end", text) for text in ("250", "2.5", "10s", "0.5s")] == [250, 2.5, 10.0, 0.5]
    assert isinstance(options.parse_bound("end", "10s"), float) and isinstance(options.parse_bound("end", "250"), int)
    assert options.parse_box("1,2.5,3,4") == (1.0, 2.5, 3.0, 4.0)
    assert options.VideoOptions().sampling == {}
    some = options.VideoOptions(stride=3, start="5", end="9s", max_frames=7)
    assert some.sampling == {"stride": 3, "start": 5, "end": 9.0, "max_frames": 7}
    assert options.parse_kinds("masks, json,masks", ["masks", "json"], ()) == ["masks", "json"]
