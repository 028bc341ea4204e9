"""``sa2va segment``: find what phrases describe in a picture."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, cast

from sa2va.cli import arguments
from sa2va.cli.console import Screen, command

if TYPE_CHECKING:
    from sa2va.results.answer import Answer


@command
def segment(
    screen: Screen,
    source: arguments.Source,
    phrases: arguments.Phrases,
    *,
    output: arguments.OutputOptions,
    masks: arguments.MaskOptions,
    looks: arguments.PictureOptions,
    model: arguments.Model = None,
    loading: arguments.Loading,
    max_new_tokens: arguments.MaxNewTokens = 2048,
    check_presence: arguments.CheckPresence = False,
) -> None:
    """Find what phrases or questions describe, as masks.

    All phrases share one look at the picture. A video or a folder of frames is
    followed as by [bold]sa2va track[/bold], with its defaults. What the model does not find is
    said, never made up.
    """
    from sa2va.cli.output import plan_output, report
    from sa2va.cli.track import follow
    from sa2va.media.open import Picture, open_media

    arguments.check_phrases(phrases)
    media = open_media(source)
    if not isinstance(media, Picture):
        looks.check_unused()
        follow(
            screen,
            source,
            media,
            phrases,
            output=output,
            video=arguments.VideoOptions(),
            masks=masks,
            model=model,
            loading=loading,
            max_new_tokens=max_new_tokens,
            check_presence=check_presence,
        )
        return
    name = arguments.model_name(model)
    plan = plan_output(source, media, output)
    sa2va = arguments.load_model(screen, name, loading)
    started = perf_counter()
    options = {
        "max_new_tokens": max_new_tokens,
        "check_presence": check_presence,
        **masks.keywords,
        **looks.keywords,
    }
    answers = cast("list[Answer]", sa2va.segment(media, phrases, **options))
    report(screen, plan, media, answers, source=source, model=name, started=started, wanted=phrases)
