"""Tiny data sets as labelling tools export them, each with the truth: ``{picture: {phrase: bool (H, W)}}``.

Two pictures of coloured boxes each. The red thing is two overlapping shapes, which are one answer. Everything is
written as the tools do it by code of its own, so that readers are not checked against themselves.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from miniatures.images import BLUE, GREEN, RED, SIZE, Box, area, painted, polygon, save, write_json

Truth = dict[str, dict[str, np.ndarray]]
H, W = SIZE
NAMES = ("one", "two")


def boxes(place: int) -> dict[str, list[Box]]:
    """What is on a picture."""
    red = [(2 + place, 4, 14 + place, 20), (8, 10, 22, 26)]
    return {"red thing": red, "blue box": [(30, 8 + place, 42, 24)]}


def pictures(folder: Path, suffix: str = ".png") -> Truth:
    """Write the pictures."""
    truth: Truth = {}
    for place, name in enumerate(NAMES):
        things = boxes(place)
        colored = [(box, color) for color, own in zip((RED, BLUE), things.values(), strict=True) for box in own]
        save(painted(*colored), folder / f"{name}{suffix}")
        truth[name] = {label: area(*own) for label, own in things.items()}
    return truth


def corners(box: Box) -> list[list[float]]:
    flat = polygon(box)
    return [[float(x), float(y)] for x, y in zip(flat[::2], flat[1::2], strict=True)]


def png_base64(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_labelme(root: Path) -> Truth:
    """A JSON beside each picture; one of them names it as Windows does, and its red thing is a mask and a rectangle."""
    truth = pictures(root)
    for place, name in enumerate(NAMES):
        red, blue = boxes(place).values()
        x0, y0, x1, y1 = red[0]
        if place == 0:
            shapes = [{"label": "Red thing", "points": corners(box), "shape_type": "polygon"} for box in red]
        else:
            crop = truth[name]["red thing"][y0:y1, x0:x1]
            last = [[float(x0), float(y0)], [float(x1 - 1), float(y1 - 1)]]
            masked = {"label": "red thing", "points": last, "shape_type": "mask", "mask": png_base64(crop)}
            opposite = [[float(red[1][2]), float(red[1][1])], [float(red[1][0]), float(red[1][3])]]
            shapes = [masked, {"label": "red thing", "points": opposite, "shape_type": "rectangle"}]
        shapes += [{"label": "blue box", "points": corners(blue[0])}]
        shapes += [{"label": "tip", "points": [[3.0, 4.0]], "shape_type": "point"}]
        shapes += [{"label": "_background_", "points": corners((0, 0, 5, 5))}]
        path = f"..\\mine\\{name}.png" if place else f"{name}.png"
        record = {"version": "5.2.1", "flags": {}, "shapes": shapes, "imagePath": path, "imageData": None}
        write_json(record | {"imageHeight": H, "imageWidth": W}, root / f"{name}.json")
    return truth


def write_labelme_coco(root: Path) -> Truth:
    """What labelme's script makes of its files: ``annotations.json`` and ``JPEGImages``."""
    truth = pictures(root / "JPEGImages", ".jpg")
    labels = ["_background_", *truth["one"]]
    content = coco_file({name: f"JPEGImages/{name}.jpg" for name in NAMES}, labels)
    write_json(content, root / "annotations.json")
    return truth


