"""The same requests for programs: named endpoints for ``gradio_client`` and, by a flag, tools for MCP clients."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sa2va.demo.backend import AskOptions, Backend
from sa2va.media.image import load_image
from sa2va.media.open import open_media
from sa2va.results.answer import Answer
from sa2va.visualization.overlay import overlay


def add_endpoints(backend: Backend) -> None:
    """Add ``/segment``, ``/chat`` and ``/track`` to the page that is being built."""

    def segment(image: str, phrases: list[str], threshold: float = 0.5) -> tuple[dict[str, Any], Image.Image]:
        """Find what phrases describe in a picture, as pixel-exact masks.

        Args:
            image: the picture.
            phrases: what to find, such as ["the red car", "the dog"]; each is looked for by itself.
            threshold: probability above which a pixel belongs to an object, above 0 and below 1.

        Returns:
            for each phrase the objects with their masks as COCO run lengths, scores and boxes, or why there is none;
            and the picture with the masks drawn over it.
        """
        picture, phrases = _read(image), _listed(phrases)
        medium = backend.open_picture(picture)
        try:
            answers = medium.segment(phrases, AskOptions(threshold=threshold))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        finally:
            medium.close()
        named = [{"phrase": phrase, **answer.record} for phrase, answer in zip(phrases, answers, strict=True)]
        return {"size": [picture.height, picture.width], "answers": named}, _drawn(picture, answers)

    def chat(
        image: str, question: str, history: list[dict[str, str]] | None = None, max_new_tokens: int = 512
    ) -> tuple[dict[str, Any], Image.Image]:
        """Ask anything about a picture. The answer may point at objects, which come as masks.

        Args:
            image: the picture.
            question: the question.
            history: the "history" of the answer before, to continue a conversation about the same picture.
            max_new_tokens: longest answer, in tokens.

        Returns:
            the answer's text, its objects with their masks as COCO run lengths, and the history to go on with; and the
            picture with the masks drawn over it.
        """
        picture = _read(image)
        medium = backend.open_picture(picture)
        options = AskOptions(max_new_tokens=max_new_tokens)
        try:
            answer = medium.chat(question, history or (), options, lambda _: None)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        finally:
            medium.close()
        return answer.record, _drawn(picture, [answer])

    def track(
        video: str, phrases: list[str], start: float = 0.0, end: float | None = None, threshold: float = 0.5
    ) -> tuple[str, str, str, dict[str, str]]:
        """Follow what phrases describe through a video.

        Args:
            video: the video file.
            phrases: what to follow.
            start: seconds to begin at.
            end: seconds to stop before; all of the video if left out.
            threshold: probability above which a pixel belongs to an object, above 0 and below 1.

        Returns:
            the video with the masks drawn over it; a zip of palette PNGs; a file with a line of JSON per frame; and
            why phrases were not found, where they were not.
        """
        path, phrases = Path(video), _listed(phrases)
        folder = Path(tempfile.mkdtemp(dir=path.parent))
        try:
            if end is None:
                with open_media(path) as source:
                    end = float((source.times() or [0.0])[-1]) + 1.0
            medium = backend.open_clip(path, start, end)
            reasons: dict[str, str] = {}
            for step in medium.track(phrases, folder, AskOptions(threshold=threshold)):
                reasons = dict(step.reasons)
            medium.close()
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        finally:
            path.unlink(missing_ok=True)
        return str(folder / "overlay.mp4"), str(folder / "masks.zip"), str(folder / "frames.jsonl"), reasons

    with gr.Row(visible=False):
        picture, phrases, threshold = gr.Image(type="filepath"), gr.JSON(), gr.Number(0.5)
        question, history, tokens = gr.Textbox(), gr.JSON(), gr.Number(512, precision=0)
        video, start, end = gr.Video(), gr.Number(0), gr.Number(None)
        record, drawn = gr.JSON(), gr.Image(format="png")
        film, masks, lines, reasons = gr.Video(), gr.File(), gr.File(), gr.JSON()
        call = gr.Button()
        call.click(segment, [picture, phrases, threshold], [record, drawn], api_name="segment")
        call.click(chat, [picture, question, history, tokens], [record, drawn], api_name="chat")
        call.click(
            track,
            [video, phrases, start, end, threshold],
            [film, masks, lines, reasons],
            api_name="track",
            concurrency_limit=2,
        )


def _listed(phrases: Any) -> list[str]:
    """One phrase or several as a list."""
    return [phrases] if isinstance(phrases, str) else list(phrases or ())


def _read(path: str) -> Image.Image:
    try:
        return load_image(path)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    finally:
        Path(path).unlink(missing_ok=True)


def _drawn(picture: Image.Image, answers: list[Answer]) -> Image.Image:
    return overlay(picture, [segment for answer in answers for segment in answer.segments])
