"""The examples on the page: the picture and the clip of ``examples/``, with requests that show what can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
#: A wheel carries the files beside this module; a checkout has them in its ``examples/``.
_PLACES = (HERE / "examples", HERE.parents[2] / "examples")


@dataclass(frozen=True)
class Example:
    """A request about a file of ``examples/``. ``mode`` is the name of its tool on the page."""

    file: str
    mode: str
    text: str


PICTURE, CLIP = "shapes.png", "shapes.mp4"
PICTURE_EXAMPLES = (
    Example(PICTURE, "Find", "the yellow cloud, something with wheels, the letter Z"),
    Example(PICTURE, "Ask", "What color is the car?"),
    Example(PICTURE, "Find", "the purple dog"),
    Example(PICTURE, "Describe", "everything in the picture"),
)
CLIP_EXAMPLES = (
    Example(CLIP, "Find", "the orange hat"),
    Example(CLIP, "Ask", "What color is the hat?"),
)


def example_file(name: str) -> Path:
    """Where a file of the examples is.

    Raises:
        FileNotFoundError: it is nowhere.
    """
    for place in _PLACES:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(f"the example {name} is neither in {' nor in '.join(map(str, _PLACES))}")
