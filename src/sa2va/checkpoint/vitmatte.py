"""VitMatte: opacity at the edges of objects, by weights that are no part of a Sa2VA checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from sa2va.runtime import no_weight_bar


@dataclass(frozen=True)
class VitMatte:
    """A loaded model of transformers with its processor; in float32."""

    model: Any
    processor: Any

    @classmethod
    def load(cls, source: str, device: torch.device) -> VitMatte:
        """Load a folder or hub id.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        # Here, as it takes a part of the start and few need it.
        from transformers import VitMatteForImageMatting, VitMatteImageProcessorPil

        try:
            with no_weight_bar():
                model: Any = VitMatteForImageMatting.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
                return cls(model.eval().to(device), VitMatteImageProcessorPil.from_pretrained(source))
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"refine='matting' needs the files of a VitMatte model, and matting={source!r} gives none ({reason}); "
                "name a hub id such as 'hustvl/vitmatte-small-composition-1k', or a folder"
            ) from error

    @torch.inference_mode()
    def alpha(self, image: Image.Image, trimap: Image.Image) -> torch.Tensor:
        """Opacity 0..1, float32 (H, W).

        Args:
            image: RGB. trimap: mode L of the same size, 0 outside, 255 inside, 128 unknown.
        """
        pixels = self.processor(images=image, trimaps=trimap, return_tensors="pt")["pixel_values"]
        device = next(self.model.parameters()).device
        return self.model(pixels.to(device)).alphas[0, 0, : image.height, : image.width]
