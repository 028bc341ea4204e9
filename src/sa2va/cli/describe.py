"""``sa2va describe``: describe marked regions of a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from sa2va.cli import arguments
from sa2va.cli.console import Screen, command, printable

if TYPE_CHECKING:
    import numpy as np


@command
def describe(
    screen: Screen,
    source: Annotated[str, typer.Argument(metavar="SOURCE", show_default=False, help="Picture.")],
    *,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X0,Y0,X1,Y1", show_default=False, help="Region as a box in pixels; may be repeated."),
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Region as a picture of the same size: white, opaque, or a palette index above 0. May be repeated.",
        ),
    ] = None,
    model: arguments.Model = None,
    loading: arguments.Loading,
    max_new_tokens: arguments.MaxNewTokens = 2048,
) -> None:
    """Describe marked parts of a picture, one text each: boxes first, then masks.

    For models built on InternVL; the others read no regions.
    """
    from sa2va.cli.output import note_on_tiny
    from sa2va.media.open import load_image

    name = arguments.model_name(model)
    named = [(f"box {text}", arguments.parse_box(text)) for text in box or ()]
    named += [(f"mask {path}", read_mask(path)) for path in mask or ()]
    if not named:
        raise ValueError("nothing is marked; use --box x0,y0,x1,y1 or --mask FILE, as often as you like")
    image = load_image(source)
    sa2va = arguments.load_model(screen, name, loading)
    texts = sa2va.describe(image, [region for _, region in named], max_new_tokens=max_new_tokens)
    regions = [{"region": region, "text": text} for (region, _), text in zip(named, texts, strict=True)]
    if screen.json:
        screen.emit({"source": source, "model": name, "regions": regions})
    for region in regions:
        screen.result(Text.assemble((f"{printable(region['region'])}: ", "cyan"), printable(region["text"])))
    note_on_tiny(screen, name, ())


def read_mask(path: Path) -> np.ndarray:
    """A mask from a picture file: bool (H, W).

    A palette picture's index above 0 is inside, a transparent picture's opaque part, any other's lighter half (from
    half of its brightest value, so that 0/1 and 0/255 files both work).

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no picture.
    """
    import numpy as np

    from sa2va.media.image import MAX_PIXELS, open_picture

    if not path.is_file():
        raise ValueError(f"--mask {path}: no such file")
    with open_picture(str(path), str(path), MAX_PIXELS) as picture:
        if picture.mode == "P":
            return np.asarray(picture) > 0
        grey = picture.getchannel("A") if "A" in picture.getbands() else picture.convert("L")
    values = np.asarray(grey)
    return values > values.max() / 2
