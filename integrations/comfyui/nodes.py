"""The nodes. Each is one request to a model of this package, with ComfyUI's values on both sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from comfy_api.v0_0_2 import io
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from sa2va import Answer, Frame, Request, Sa2VA, Segment
from sa2va.inference.memory_policies import MemoryPolicy
from sa2va.inference.options import Refinement
from sa2va.masks import mask_ops
from sa2va.masks.mask_ops import Cleanup
from sa2va.visualization.overlay import ClipOverlay

from . import checkpoint
from .checkpoint import Checkpoint
from .values import Marks, Objects, Progress, as_arrays, as_images, as_masks, as_pictures, phrases_of

_CATEGORY = "Sa2VA"
_Model, _Objects, _History = io.Custom("SA2VA_MODEL"), io.Custom("SA2VA_OBJECTS"), io.Custom("SA2VA_HISTORY")
_Boxes = io.Custom("BOUNDING_BOX")  # by name: ComfyUI's class for it is younger than the API that this pack pins
#: Values of the option ``ask_every`` that are no number.
_ASK_AGAIN = {"never": None, "at cuts": "scene"}
_CLICKS = 'JSON of clicks in pixels: [{"x": 10, "y": 20}, ...]'


def _phrases() -> Any:
    return io.String.Input("phrases", multiline=True, default="", tooltip="What to look for, one phrase a line.")


def _threshold() -> Any:
    tip = "Probability from which a pixel belongs to an object."
    return io.Float.Input("threshold", default=0.5, min=0.01, max=0.99, step=0.01, tooltip=tip)


def _check_presence() -> Any:
    tip = "Believe in a mask only if the model also says, asked for yes or no, that there is such a thing."
    return io.Boolean.Input("check_presence", default=False, tooltip=tip)


def _max_objects() -> Any:
    tip = "Keep at most so many objects, those that are found first; 0 keeps all."
    return io.Int.Input("max_objects", default=0, min=0, max=1000, tooltip=tip)


def _marks(where: str) -> list[Any]:
    return [
        _Boxes.Input("bboxes", optional=True, tooltip=f"Boxes {where}, one object each, instead of phrases."),
        io.String.Input(
            "positive_coords", optional=True, force_input=True, tooltip=f"Clicks on one object {where}. {_CLICKS}"
        ),
        io.String.Input("negative_coords", optional=True, force_input=True, tooltip=f"Clicks beside it. {_CLICKS}"),
    ]


def _found() -> list[Any]:
    return [
        io.Mask.Output(display_name="mask", tooltip="All objects together, one mask for each picture or frame."),
        _Objects.Output(display_name="objects", tooltip="Every object by itself, for Pick and Draw."),
        _Boxes.Output(display_name="bboxes", tooltip="For each picture or frame the boxes of its objects."),
    ]


def _words(default: int) -> list[Any]:
    return [
        io.Int.Input("max_new_tokens", default=default, min=1, max=8192, tooltip="Longest answer, in tokens."),
        io.Float.Input("temperature", default=0.0, min=0.0, max=2.0, step=0.05, tooltip="0 takes the likeliest words."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**63 - 1,
            control_after_generate=False,
            tooltip="Of the words, if the temperature is above 0.",
        ),
    ]


class LoadModel(io.ComfyNode):
    """A checkpoint."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its sockets and widgets."""
        return io.Schema(
            node_id="Sa2VALoadModel",
            display_name="Sa2VA Load Model",
            category=_CATEGORY,
            description="A checkpoint from models/sa2va; or, for a name that is not there, from the Hugging Face hub.",
            inputs=[
                io.Combo.Input("model", options=checkpoint.names(), tooltip="Folders of models/sa2va come first."),
                io.Combo.Input("dtype", options=list(checkpoint.DTYPES), default="auto"),
                io.Combo.Input(
                    "quantization",
                    options=["none", "int8", "nf4"],
                    default="none",
                    tooltip="Of the language model; needs bitsandbytes. Such weights stay on the GPU until unloaded.",
                ),
                io.Combo.Input(
                    "decoder",
                    options=list(checkpoint.DECODERS),
                    default=next(iter(checkpoint.DECODERS)),
                    tooltip="What carries masks through videos: SAM 2's own weights do it better.",
                ),
            ],
            outputs=[_Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: str, dtype: str, quantization: str, decoder: str) -> io.NodeOutput:
        """Load it, so that what is wrong with it shows here."""
        loaded = Checkpoint(model, dtype=dtype, quantization=quantization, decoder=decoder)
        loaded.ready()
        return io.NodeOutput(loaded)


class UnloadModel(io.ComfyNode):
    """Frees a checkpoint's memory in the middle of a workflow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its sockets and widgets."""
        return io.Schema(
            node_id="Sa2VAUnloadModel",
            display_name="Sa2VA Unload Model",
            category=_CATEGORY,
            description="Frees the model's memory once `value` is there, and hands `value` on.",
            inputs=[_Model.Input("model"), io.AnyType.Input("value", tooltip="What the model is to have done before.")],
            outputs=[io.AnyType.Output(display_name="value")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Checkpoint, value: Any) -> io.NodeOutput:
        """Unload it; a later run loads it again."""
        model.unload()
        return io.NodeOutput(value)


class SegmentPicture(io.ComfyNode):
    """Words, or boxes and clicks, to masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its sockets and widgets."""
        return io.Schema(
            node_id="Sa2VASegmentPicture",
            display_name="Sa2VA Segment Picture",
            category=_CATEGORY,
            description="Masks of what phrases describe, or of what boxes or clicks mark, in each picture of a batch.",
            inputs=[
                _Model.Input("model"),
                io.Image.Input("image"),
                _phrases(),
                _threshold(),
                _max_objects(),
                _check_presence(),
                io.Boolean.Input(
                    "instances",
                    default=False,
                    tooltip="A phrase about several things gives an object for each.",
                ),
                io.Boolean.Input("zoom", default=False, tooltip="Look again inside what was found: for small things."),
                io.Combo.Input(
                    "refine",
                    options=["none", *get_args(Refinement)],
                    default="none",
                    tooltip="sam draws each mask again; matting makes soft edges, for cut-outs (hair, fur).",
                ),
                *_marks("in each picture"),
            ],
            outputs=[
                *_found(),
                io.String.Output(display_name="text", tooltip="What the model said, or why it found nothing."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Checkpoint,
        image: Tensor,
        phrases: str,
        threshold: float,
        max_objects: int,
        check_presence: bool,
        instances: bool,
        zoom: bool,
        refine: str,
        bboxes: Any = None,
        positive_coords: str | None = None,
        negative_coords: str | None = None,
    ) -> io.NodeOutput:
        """Segment every picture."""
        marks, wanted = Marks.parse(bboxes, positive_coords, negative_coords), phrases_of(phrases)
        _one_kind(wanted, marks)
        pictures, sa2va, progress = as_pictures(image), model.ready(), Progress(len(image))
        frames, texts = [], []
        options: dict[str, Any] = {"threshold": threshold, "refine": None if refine == "none" else refine}
        if refine == "matting":
            options["matting"] = checkpoint.matting()
        if marks:
            replies = _marked(sa2va, pictures, marks, options)
        else:
            options |= {"check_presence": check_presence, "instances": instances, "zoom": zoom}
            replies = _answers(sa2va, pictures, wanted, options)
        for answers in replies:
            found = [segment for answer in answers for segment in answer.segments]
            frames.append(tuple(replace(segment, id=number) for number, segment in enumerate(found, 1)))
            texts += [answer.reason or answer.text for answer in answers]
            progress.step()
        objects = Objects(tuple(frames), pictures.shape[1:3]).first(max_objects)
        return io.NodeOutput(objects.mask, objects, objects.boxes, "\n".join(texts))


def _one_kind(phrases: Sequence[str], marks: Marks) -> None:
    if bool(phrases) == bool(marks):
        got = "both" if phrases else "neither"
        raise ValueError(f"write what to look for, one phrase a line, or mark it with boxes or clicks; got {got}")


def _answers(
    sa2va: Sa2VA, pictures: np.ndarray, phrases: Sequence[str], options: dict[str, Any]
) -> Iterable[Sequence[Answer]]:
    """What was answered about each picture."""
    for reply in sa2va.answers(Request(picture, phrases=phrases, options=options) for picture in pictures):
        if reply.error is not None:
            raise reply.error
        yield reply.answers


def _marked(sa2va: Sa2VA, pictures: np.ndarray, marks: Marks, options: dict[str, Any]) -> Iterable[Sequence[Answer]]:
    """The same for boxes and clicks."""
    for number, picture in enumerate(pictures):
        with sa2va.open(picture) as scene:
            yield [scene.segment(**prompt, **options) for prompt in marks.prompts(number)]


class SegmentVideo(io.ComfyNode):
    """Words, or boxes and clicks in the first frame, to masks in all frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its sockets and widgets."""
        return io.Schema(
            node_id="Sa2VASegmentVideo",
            display_name="Sa2VA Segment Video",
            category=_CATEGORY,
            description="Follows what phrases describe, or what boxes or clicks mark, through the frames of a video.",
            inputs=[
                _Model.Input("model"),
                io.Image.Input("images", tooltip="The frames, in their order."),
                _phrases(),
                io.Combo.Input(
                    "key_frames",
                    options=["uniform", "first"],
                    default="uniform",
                    tooltip="Frames that the language model sees: spread over the video, or its first ones.",
                ),
                io.Int.Input("num_key_frames", default=5, min=1, max=100, tooltip="How many it sees."),
                io.Combo.Input(
                    "mode",
                    options=["auto", "released", "consistent"],
                    default="auto",
                    tooltip="How masks are carried on: as the checkpoint was made for, or with one of two decoders.",
                ),
                io.Combo.Input(
                    "memory",
                    options=list(get_args(MemoryPolicy)),
                    default="recent",
                    tooltip="What is remembered: near reads least; the last two are for objects lost to sight.",
                ),
                _threshold(),
                _max_objects(),
                _check_presence(),
                io.Combo.Input(
                    "ask_again",
                    options=[*_ASK_AGAIN, "every so many frames"],
                    default="never",
                    tooltip="When phrases are looked for again, so that objects are found that come later.",
                ),
                io.Int.Input("ask_every", default=30, min=2, max=10**6, tooltip="After so many frames, if chosen."),
                *_marks("in the first frame"),
            ],
            outputs=[*_found(), io.String.Output(display_name="text", tooltip="Why phrases were not found.")],
        )

    @classmethod
    def execute(
        cls,
        model: Checkpoint,
        images: Tensor,
        phrases: str,
        key_frames: str,
        num_key_frames: int,
        mode: str,
        memory: str,
        threshold: float,
        max_objects: int,
        check_presence: bool,
        ask_again: str,
        ask_every: int,
        bboxes: Any = None,
        positive_coords: str | None = None,
        negative_coords: str | None = None,
    ) -> io.NodeOutput:
        """Follow it."""
        marks, wanted = Marks.parse(bboxes, positive_coords, negative_coords), phrases_of(phrases)
        _one_kind(wanted, marks)
        pictures, sa2va = as_pictures(images), model.ready()
        options: dict[str, Any] = {"mode": None if mode == "auto" else mode, "memory": memory, "threshold": threshold}
        if marks:
            frames, reasons = _follow(sa2va, pictures, marks, options), {}
        else:
            options |= {"key_frames": key_frames, "num_key_frames": num_key_frames, "check_presence": check_presence}
            options |= {"ask_every": _ASK_AGAIN.get(ask_again, ask_every)}
            with sa2va.track(list(pictures), wanted, **options) as track:
                frames, reasons = _stepped(track, len(pictures)), track.reasons
        objects = Objects(tuple(frame.segments for frame in frames), pictures.shape[1:3]).first(max_objects)
        text = "\n".join(f"{phrase}: {reason}" for phrase, reason in reasons.items())
        return io.NodeOutput(objects.mask, objects, objects.boxes, text)


def _follow(sa2va: Sa2VA, pictures: np.ndarray, marks: Marks, options: dict[str, Any]) -> list[Frame]:
    tracker = sa2va.stream(**options)
    for prompt in marks.prompts(0):
        tracker.add(**prompt)
    return _stepped((tracker.step(picture) for picture in pictures), len(pictures))


def _stepped(frames: Iterable[Frame], total: int) -> list[Frame]:
    progress, done = Progress(total), []
    for frame in frames:
        done.append(frame)
        progress.step()
    return done


class Chat(io.ComfyNode):
    """A conversation, about a picture, a video, or nothing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its sockets and widgets."""
        return io.Schema(
            node_id="Sa2VAChat",
            display_name="Sa2VA Chat",
            category=_CATEGORY,
            description="Answers in words, with masks where they are asked for. `history` continues a conversation.",
            inputs=[
                _Model.Input("model"),
                io.String.Input("question", multiline=True, default=""),
                *_words(1024),
                io.Image.Input("image", optional=True, tooltip="One picture, or the frames of a video."),
                _History.Input("history", optional=True, tooltip="Of the question before, about the same picture."),
            ],
            outputs=[io.String.Output(display_name="text"), _History.Output(display_name="history"), *_found()],
        )

    @classmethod
    def execute(
        cls,
        model: Checkpoint,
        question: str,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        image: Tensor | None = None,
        history: Any = (),
    ) -> io.NodeOutput:
        """Ask it."""
        pictures, progress = _shown(image), Progress(max_new_tokens)
        written = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        answer = model.ready().chat(_medium(pictures), question, history=history, on_text=progress.step, **written)
        return io.NodeOutput(answer.text, answer.history, *_outputs(answer, pictures))


class Caption(io.ComfyNode):
    """A caption whose phrases have masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its sockets and widgets."""
        return io.Schema(
            node_id="Sa2VACaption",
            display_name="Sa2VA Caption",
            category=_CATEGORY,
            description="Describes a picture or video, with a mask for each thing that the caption names.",
            inputs=[
                _Model.Input("model"),
                io.Image.Input("image", tooltip="One picture, or the frames of a video."),
                *_words(1024),
            ],
            outputs=[io.String.Output(display_name="text"), *_found()],
        )

    @classmethod
    def execute(
        cls, model: Checkpoint, image: Tensor, max_new_tokens: int, temperature: float, seed: int
    ) -> io.NodeOutput:
        """Write it."""
        pictures, progress = _shown(image), Progress(max_new_tokens)
        written = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        answer = model.ready().caption(_medium(pictures), on_text=progress.step, **written)
        return io.NodeOutput(answer.text, *_outputs(answer, pictures))


def _shown(image: Tensor | None) -> np.ndarray | None:
    return None if image is None else as_pictures(image)


def _medium(pictures: np.ndarray | None) -> Any:
    if pictures is None:
        return None
    return pictures[0] if len(pictures) == 1 else list(pictures)


def _outputs(answer: Answer, pictures: np.ndarray | None) -> list[Any]:
    """What was found; without a picture, what asks for it does not run."""
    if pictures is None:
        return [ExecutionBlocker(None)] * 3
    objects = Objects.of(answer, len(pictures), pictures.shape[1:3])
    return [objects.mask, objects, objects.boxes]


class DescribeRegions(io.ComfyNode):
    """Regions to words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its sockets and widgets."""
        return io.Schema(
            node_id="Sa2VADescribeRegions",
            display_name="Sa2VA Describe Regions",
            category=_CATEGORY,
            description="What is in each region of a picture. Needs a checkpoint made from InternVL.",
            inputs=[
                _Model.Input("model"),
                io.Image.Input("image", tooltip="One picture."),
                *_words(512),
                io.Mask.Input("mask", optional=True, tooltip="A region, or a batch of them."),
                _Boxes.Input("bboxes", optional=True, tooltip="A region each."),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="All descriptions, one a line."),
                io.String.Output(display_name="texts", is_output_list=True, tooltip="Each by itself."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Checkpoint,
        image: Tensor,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        mask: Tensor | None = None,
        bboxes: Any = None,
    ) -> io.NodeOutput:
        """Describe them."""
        masks = [] if mask is None else list(as_arrays(mask) > 0.5)
        boxes = [prompt["box"] for prompt in Marks.parse(bboxes, None, None).prompts(0)]
        written = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        texts = model.ready().describe(as_pictures(image)[0], [*masks, *boxes], **written)
        return io.NodeOutput("\n".join(texts), texts)


class PickObjects(io.ComfyNode):
    """Some of the objects that were found."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its sockets and widgets."""
        return io.Schema(
            node_id="Sa2VAPickObjects",
            display_name="Sa2VA Pick Objects",
            category=_CATEGORY,
            description="Masks of chosen objects, together and one by one.",
            inputs=[
                _Objects.Input("objects"),
                io.String.Input(
                    "which", default="", tooltip="Numbers from 1, or phrases, with commas between; nothing picks all."
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="Those objects together."),
                io.Mask.Output(display_name="each", is_output_list=True, tooltip="A batch of masks for each object."),
                _Boxes.Output(display_name="bbox", tooltip="One box around them in all frames, for a crop."),
                _Objects.Output(display_name="objects"),
            ],
        )

    @classmethod
    def execute(cls, objects: Objects, which: str) -> io.NodeOutput:
        """Pick them; where there is none, what asks for one does not run."""
        words = [word.strip().casefold() for word in which.split(",") if word.strip()]
        picked = objects.only(int(word) if word.isdecimal() else word for word in words) if words else objects
        each: Any = [one.mask for one in picked.each] or ExecutionBlocker(None)
        return io.NodeOutput(picked.mask, each, picked.box or ExecutionBlocker(None), picked)


class DrawObjects(io.ComfyNode):
    """Objects over the pictures that they were found in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its sockets and widgets."""
        return io.Schema(
            node_id="Sa2VADrawObjects",
            display_name="Sa2VA Draw Objects",
            category=_CATEGORY,
            description="Coloured masks with their phrases, each object in the same colour through a video.",
            inputs=[
                io.Image.Input("image"),
                _Objects.Input("objects"),
                io.Float.Input("opacity", default=0.5, min=0.0, max=1.0, step=0.05),
                io.Boolean.Input("labels", default=True),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(cls, image: Tensor, objects: Objects, opacity: float, labels: bool) -> io.NodeOutput:
        """Draw them."""
        pictures, progress, drawing = (
            as_pictures(image),
            Progress(len(image)),
            ClipOverlay(alpha=opacity, labels=labels),
        )
        if len(pictures) != len(objects.frames):
            raise ValueError(f"expected the {len(objects.frames)} pictures of the objects; got {len(pictures)}")

        def draw(picture: np.ndarray, segments: Sequence[Segment]) -> Image.Image:
            progress.step()
            return drawing.draw(picture, segments)

        return io.NodeOutput(as_images(map(draw, pictures, objects.frames)))


class EditMask(io.ComfyNode):
    """Cleans masks up and softens them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its sockets and widgets."""
        return io.Schema(
            node_id="Sa2VAEditMask",
            display_name="Sa2VA Edit Mask",
            category=_CATEGORY,
            description="Cleans masks up, grows or shrinks them, softens their edges and inverts them, in this order.",
            inputs=[
                io.Mask.Input("mask"),
                io.Int.Input("fill_holes", default=0, min=0, max=2**24, tooltip="Fill holes of so many pixels."),
                io.Int.Input("remove_specks", default=0, min=0, max=2**24, tooltip="Drop parts of fewer pixels."),
                io.Boolean.Input("largest_part", default=False, tooltip="Keep the largest connected part only."),
                io.Int.Input("grow", default=0, min=-512, max=512, tooltip="Pixels; below 0 shrinks."),
                io.Int.Input("feather", default=0, min=0, max=512, tooltip="Pixels over which the edge fades."),
                io.Boolean.Input("invert", default=False),
            ],
            outputs=[io.Mask.Output(display_name="mask")],
        )

    @classmethod
    def execute(
        cls,
        mask: Tensor,
        fill_holes: int,
        remove_specks: int,
        largest_part: bool,
        grow: int,
        feather: int,
        invert: bool,
    ) -> io.NodeOutput:
        """Edit each mask."""
        cleanup = Cleanup(
            fill_holes=fill_holes,
            remove_specks=remove_specks,
            largest_component=largest_part,
            dilate=max(grow, 0),
            erode=max(-grow, 0),
        )
        masks = as_arrays(mask)
        if feather or cleanup != Cleanup():  # a soft mask stays soft if it is only inverted
            progress, edited = Progress(len(masks)), []
            for one in masks:
                edited.append(mask_ops.feather(cleanup.apply(one > 0.5), feather))
                progress.step()
            masks = np.stack(edited)
        return io.NodeOutput(as_masks(1 - masks if invert else masks))


NODES: tuple[type[io.ComfyNode], ...] = (
    LoadModel,
    UnloadModel,
    SegmentPicture,
    SegmentVideo,
    Chat,
    Caption,
    DescribeRegions,
    PickObjects,
    DrawObjects,
    EditMask,
)
