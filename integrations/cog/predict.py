"""A predictor for Cog and Replicate: pictures and videos in; words, every mask and an overlay out."""

from __future__ import annotations

import os
import tempfile

from cog import BaseModel, BaseRunner, Input, Path
from sa2va import Sa2VA
from sa2va.media.open import is_video
from sa2va.visualization.overlay import overlay


class Output(BaseModel):
    """What came of a request.

    ``segments`` is JSON with ids, phrases, scores and masks as COCO run lengths; of a video in YouTube-VOS' format.
    """

    text: str
    segments: Path
    overlay: Path | None


class Predictor(BaseRunner):
    """Answers requests with the model that the variable SA2VA_MODEL names."""

    def setup(self) -> None:
        self.model = Sa2VA.from_pretrained(os.environ.get("SA2VA_MODEL", "ByteDance/Sa2VA-4B"))

    def run(
        self,
        media: Path = Input(description="A picture or a video."),
        phrases: str = Input(description="What to segment or follow, one phrase per line.", default=""),
        question: str = Input(description="What to ask instead; without either, a caption is written.", default=""),
        threshold: float = Input(description="Probability above which a pixel belongs.", default=0.5, ge=0.0, le=1.0),
        max_new_tokens: int = Input(description="Limit on the length of an answer.", default=512, ge=1, le=2048),
    ) -> Output:
        folder = Path(tempfile.mkdtemp())  # Cog takes files away after it has sent them
        wanted = [line.strip() for line in phrases.splitlines() if line.strip()]
        if wanted and is_video(media):
            return self._follow(media, wanted, folder, threshold=threshold, max_new_tokens=max_new_tokens)
        options = {"threshold": threshold, "max_new_tokens": max_new_tokens}
        with self.model.open(media) as scene:
            if wanted:
                answers = scene.segment(wanted, **options)
            else:
                answers = [scene.chat(question, **options) if question else scene.caption(**options)]
        found = [segment for answer in answers for segment in answer]
        text = "\n".join(answer.reason or answer.text for answer in answers)
        (folder / "segments.json").write_text(f"[{', '.join(answer.to_json() for answer in answers)}]")
        if not found or is_video(media):
            return Output(text=text, segments=folder / "segments.json", overlay=None)
        overlay(media, found).save(folder / "overlay.png")
        return Output(text=text, segments=folder / "segments.json", overlay=folder / "overlay.png")

    def _follow(self, media: Path, phrases: list[str], folder: Path, **options: float) -> Output:
        with self.model.track(media, phrases, **options) as track:
            track.save(folder / "overlay.mp4", folder / "segments.json")
            text = "\n".join(f"{phrase}: {reason}" for phrase, reason in track.reasons.items())
        return Output(text=text, segments=folder / "segments.json", overlay=folder / "overlay.mp4")
