"""``sa2va segment``, ``caption`` and ``describe``: one request about an image or a clip."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, cast

import typer

from sa2va.cli import arguments
from sa2va.cli.arguments import Dtype
from sa2va.cli.command import command
from sa2va.cli.console import Screen

if TYPE_CHECKING:
    import numpy as np

    from sa2va.results.answer import Answer


@command
def segment(
    screen: Screen,
    source: arguments.Source,
    phrases: arguments.Phrases,
    out: arguments.Out = None,
    save: arguments.Save = None,
    overwrite: arguments.Overwrite = False,
    threshold: arguments.Threshold = 0.5,
    tidy: arguments.Tidy = None,
    model: arguments.Model = None,
    device: arguments.Device = "auto",
    dtype: arguments.Precision = Dtype.AUTO,
    quantize: arguments.Quantization = None,
    device_map: arguments.DeviceMap = None,
    max_new_tokens: arguments.MaxNewTokens = 2048,
) -> None:
    """Find what phrases or questions describe, as masks.

    All phrases share one look at the picture. A video or a folder of frames is
    followed as by [bold]sa2va track[/bold], with its defaults. What the model does not find is
    said, never made up.
    """
    from sa2va.cli.reporter import Reporter
    from sa2va.media.open import Picture, open_media

    arguments.check_phrases(phrases)
    loading = arguments.Loading(device, dtype, quantize, device_map)
    media = open_media(source)
    if not isinstance(media, Picture):
        from sa2va.cli.video import TrackRequest, follow

        task = TrackRequest(source, phrases, model, threshold, tidy, max_new_tokens, loading)
        follow(screen, task, out=out, save=save, overwrite=overwrite)
        return
    from sa2va.cli.model_loading import load_model, model_name
    from sa2va.cli.outputs import plan_pictures

    masks, name = arguments.mask_options(threshold, tidy), model_name(model)
    plan = plan_pictures(source, out, save, overwrite=overwrite)
    sa2va = load_model(screen, name, loading)
    started = perf_counter()
    answers = cast("list[Answer]", sa2va.segment(media, phrases, max_new_tokens=max_new_tokens, **masks))
    reporter = Reporter(screen, media, source, name)
    reporter.report(answers, plan, started=started, wanted=phrases)


@command
def caption(
    screen: Screen,
    source: arguments.Source,
    out: arguments.Out = None,
    save: arguments.Save = None,
    overwrite: arguments.Overwrite = False,
    threshold: arguments.Threshold = 0.5,
    tidy: arguments.Tidy = None,
    model: arguments.Model = None,
    device: arguments.Device = "auto",
    dtype: arguments.Precision = Dtype.AUTO,
    quantize: arguments.Quantization = None,
    device_map: arguments.DeviceMap = None,
    max_new_tokens: arguments.MaxNewTokens = 2048,
) -> None:
    """Describe a picture or a short clip, with a mask for each thing the text names."""
    from sa2va.cli.model_loading import load_model, model_name
    from sa2va.cli.outputs import plan_answers
    from sa2va.cli.reporter import Reporter
    from sa2va.media.open import Picture, open_media

    masks, name = arguments.mask_options(threshold, tidy), model_name(model)
    loading = arguments.Loading(device, dtype, quantize, device_map)
    media = open_media(source)
    plan = plan_answers(source, out, save, video=not isinstance(media, Picture), overwrite=overwrite)
    sa2va = load_model(screen, name, loading)
    started = perf_counter()
    answer = sa2va.caption(media, max_new_tokens=max_new_tokens, **masks)
    Reporter(screen, media, source, name).report([answer], plan, started=started)


@command
def describe(
    screen: Screen,
    source: Annotated[str, typer.Argument(metavar="SOURCE", show_default=False, help="Picture.")],
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
    device: arguments.Device = "auto",
    dtype: arguments.Precision = Dtype.AUTO,
    quantize: arguments.Quantization = None,
    device_map: arguments.DeviceMap = None,
    max_new_tokens: arguments.MaxNewTokens = 2048,
) -> None:
    """Describe marked parts of a picture, one text each: boxes first, then masks.

    For models built on InternVL; the others read no regions.
    """
    from sa2va.cli.answers import labelled, note_on_tiny
    from sa2va.cli.model_loading import load_model, model_name
    from sa2va.media.open import load_image

    name, loading = model_name(model), arguments.Loading(device, dtype, quantize, device_map)
    named = [(f"box {text}", arguments.box(text)) for text in box or ()]
    named += [(f"mask {path}", read_mask(path)) for path in mask or ()]
    if not named:
        raise ValueError("nothing is marked; use --box x0,y0,x1,y1 or --mask FILE, as often as you like")
    image = load_image(source)
    sa2va = load_model(screen, name, loading)
    texts = sa2va.describe(image, [region for _, region in named], max_new_tokens=max_new_tokens)
    regions = [{"region": region, "text": text} for (region, _), text in zip(named, texts, strict=True)]
    if screen.json:
        screen.emit({"source": source, "model": name, "regions": regions})
    for region in regions:
        screen.result(labelled(region["region"], region["text"]))
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
