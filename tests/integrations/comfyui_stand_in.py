"""As much of ComfyUI as the node pack and its example workflows touch, with the signatures of ComfyUI 0.8.

It stands in for ComfyUI where that is not at hand: `test_comfyui_itself.py` runs the same workflows in the real one.
Prompts are checked and run as ComfyUI does it: nodes once each, lists item by item, blocked values not at all, and what
was computed before is not computed again while its inputs are the same.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from sa2va.media.open import open_media
from sa2va.writers.video_encoder import VideoEncoder

# -- comfy_api: how nodes describe themselves --------------------------------------------------------------------------


class Socket:
    io_type = ""

    def __init__(self, id: str, display_name: str | None = None, optional: bool = False, tooltip: str | None = None):
        self.id, self.optional = id, optional

    is_widget = False
    default: Any = None

    def complaint(self, value: Any) -> str | None:
        return None if not self.is_widget else f"{self.id} needs a link"


class Widget(Socket):
    def __init__(
        self,
        id: str,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        default: Any = None,
        force_input: bool | None = None,
    ):
        super().__init__(id, display_name, optional, tooltip)
        self.default, self.is_widget = default, not force_input

    kind: type | tuple[type, ...] = object

    def complaint(self, value: Any) -> str | None:
        return None if isinstance(value, self.kind) else f"{self.id}: {value!r} is no {self.io_type}"


class Number(Widget):
    def __init__(
        self,
        id: str,
        default: Any,
        min: float,
        max: float,
        step: float | None = None,
        tooltip: str | None = None,
        control_after_generate: bool | None = None,
    ):
        super().__init__(id, tooltip=tooltip, default=default)
        self.min, self.max = min, max

    kind = (int, float)

    def complaint(self, value: Any) -> str | None:
        if super().complaint(value) or not self.min <= value <= self.max:
            return f"{self.id}: {value!r} is not from {self.min} to {self.max}"
        return None


class Text(Widget):
    def __init__(self, id: str, *, multiline: bool = False, **about: Any):
        super().__init__(id, **about)

    kind = str


class Choice(Widget):
    def __init__(self, id: str, options: list[str], *, default: str | None = None, tooltip: str | None = None):
        super().__init__(id, tooltip=tooltip, default=default)
        self.options = options

    def complaint(self, value: Any) -> str | None:
        return None if value in self.options else f"{self.id}: {value!r} is not in {self.options}"


class Truth(Widget):
    kind = bool


@dataclass
class Output:
    id: str | None = None
    display_name: str | None = None
    tooltip: str | None = None
    is_output_list: bool = False
    io_type: str = field(default="", init=False)


def _type(name: str, input: type[Socket] = Socket) -> Any:
    return SimpleNamespace(
        Input=type(f"{name}Input", (input,), {"io_type": name}), Output=type(f"{name}Output", (_Typed,), {"of": name})
    )


class _Typed(Output):
    of = ""

    def __init__(self, *args: Any, **about: Any):
        super().__init__(*args, **about)
        self.io_type = self.of


@dataclass
class Schema:
    node_id: str
    display_name: str = ""
    category: str = "sd"
    inputs: list[Socket] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    description: str = ""
    is_output_node: bool = False

    def validate(self) -> None:
        ids = [one.id for one in (*self.inputs, *self.outputs) if one.id is not None]
        assert len(set(ids)) == len(ids), f"Ids must be unique between inputs and outputs: {ids}"  # so until 0.3.64


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None):
        self.args, self.ui = args, ui


class ComfyNode(ABC):
    @classmethod
    @abstractmethod
    def define_schema(cls) -> Schema: ...

    @classmethod
    @abstractmethod
    def execute(cls, **inputs: Any) -> NodeOutput: ...


class ComfyExtension(ABC):
    @abstractmethod
    async def get_node_list(self) -> list[type[ComfyNode]]: ...


io = SimpleNamespace(
    ComfyNode=ComfyNode,
    Schema=Schema,
    NodeOutput=NodeOutput,
    Custom=_type,
    Image=_type("IMAGE"),
    Mask=_type("MASK"),
    Video=_type("VIDEO"),
    Audio=_type("AUDIO"),
    AnyType=_type("*"),
    Int=_type("INT", Number),
    Float=_type("FLOAT", Number),
    String=_type("STRING", Text),
    Boolean=_type("BOOLEAN", Truth),
    Combo=_type("COMBO", Choice),
)

# -- comfy, comfy_execution, folder_paths ------------------------------------------------------------------------------


class InterruptProcessingException(Exception):
    """The user cancelled the run."""


class ExecutionBlocker:
    def __init__(self, message: str | None):
        self.message = message


class ModelPatcher:
    def __init__(self, model: torch.nn.Module, load_device: torch.device, offload_device: torch.device, size: int = 0):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.model.device = offload_device  # the real one notes it there, too


class ComfyUI:
    """A running ComfyUI.

    Args:
        base: its folder, with ``input``, ``output`` and ``models``.

    Attributes:
        progress: what progress bars showed: (value, total) each.
        cancel_at: the number of steps after which the user cancels; None for never.
    """

    def __init__(self, base: Path):
        self.base = base
        for name in ("input", "output", "models"):
            (base / name).mkdir(parents=True, exist_ok=True)
        self.progress: list[tuple[int, int]] = []
        self.cancel_at: int | None = None
        self.nodes: dict[str, type[ComfyNode]] = {}
        self._folders: dict[str, list[str]] = {}
        self._known: dict[str, list[list[Any]]] = {}

    def modules(self) -> dict[str, ModuleType]:
        """What custom nodes import."""
        cpu = torch.device("cpu")

        def throw() -> None:
            if self.cancel_at is not None and len(self.progress) >= self.cancel_at:
                self.cancel_at = None
                raise InterruptProcessingException

        def load_models_gpu(
            models: list[ModelPatcher], memory_required: int = 0, force_full_load: bool = False
        ) -> None:
            for one in models:
                one.model.to(one.load_device)

        def add_model_folder_path(folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
            self._folders.setdefault(folder_name, []).append(full_folder_path)

        recorded = self.progress

        class ProgressBar:
            def __init__(self, total: int, node_id: str | None = None):
                self.total, self.current = total, 0

            def update(self, value: int) -> None:
                self.current = min(self.current + value, self.total)
                recorded.append((self.current, self.total))

        management = {
            "InterruptProcessingException": InterruptProcessingException,
            "throw_exception_if_processing_interrupted": throw,
            "load_models_gpu": load_models_gpu,
            "get_torch_device": lambda: cpu,
            "intermediate_device": lambda: cpu,
            "text_encoder_offload_device": lambda: cpu,
            "should_use_bf16": lambda device=None: False,
            "should_use_fp16": lambda device=None: False,
            "unload_all_models": lambda: None,
            "cleanup_models": lambda: None,
            "soft_empty_cache": lambda force=False: None,
        }
        contents: dict[str, dict[str, Any]] = {
            "comfy": {},
            "comfy.utils": {"ProgressBar": ProgressBar},
            "comfy.model_management": management,
            "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
            "comfy_execution": {},
            "comfy_execution.graph_utils": {"ExecutionBlocker": ExecutionBlocker},
            "comfy_api": {},
            "comfy_api.v0_0_2": {"ComfyExtension": ComfyExtension, "io": io},
            "folder_paths": {
                "models_dir": str(self.base / "models"),
                "add_model_folder_path": add_model_folder_path,
                "get_folder_paths": lambda folder_name: self._folders[folder_name][:],
            },
        }
        modules = {name: ModuleType(name) for name in contents}
        for name, values in contents.items():
            vars(modules[name]).update(values)
            parent, _, own = name.rpartition(".")
            if parent:
                setattr(modules[parent], own, modules[name])
        return modules

    async def load(self, folder: Path) -> None:
        """Load a folder of custom nodes."""
        import importlib.util

        name = str(folder).replace(".", "_x_")
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        extension = await module.comfy_entrypoint()
        assert isinstance(extension, ComfyExtension)
        for node in (*await extension.get_node_list(), *core_nodes(self.base)):
            schema = node.define_schema()
            schema.validate()
            assert schema.node_id not in self.nodes
            self.nodes[schema.node_id] = node

    # -- prompts -------------------------------------------------------------------------------------------------------

    def check(self, prompt: dict[str, Any]) -> list[str]:
        """What is wrong with a prompt in the API's format."""
        wrong = []
        for number, one in prompt.items():
            schema, given = self.nodes[one["class_type"]].define_schema(), one["inputs"]
            wrong += [f"{number} has no {name}" for name in given.keys() - {socket.id for socket in schema.inputs}]
            for socket in schema.inputs:
                value = given.get(socket.id)
                if value is None:
                    wrong += [] if socket.optional else [f"{number} needs {socket.id}"]
                elif isinstance(value, list):
                    source = self.nodes[prompt[value[0]]["class_type"]].define_schema().outputs[value[1]]
                    if source.io_type != socket.io_type and "*" not in (source.io_type, socket.io_type):
                        wrong.append(f"{number}.{socket.id} is {socket.io_type}, not {source.io_type}")
                elif complaint := socket.complaint(value) if socket.is_widget else f"{socket.id} needs a link":
                    wrong.append(f"{number}.{complaint}")
        return wrong

    def run(self, prompt: dict[str, Any]) -> dict[str, list[Any]]:
        """What output nodes show, by their numbers."""
        if wrong := self.check(prompt):
            raise ValueError("; ".join(wrong))
        shown: dict[str, list[Any]] = {}
        with torch.inference_mode():
            for number, one in prompt.items():
                if self.nodes[one["class_type"]].define_schema().is_output_node:
                    self._computed(prompt, number, shown)
        return shown

    def call(self, kind: str, **inputs: Any) -> tuple[Any, ...]:
        """Run one node with values at hand, its widgets left as they are."""
        node = self.nodes[kind]
        widgets = {one.id: one.default for one in node.define_schema().inputs if one.is_widget and not one.optional}
        with torch.inference_mode():
            return node.execute(**(widgets | inputs)).args

    def _signature(self, prompt: dict[str, Any], number: str) -> str:
        one = prompt[number]
        inputs = {
            name: [self._signature(prompt, value[0]), value[1]] if isinstance(value, list) else value
            for name, value in one["inputs"].items()
        }
        return json.dumps([one["class_type"], inputs], sort_keys=True)

    def _computed(self, prompt: dict[str, Any], number: str, shown: dict[str, list[Any]]) -> list[list[Any]]:
        """The outputs of a node, each a list of the values that its runs made."""
        signature = self._signature(prompt, number)
        if signature in self._known:
            return self._known[signature]
        one = prompt[number]
        node = self.nodes[one["class_type"]]
        values = {
            name: self._computed(prompt, value[0], shown)[value[1]] if isinstance(value, list) else [value]
            for name, value in one["inputs"].items()
        }
        sockets = node.define_schema().outputs
        outputs: list[list[Any]] = [[] for _ in sockets]
        for turn in range(max(map(len, values.values()), default=1)):
            inputs = {name: items[min(turn, len(items) - 1)] for name, items in values.items()}
            if any(isinstance(value, ExecutionBlocker) for value in inputs.values()):
                results: Any = [ExecutionBlocker(None) for _ in sockets]
            else:
                done = node.execute(**inputs)
                results = done.args
                if done.ui is not None:
                    shown.setdefault(number, []).append(done.ui)
            for output, socket, result in zip(outputs, sockets, results, strict=True):
                several = socket.is_output_list and not isinstance(result, ExecutionBlocker)
                output.extend(result if several else [result])
        self._known[signature] = outputs
        return outputs