def coco_file(files: Mapping[str, str], labels: list[str]) -> dict[str, Any]:
    annotations = []
    for place, _ in enumerate(files):
        for label, own in boxes(place).items():
            entry = {"image_id": place, "category_id": labels.index(label), "iscrowd": 0}
            annotations.append(entry | {"id": len(annotations), "segmentation": [polygon(box) for box in own]})
    images = [{"id": place, "file_name": file, "height": H, "width": W} for place, file in enumerate(files.values())]
    categories = [{"id": place, "name": label} for place, label in enumerate(labels)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco_published(root: Path) -> Truth:
    """COCO 2017: files of two splits, captions, and pictures beside the folder of annotations."""
    truth = pictures(root / "train2017", ".jpg")
    content = coco_file({name: f"{name}.jpg" for name in NAMES}, list(truth["one"]))
    write_json(content, root / "annotations" / "instances_train2017.json")
    write_json({"images": [], "annotations": [], "categories": []}, root / "annotations" / "instances_val2017.json")
    captions = [
        {"id": 7 * place, "image_id": place, "caption": f"Two things, {n}."} for n, place in enumerate((0, 0, 1))
    ]
    write_json({"images": content["images"], "annotations": captions}, root / "annotations" / "captions_train2017.json")
    return truth


def write_roboflow(root: Path) -> Truth:
    """COCO as Roboflow exports it: the file among its pictures."""
    truth = pictures(root / "train", ".jpg")
    labels = list(truth["one"])
    write_json(coco_file({name: f"{name}.jpg" for name in NAMES}, labels), root / "train" / "_annotations.coco.json")
    return truth


def write_yolo(root: Path, yaml: str = "path: .\ntrain: images/train\nval: images/val\n") -> Truth:
    """Outlines as shares; the blue box of the second picture as a box, and a picture without labels."""
    truth = pictures(root / "images" / "train", ".jpg")
    save(painted(((1, 1, 9, 9), GREEN)), root / "images" / "train" / "zero.jpg")
    labels = root / "labels" / "train"
    labels.mkdir(parents=True)
    for place, name in enumerate(NAMES):
        red, ((x0, y0, x1, y1),) = boxes(place).values()
        lines = ["1 " + " ".join(f"{x / W} {y / H}" for x, y in corners(box)) for box in red]
        if place:
            lines.append(f"0 {(x0 + x1) / 2 / W} {(y0 + y1) / 2 / H} {(x1 - x0) / W} {(y1 - y0) / H}")
        else:
            lines.append("0 " + " ".join(f"{x / W} {y / H}" for x, y in corners((x0, y0, x1, y1))))
        (labels / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text(f"{yaml}names:\n  0: blue box\n  1: red thing\n")
    return truth


def _points(box: Box) -> str:
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in corners(box))


def write_cvat(root: Path) -> Truth:
    """CVAT for images: polygons, a mask along its rows, a box, and points that are no area."""
    truth = pictures(root / "images", ".jpg")
    lines = []
    for place, name in enumerate(NAMES):
        red, (blue,) = boxes(place).values()
        lines.append(f'<image id="{place}" name="{name}.jpg" subset="default" width="{W}" height="{H}">')
        if place == 0:
            lines += [f'<polygon label="red thing" occluded="0" points="{_points(box)}" z_order="0"/>' for box in red]
        else:
            x0, y0 = min(box[0] for box in red), min(box[1] for box in red)
            x1, y1 = max(box[2] for box in red), max(box[3] for box in red)
            flat = truth[name]["red thing"][y0:y1, x0:x1].ravel()
            runs = [sum(1 for _ in run) for _, run in groupby(flat)]
            runs = [0, *runs] if flat[0] else runs
            rle = ", ".join(map(str, runs))
            box = f'left="{x0}" top="{y0}" width="{x1 - x0}" height="{y1 - y0}"'
            lines.append(f'<mask label="red thing" rle="{rle}" {box} z_order="0"></mask>')
        left, top, right, bottom = blue
        edges = f'xtl="{left}.00" ytl="{top}.00" xbr="{right}.00" ybr="{bottom}.00"'
        lines.append(f'<box label="blue box" {edges}><attribute name="age">3</attribute></box>')
        lines += ['<points label="tip" points="3.0,4.0"/>', '<tag label="indoors"/>', "</image>"]
    _write_xml(root, lines, "annotation")
    return truth


def write_cvat_video(root: Path) -> dict[str, np.ndarray]:
    """CVAT for video: two tracks of one label, one of which leaves, and a third of another. bool (F, H, W) by label."""
    truth = {label: np.zeros((4, H, W), bool) for label in ("red car", "tree")}
    lines = []
    tracks = {"red car": [(2, 4, 12, 14), (20, 20, 30, 30)], "tree": [(40, 2, 60, 40)]}
    for number, (label, start) in enumerate((label, box) for label, own in tracks.items() for box in own):
        lines.append(f'<track id="{number}" label="{label}" source="manual">')
        for frame in range(4):
            box = (start[0] + 2 * frame, start[1], start[2] + 2 * frame, start[3])
            outside = number == 1 and frame >= 2
            if not outside:
                truth[label][frame] |= area(box)
            edges = 'xtl="{}" ytl="{}" xbr="{}" ybr="{}"'.format(*box)
            shape = f'<polygon points="{_points(box)}"' if number == 0 else f"<box {edges}"
            lines.append(f'{shape} frame="{frame}" keyframe="{int(frame == 0)}" outside="{int(outside)}"/>')
        lines.append("</track>")
    _write_xml(root, lines, "interpolation")
    for frame in range(4):
        save(painted(((2 + 2 * frame, 4, 12, 14), RED)), root / "images" / f"frame_{frame:06d}.png")
    return truth


def _write_xml(root: Path, lines: list[str], mode: str) -> None:
    meta = f"<version>1.1</version><meta><task><size>2</size><mode>{mode}</mode></task></meta>"
    text = "\n".join(['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", meta, *lines, "</annotations>"])
    (root / "annotations.xml").write_text(text + "\n", encoding="utf-8")


def write_label_studio(root: Path) -> Truth:
    """Label Studio's JSON: polygons, a brush, rectangles, a key point, and an annotation that was given up."""
    truth = pictures(root / "images", ".jpg")
    tasks = []
    for place, name in enumerate(NAMES):
        red, (blue,) = boxes(place).values()
        if place == 0:
            results = [_result("polygonlabels", "Red thing", points=_percent(corners(box))) for box in red]
        else:
            mask = truth[name]["red thing"]
            rgba = np.repeat(mask.astype(np.uint8)[..., None] * 255, 4, axis=2).ravel()
            results = [_result("brushlabels", "red thing", format="rle", rle=pack(rgba))]
        ((x, y), *_, (_, end)) = _percent(corners(blue))
        sides = {"x": x, "y": y, "width": (blue[2] - blue[0]) / W * 100, "height": end - y, "rotation": 0}
        results.append(_result("rectanglelabels", "blue box", **sides))
        results.append(_result("keypointlabels", "tip", x=3.0, y=4.0, width=0.2))
        results.append({"from_name": "text", "to_name": "image", "type": "textarea", "value": {"text": ["hello"]}})
        upload = f"/data/upload/1/1a2b3c4d-{name}.jpg" if place else f"/data/local-files/?d=mine%5C{name}.jpg"
        given_up = {
            "was_cancelled": True,
            "result": [_result("polygonlabels", "nonsense", points=[[0, 0], [9, 0], [9, 9]])],
        }
        annotations = [{"id": place, "completed_by": 1, "was_cancelled": False, "result": results}, given_up]
        tasks.append({"id": place + 5, "annotations": annotations, "data": {"image": upload, "text": "x"}})
    write_json(tasks, root / "project-1-at-2026-11-30.json")
    return truth


def _percent(points: list[list[float]]) -> list[list[float]]:
    return [[x / W * 100, y / H * 100] for x, y in points]


def _result(kind: str, label: str, **value: Any) -> dict[str, Any]:
    size = {"original_width": W, "original_height": H, "image_rotation": 0}
    return {"id": "a", "type": kind, "from_name": "label", "to_name": "image", "value": value | {kind: [label]}, **size}


def pack(values: np.ndarray) -> list[int]:
    """Bytes as Label Studio's editor packs them: repeated ones as a run, single ones as a run of different ones."""
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 6, 9, 16))
    runs = [(value, sum(1 for _ in own)) for value, own in groupby(values.tolist())]
    for value, count in runs:
        while count > 0:
            part = min(count, 1 << 16)
            size = next(place for place, width in enumerate((3, 6, 9, 16)) if part <= 1 << width)
            kind = "0" if part <= 2 else "1"
            bits += kind + f"{size:02b}" + f"{part - 1:0{(3, 6, 9, 16)[size]}b}"
            bits += f"{value:08b}" * (part if kind == "0" else 1)
            count -= part
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


WRITERS = {
    "labelme": write_labelme,
    "coco": write_labelme_coco,
    "coco-published": write_coco_published,
    "yolo": write_yolo,
    "cvat": write_cvat,
    "label-studio": write_label_studio,
}


def rewrite(path: Path, change: Any) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
