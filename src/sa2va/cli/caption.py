"""``sa2va caption``: describe a picture or a clip, with masks."""

from __future__ import annotations

from time import perf_counter

from sa2va.cli import arguments
from sa2va.cli.console import Screen, command


@command
def caption(
    screen: Screen,
    source: arguments.Source,
    *,
    output: arguments.OutputOptions,
    masks: arguments.MaskOptions,
    model: arguments.Model = None,
    loading: arguments.Loading,
    max_new_tokens: arguments.MaxNewTokens = 2048,
) -> None:
    """Describe a picture or a short clip, with a mask for each thing the text names."""
    from sa2va.cli.output import plan_output, report
    from sa2va.media.open import open_media

    name = arguments.model_name(model)
    media = open_media(source)
    plan = plan_output(source, media, output)
    sa2va = arguments.load_model(screen, name, loading)
    started = perf_counter()
    answer = sa2va.caption(media, max_new_tokens=max_new_tokens, **masks.keywords)
    report(screen, plan, media, [answer], source=source, model=name, started=started)
