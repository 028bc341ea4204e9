"""Sa2VA as nodes of ComfyUI: words, boxes and clicks to masks in pictures and videos; chat, captions, descriptions.

ComfyUI loads this folder from ``custom_nodes``. It needs ``pip install sa2va`` in ComfyUI's own environment.
"""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from .nodes import NODES


class Sa2VAExtension(ComfyExtension):
    """The nodes, for ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of this pack."""
        return list(NODES)


async def comfy_entrypoint() -> Sa2VAExtension:
    """What ComfyUI calls."""
    return Sa2VAExtension()
