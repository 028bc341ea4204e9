"""A custom handler for Hugging Face Inference Endpoints: pictures and words in, masks and words out.

Put this file and ``requirements.txt`` beside the weights in a model repository; the endpoint does the rest. Pictures
come in the request: nothing is fetched for a client.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

from PIL import Image

from sa2va import Answer, Sa2VA, Segment

_OPTIONS = {"threshold", "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed"}


class EndpointHandler:
    """Answers requests with the model in a folder.

    Args:
        path: the model repository, as the endpoint has downloaded it.
    """

    def __init__(self, path: str = "tiny") -> None:
        self._model = Sa2VA.from_pretrained(path)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]] | dict[str, Any]:
        """Answer one request.

        Args:
            data: ``inputs`` is a picture: its file in base64 (a data URL, too), or what the endpoint has decoded from a
                binary body. ``parameters`` has one of ``phrases`` (text or a list), ``question`` and ``caption``
                (true), and may have ``threshold``, ``max_new_tokens``, ``temperature``, ``top_p``, ``top_k``,
                ``repetition_penalty`` and ``seed``.

        Returns:
            for phrases what the task image-segmentation returns, ``[{"label", "score", "mask"}, ...]``, with masks as
            PNGs in base64; for the others ``{"generated_text", "segments"}``.

        Raises:
            ValueError: there is no picture, or the parameters are not as above.
        """
        parameters = dict(data.get("parameters") or {})
        options = {name: parameters.pop(name) for name in _OPTIONS & set(parameters)}
        if len(parameters) != 1 or not set(parameters) <= {"phrases", "question", "caption"}:
            raise ValueError(f"parameters need one of phrases, question and caption=true; got {sorted(parameters)}")
        [(kind, asked)] = parameters.items()
        with self._model.open(_picture(data.get("inputs"))) as scene:
            if kind == "phrases":
                answers = scene.segment([asked] if isinstance(asked, str) else asked, **options)
                return [_segment(segment) for answer in answers for segment in answer]
            answer = scene.chat(asked, **options) if kind == "question" else scene.caption(**options)
        return _text(answer)


def _text(answer: Answer) -> dict[str, Any]:
    return {"generated_text": answer.text, "segments": [_segment(segment) for segment in answer]}


def _segment(segment: Segment) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(segment.mask.array).save(file, "PNG")
    return {
        "label": segment.phrase,
        "score": segment.score,
        "mask": base64.b64encode(file.getvalue()).decode(),
        "box": segment.mask.box,
        "span": segment.span,
    }


def _picture(given: Any) -> Image.Image | bytes:
    if isinstance(given, Image.Image | bytes):
        return given
    if not isinstance(given, str):
        raise ValueError(f"inputs is a picture's file in base64; got {type(given).__name__}")
    try:
        return base64.b64decode(given.partition(",")[2] if given.startswith("data:") else given, validate=True)
    except binascii.Error as error:
        raise ValueError(f"inputs is a picture's file in base64 (no URL): {error}") from error
