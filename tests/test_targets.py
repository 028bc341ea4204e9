"""Where results go: never over what they are made from, nowhere that cannot be written, and errors name the file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sa2va import Frame, Mask, Segment, Track
from sa2va.atomic import check_target, replacing
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
    def test_a_full_disk_is_told_with_the_files_name(self, tmp_path, kind):
        target = tmp_path / WRITERS[kind].default_name

        def write() -> None:
            with WRITERS[kind](target, size=SIZE, fps=10) as writer:
                for frame, pixels in pairs(20):
                    writer.write(frame, pixels)

        with pytest.raises(OSError, match="File too large") as caught, no_room(300):
            write()
        assert Path(caught.value.filename).relative_to(tmp_path).parts[0] == target.name
        assert not [path for path in tmp_path.rglob(".*") if path.is_file()]

    def test_a_converted_checkpoint_is_named_too(self, checkpoint: Callable[[str], Path], tmp_path):
        source = checkpoint("iv25_qwen2")  # written while there is room
        with pytest.raises(OSError, match="File too large") as caught, no_room(2**15):
            convert(source, tmp_path / "native")
        assert caught.value.filename == str(tmp_path / "native")

    def test_an_error_about_another_file_keeps_its_name(self, tmp_path):
        with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "out.json"):
            (tmp_path / "gone" / "source.png").read_bytes()
        assert caught.value.filename == str(tmp_path / "gone" / "source.png")


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """Files cannot grow beyond so many bytes, as if the disk were full then."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