# -- nodes of its own --------------------------------------------------------------------------------------------------


def core_nodes(base: Path) -> list[type[ComfyNode]]:
    """The nodes of ComfyUI that the example workflows use, of the same ids and sockets. Files are in ``base``."""

    def files() -> list[str]:
        return sorted(path.name for path in (base / "input").iterdir())

    def saved(prefix: str, suffix: str) -> Path:
        path = base / "output" / f"{prefix}_{len(list((base / 'output').rglob('*.*'))):05}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def load_image(image: str) -> NodeOutput:
        pixels = np.asarray(Image.open(base / "input" / image).convert("RGB"), np.float32) / 255
        return NodeOutput(torch.from_numpy(pixels)[None], torch.zeros(1, 64, 64))

    def save_image(images: torch.Tensor, filename_prefix: str) -> NodeOutput:
        paths = []
        for image in images:
            paths.append(saved(filename_prefix, ".png"))
            Image.fromarray((image.numpy() * 255).clip(0, 255).astype(np.uint8)).save(paths[-1])
        return NodeOutput(ui=paths)

    def join(image: torch.Tensor, alpha: torch.Tensor) -> NodeOutput:
        assert image.shape[:3] == alpha.shape
        return NodeOutput(torch.cat([image[..., :3], 1 - alpha[..., None]], dim=-1))

    def components(video: Path) -> NodeOutput:
        with open_media(video) as source:
            frames = np.stack([decoded.pixels for decoded in source])
            return NodeOutput(torch.from_numpy(frames.astype(np.float32) / 255), None, float(source.fps or 0))

    def save_video(video: Any, filename_prefix: str, format: str, codec: str) -> NodeOutput:
        images, fps = video
        path = saved(filename_prefix, ".mp4")
        encoder = VideoEncoder(path, size=tuple(images.shape[1:3]), fps=fps)
        for image in images:
            encoder.write((image.numpy() * 255).astype(np.uint8))
        encoder.close()
        return NodeOutput(ui=path)

    def node(id: str, execute: Callable[..., NodeOutput], inputs: list[Socket], *outputs: Any) -> type[ComfyNode]:
        schema = Schema(id, inputs=inputs, outputs=[one.Output() for one in outputs], is_output_node=not outputs)
        return type(id, (ComfyNode,), {"define_schema": lambda: schema, "execute": execute})

    image, mask, video = io.Image, io.Mask, io.Video
    prefix = io.String.Input("filename_prefix")
    return [
        node("LoadImage", load_image, [io.Combo.Input("image", files())], image, mask),
        node("SaveImage", save_image, [image.Input("images"), prefix]),
        node(
            "MaskToImage",
            lambda mask: NodeOutput(mask[..., None].expand(-1, -1, -1, 3)),
            [mask.Input("mask")],
            image,
        ),
        node("JoinImageWithAlpha", join, [image.Input("image"), mask.Input("alpha")], image),
        node("PrimitiveString", lambda value: NodeOutput(value), [io.String.Input("value")], io.String),
        node("PreviewAny", lambda source: NodeOutput(ui=source), [io.AnyType.Input("source")]),
        node("LoadVideo", lambda file: NodeOutput(base / "input" / file), [io.Combo.Input("file", files())], video),
        node("GetVideoComponents", components, [video.Input("video")], image, io.Audio, io.Float),
        node(
            "CreateVideo",
            lambda images, fps, audio=None: NodeOutput((images, fps)),
            [
                image.Input("images"),
                io.Float.Input("fps", default=30.0, min=1.0, max=120.0),
                io.Audio.Input("audio", optional=True),
            ],
            video,
        ),
        node(
            "SaveVideo",
            save_video,
            [
                video.Input("video"),
                prefix,
                io.Combo.Input("format", ["auto", "mp4"]),
                io.Combo.Input("codec", ["auto", "h264"]),
            ],
        ),
    ]
