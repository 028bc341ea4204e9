"""What tests of the server send, and what they hold of one that runs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import httpx2
import openai
from PIL import Image

from sa2va.media.open import open_media

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURE = (EXAMPLES / "shapes.png").read_bytes()
VIDEO = (EXAMPLES / "shapes.mp4").read_bytes()


@cache
def clip(frames: int) -> bytes:
    """A short animation; `tiny` sees an orange hat in the video it is from."""
    with open_media(EXAMPLES / "shapes.mp4", max_frames=frames) as video:
        first, *rest = [Image.fromarray(frame.pixels) for frame in video]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=125)
    return file.getvalue()


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def about_picture(question: str, content: bytes = PICTURE) -> list[dict[str, Any]]:
    picture = {"type": "image_url", "image_url": {"url": data_url(content)}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": question}]}]


@dataclass
class Running:
    """A server that runs: where it is, clients of it, and what it told at its start."""

    url: str
    folder: Path
    notes: list[str] = field(default_factory=list)
    key: str = "none"

    @property
    def http(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60, headers={"Authorization": f"Bearer {self.key}"})

    @cached_property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=60)

    def metric(self, name: str) -> float:
        with self.http as client:
            lines = client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[-1])
