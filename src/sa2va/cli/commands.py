"""The application: every command with its examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from sa2va.cli.batch import batch
from sa2va.cli.caption import caption
from sa2va.cli.chat import chat
from sa2va.cli.convert import convert
from sa2va.cli.data import data
from sa2va.cli.demo import demo
from sa2va.cli.describe import describe
from sa2va.cli.doctor import doctor
from sa2va.cli.eval import evaluation
from sa2va.cli.merge import merge
from sa2va.cli.models import models
from sa2va.cli.segment import segment
from sa2va.cli.serve import serve
from sa2va.cli.track import track
from sa2va.cli.train import train

app = typer.Typer(
    name="sa2va",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from sa2va import __version__

        typer.echo(f"sa2va {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Ask about images and videos; get text and pixel-exact masks back.

    A model is a hub id, a name from [bold]sa2va models[/bold], or a folder. Name it with
    [bold]--model[/bold], or once for all with [bold]export SA2VA_MODEL=Sa2VA-4B[/bold]. Weights
    are downloaded at first use; code never is.
    """


def _register(command: Callable, *examples: str) -> None:
    shown = [f"[cyan]$ sa2va {example}[/cyan]" for example in examples]
    title = "[bold]Examples[/bold]" if len(shown) > 1 else "[bold]Example[/bold]"
    app.command(epilog="\n\n".join([title, *shown]))(command)


_register(
    segment,
    'segment street.jpg "the man in red" "the dog" -m Sa2VA-4B -o out',
    'segment street.jpg "what could bark?" -m Sa2VA-4B -o out.png',
)
_register(
    track,
    'track clip.mp4 "the red car" "the dog" -m Sa2VA-4B -o out',
    'track clip.mp4 "the dog" -m Sa2VA-4B -o dog.mp4 --start 10s --end 20s',
    'track long.mp4 "the dog" -m Sa2VA-4B -o out --save masks --resume',
)
_register(
    chat,
    'chat street.jpg "Who is crossing? Show me." -m Sa2VA-4B',
    "chat street.jpg -m Sa2VA-4B",
    'chat - "What is a segmentation mask?" -m Sa2VA-4B',
)
_register(caption, "caption street.jpg -m Sa2VA-4B -o out")
_register(
    describe,
    "describe street.jpg --box 100,50,260,300 -m Sa2VA-4B",
    "describe street.jpg --mask dog.png --mask car.png -m Sa2VA-4B",
)
_register(demo, "demo", "demo --model Sa2VA-4B --port 8080", "demo --server http://127.0.0.1:8000")
_register(
    batch,
    'batch pictures/ "the red car" "the dog" -m Sa2VA-4B -o out --to coco',
    'batch "shots/*.jpg" --question "What is wrong here?" -m Sa2VA-4B -o out --overlays',
    "batch rows.parquet -m Sa2VA-4B -o out --to parquet --workers 8 --resume",
)
_register(
    serve,
    "serve -m Sa2VA-4B",
    "SA2VA_API_KEY=... sa2va serve -m Sa2VA-4B --host 0.0.0.0 --allow-url 'https://images.example.com/*'",
)
_register(models, "models", "models --json")
_register(convert, "convert ByteDance/Sa2VA-4B ./sa2va-4b", "convert ./my-finetune ./for-upstream --to released")
_register(merge, "merge runs/finetune/adapter ./merged", "merge ./adapter ./merged --base Sa2VA-4B --to released")
_register(doctor, "doctor", "doctor --json > report.json")
_register(
    train,
    "train finetune --data ./mine --model Sa2VA-4B",
    "train sa2va-internvl3-2b --data ./data batch_size=1 accumulation=16",
    "train run.yaml steps=100 --dry-run",
)
app.add_typer(evaluation, name="eval")
app.add_typer(data, name="data")
