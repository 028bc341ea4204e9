"""Where results go: never over what they are made from, nowhere that cannot be written, and errors name the file."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sa2va import Frame, Mask, Sa2VA, Segment, Track
from sa2va.atomic import check_target, replacing, sole_writer
from sa2va.checkpoint.conversion import convert
from sa2va.cli import main
from sa2va.writers import WRITERS, VideoEncoder

SIZE = (48, 64)
NOISE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


def track(source: Path | None = None, frames: int = 3) -> Track:
    return Track(pairs(frames), size=SIZE, fps=10, source=source, total=frames)


def pairs(count: int) -> Iterator[tuple[Frame, np.ndarray]]:
    """Objects that nobody computed, over noise, which no codec makes small."""
    mask = Mask.from_array(NOISE[..., 0] > 127)
    for index in range(count):
        yield Frame(index, index / 10, SIZE, (Segment(1, "a dog", (mask,), 0.9, 0.9),)), NOISE


def clip(path: Path) -> Path:
    track().save(path)
    return path


def frames(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        Image.fromarray(NOISE).save(folder / f"shot-{number}.png")
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestOverTheSource:
    def test_a_video_over_its_own_file_however_it_is_spelt(self, tmp_path, monkeypatch):
        source = clip(tmp_path / "a.mp4")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "link.mp4").symlink_to(source)
        os.link(source, tmp_path / "hard.mp4")
        (tmp_path / "sub").mkdir()
        before = contents(tmp_path)
        for target in ("a.mp4", "./sub/../a.mp4", "link.mp4", "hard.mp4", str(source)):
            with pytest.raises(ValueError, match=r"written over its own source .*a\.mp4"):
                track(source).save(target)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("kind", WRITERS)
    def test_no_writer_writes_into_the_folder_of_frames(self, tmp_path, kind):
        source = frames(tmp_path / "frames")
        before = contents(source)
        inside = {"json": source / "shot-0.png", "jsonl": source / "shot-1.png"}.get(kind, source)
        target = inside if inside.is_file() or not WRITERS[kind].default_name.count(".") else source / "shot-2.png"
        with pytest.raises(ValueError, match="own source") as caught:
            WRITERS[kind](target, size=SIZE, source=source)
        assert str(target) in str(caught.value) and str(source) in str(caught.value)
        assert contents(source) == before

    def test_a_new_file_beside_the_frames_and_masks_beside_a_video_are_no_harm(self, tmp_path):
        source = frames(tmp_path / "frames")
        track(source).save(source / "masks.json", source / "new")
        video = clip(tmp_path / "own" / "a.mp4")
        track(video).save(tmp_path / "own")
        assert (source / "new" / "00002.png").exists() and (tmp_path / "own" / "00002.png").exists()

    def test_json_does_not_replace_the_list_of_objects_of_masks(self, tmp_path):
        with pytest.raises(ValueError, match=r"objects\.json has the name of a record"):
            track().save(tmp_path / "masks", tmp_path / "masks" / "objects.json")
        assert not (tmp_path / "masks").exists()

    def test_sound_is_not_taken_from_the_file_that_is_written(self, tmp_path):
        source = clip(tmp_path / "a.mp4")
        with pytest.raises(ValueError, match="own source"):
            VideoEncoder(source, size=SIZE, audio_from=source)

    @pytest.mark.parametrize(
        "arguments",
        [
            ("segment", "a.png", "the dog", "-o", "a.png"),
            ("segment", "a.png", "the dog", "-o", "objects/../a.png", "--overwrite"),
            ("segment", "overlay.png", "the dog", "-o", ".", "--overwrite"),
            ("segment", "objects/001-dog.png", "the dog", "-o", ".", "--save", "objects", "--overwrite"),
            ("track", "clip.mp4", "the dog", "-o", "clip.mp4", "--overwrite"),
            ("track", "frames", "the dog", "-o", "frames", "--overwrite"),
            ("caption", "a.png", "-o", "a.png", "--overwrite"),
            ("chat", "a.png", "What is it?", "-o", "a.png", "--overwrite"),
            ("convert", "tiny", "tiny"),
            ("eval", "tiny", "synthetic", "--data", "frames", "-o", "frames"),
            ("eval", "tiny", "synthetic", "--data", ".", "-o", "frames"),
            ("data", "preview", ".", "-o", "frames/shot-1.png"),
        ],
        ids=lambda arguments: " ".join(arguments[:1] + arguments[-3:]),
    )
    def test_no_command_does_either_and_none_loads_a_model_first(
        self, tmp_path, monkeypatch, capsys, arguments, no_model: None
    ):
        monkeypatch.chdir(tmp_path)
        for name in ("a.png", "overlay.png", "objects/001-dog.png", "tiny/config.json"):
            Path(name).parent.mkdir(exist_ok=True)
            Image.fromarray(NOISE).save(name, "PNG")
        frames(Path("frames"))
        clip(Path("clip.mp4"))
        before = contents(tmp_path)
        assert main([*arguments]) == 2
        assert "over its own source" in capsys.readouterr().err
        assert contents(tmp_path) == before

    def test_a_checkpoint_is_not_converted_into_itself(self, checkpoint: Callable[[str], Path], tmp_path):
        source = checkpoint("iv25_qwen2")
        (tmp_path / "link").symlink_to(source)
        with pytest.raises(ValueError, match="own source"):
            convert(source, tmp_path / "link")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setenv("SA2VA_MODEL", "tiny")
    monkeypatch.setattr("sa2va.Sa2VA.from_pretrained", refuse)


class TestNoRoom:
    def test_a_read_only_folder_is_named_before_any_work(self, tmp_path, monkeypatch, capsys, no_model: None):
        Image.fromarray(NOISE).save(tmp_path / "a.png")
        clip(tmp_path / "clip.mp4")

        def refuse(dir: Any = None, **_: Any) -> None:
            raise OSError(errno.EROFS, "Read-only file system", f"{dir}/tmpabc")

        monkeypatch.setattr("sa2va.atomic.tempfile.TemporaryFile", refuse)
        with pytest.raises(OSError, match="Read-only") as caught:
            check_target(tmp_path / "new" / "out.mp4")
        assert caught.value.filename == str(tmp_path)
        for command in ("segment", "track"):
            source = tmp_path / ("a.png" if command == "segment" else "clip.mp4")
            assert main([command, str(source), "the dog", "-o", str(tmp_path / "new" / "out")]) == 2
            assert f"error: read-only file system: {tmp_path}\n" in capsys.readouterr().err

    @pytest.mark.parametrize("kind", WRITERS)
    def test_a_full_disk_is_told_with_the_files_name(self, tmp_path, kind, no_room):
        target = tmp_path / WRITERS[kind].default_name

        def write() -> None:
            with WRITERS[kind](target, size=SIZE, fps=10) as writer:
                for frame, pixels in pairs(20):
                    writer.write(frame, pixels)

        with pytest.raises(OSError, match="File too large") as caught, no_room(300):
            write()
        assert Path(caught.value.filename).relative_to(tmp_path).parts[0] == target.name
        assert not [path for path in tmp_path.rglob(".*") if path.is_file()]

    def test_a_converted_checkpoint_is_named_too(self, checkpoint: Callable[[str], Path], tmp_path, no_room):
        source = checkpoint("iv25_qwen2")  # written while there is room
        with pytest.raises(OSError, match="File too large") as caught, no_room(2**15):
            convert(source, tmp_path / "native")
        assert caught.value.filename == str(tmp_path / "native")

    def test_a_saved_model_and_processor_too(self, sa2va: Sa2VA, tmp_path, no_room):
        for name, part in {"model": sa2va.model, "processor": sa2va.processor}.items():
            with pytest.raises(OSError, match="File too large") as caught, no_room(300):
                part.save_pretrained(tmp_path / name)
            assert str(caught.value.filename).startswith(str(tmp_path / name))

    def test_lines_of_a_file_that_grows_in_place_stay_whole(self, tmp_path, no_room):
        frame, pixels = next(pairs(1))
        writer = WRITERS["jsonl"](tmp_path / "a.jsonl", size=SIZE, fps=10)
        writer.write(frame, pixels)
        before = contents(tmp_path)
        with no_room(writer.path.stat().st_size + 10), pytest.raises(OSError, match="File too large"):
            writer.write(replace(frame, index=1), pixels)
        writer.close(partial=True)
        assert contents(tmp_path) == before

    def test_an_error_about_another_file_keeps_its_name(self, tmp_path):
        with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "out.json"):
            (tmp_path / "gone" / "source.png").read_bytes()
        assert caught.value.filename == str(tmp_path / "gone" / "source.png")


class TestTwoWriters:
    def test_one_holds_what_grows_in_place_until_it_ends(self, tmp_path):
        frame, pixels = next(pairs(1))
        first, second = (WRITERS["jsonl"](tmp_path / "a.jsonl", size=SIZE, fps=10) for _ in range(2))
        first.write(frame, pixels)
        before = contents(tmp_path)
        with pytest.raises(ValueError, match=r"another process is writing to .*a\.jsonl"):
            second.write(frame, pixels)
        second.abort()
        first.close()
        assert contents(tmp_path) == before
        with WRITERS["jsonl"](tmp_path / "a.jsonl", size=SIZE, fps=10) as third:
            third.write(frame, pixels)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
    def test_a_forked_child_that_lives_on_holds_nothing(self, tmp_path):
        with sole_writer(tmp_path):
            child = os.fork()
            if not child:
                (tmp_path / "child").touch()
                time.sleep(600)
        while not (tmp_path / "child").exists():
            time.sleep(0.01)
        with sole_writer(tmp_path):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    def test_whole_files_are_those_of_the_last(self, tmp_path):
        first, second = (WRITERS["overlay"](tmp_path / "a.mp4", size=SIZE, fps=10) for _ in range(2))
        for frame, pixels in pairs(3):
            first.write(frame, pixels)
            second.write(frame, pixels)
        first.close()
        whole = (tmp_path / "a.mp4").read_bytes()
        second.close()
        assert (tmp_path / "a.mp4").read_bytes() == whole and os.listdir(tmp_path) == ["a.mp4"]

    def test_a_second_track_into_a_folder_is_refused_and_changes_nothing(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        clip(Path("clip.mp4"))
        asked = ["track", "clip.mp4", "the dog", "--model", "tiny", "-o", "out", "--save", "masks,jsonl"]
        assert main(asked) == 0
        before = contents(Path("out"))
        capsys.readouterr()
        with sole_writer(Path("out")):
            assert main([*asked, "--overwrite"]) == 2
        assert "error: another process is writing to out" in capsys.readouterr().err
        assert contents(Path("out")) == before
        assert main([*asked, "--overwrite"]) == 0

    def test_of_two_conversions_the_first_to_end_stays(self, checkpoint: Callable[[str], Path], tmp_path, monkeypatch):
        source, target = checkpoint("iv25_qwen2"), tmp_path / "native"

        def meanwhile(*_: Any, **__: Any) -> None:
            monkeypatch.undo()
            convert(source, target)

        monkeypatch.setattr("sa2va.checkpoint.conversion.copy_companions", meanwhile)
        with pytest.raises(OSError, match="not empty") as caught:
            convert(source, target)
        assert caught.value.filename == str(target)
        assert Sa2VA.from_pretrained(target) and os.listdir(tmp_path) == ["native"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
class TestKilled:
    @pytest.mark.parametrize("kind", WRITERS)
    def test_the_next_run_removes_what_a_killed_one_left(self, tmp_path, kind):
        target = tmp_path / WRITERS[kind].default_name
        child = os.fork()
        if not child:
            writer = WRITERS[kind](target, size=SIZE, fps=10)
            for frame, pixels in pairs(20):
                writer.write(frame, pixels)
            with replacing(target / "00020.png" if writer.resumable and target.is_dir() else target):
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert any(path.name.startswith(".") for path in tmp_path.rglob("*"))
        with WRITERS[kind](target, size=SIZE, fps=10) as writer:
            for frame, pixels in pairs(3):
                writer.write(frame, pixels)
        assert not any(path.name.startswith(".") for path in tmp_path.rglob("*"))

    def test_what_is_being_written_and_what_is_not_ours_stays(self, tmp_path):
        (tmp_path / ".a-0123456789ab.mp4").touch()
        first, second = (WRITERS["overlay"](tmp_path / "a.mp4", size=SIZE, fps=10) for _ in range(2))
        for frame, pixels in pairs(3):
            first.write(frame, pixels)
        WRITERS["overlay"](tmp_path / "a.mp4", size=SIZE, fps=10).abort()
        first.close()
        second.abort()
        assert sorted(os.listdir(tmp_path)) == [".a-0123456789ab.mp4", "a.mp4"]
