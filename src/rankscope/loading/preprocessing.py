"""How a picture becomes what a network was trained on: one record that says it in words and does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rankscope._base.errors import DataError, parameter

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Preprocessing", "check_channels", "plain_preprocessing", "to_mode"]


@dataclass(frozen=True)
class Preprocessing:
    """From one PIL image to one (C, H, W) float32 tensor.

    ``description`` says what is done, for reports. ``input_size`` is (C, H, W) or None when the picture decides the
    size. ``apply`` receives a picture of mode RGB, or L where C is 1. ``plain`` is true where nothing was known of how
    the model was trained.

    >>> from PIL import Image
    >>> plain_preprocessing((1, 8, 8))(Image.new("RGB", (32, 20))).shape
    torch.Size([1, 8, 8])
    """

    description: str
    input_size: tuple[int, int, int] | None
    apply: Callable[[Image.Image], Any] = field(repr=False)
    plain: bool = False

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """The tensor of ``image``. Raises ``DataError`` for a wrong shape and for NaN or infinite values."""
        channels = 3 if self.input_size is None else self.input_size[0]
        made = self.apply(to_mode(image, channels))
        if not isinstance(made, torch.Tensor) or made.ndim != 3:
            got = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
            raise DataError(f"the preprocessing gave {got}; it must give one tensor (C, H, W) per picture")
        if self.input_size is not None and tuple(made.shape) != self.input_size:
            raise DataError(
                f"the preprocessing gave {tuple(made.shape)} but the model takes {self.input_size}; "
                "give pictures that fit it, or return a transform that fits the model from its factory"
            )
        if not bool(torch.isfinite(made).all()):
            raise DataError("NaN or infinite pixels")
        return made.to(torch.float32)


def plain_preprocessing(input_size: tuple[int, int, int]) -> Preprocessing:
    """Resize to (H, W), bilinear and antialiased, the shape not kept, pixels in [0, 1]: no normalisation is known."""
    _, height, width = input_size

    def apply(image: Image.Image) -> torch.Tensor:
        import numpy as np
        import PIL.Image

        resized = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized, dtype=np.float32)).div_(255)
        return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()

    return Preprocessing(f"resized to {height}×{width}, pixels in [0, 1]", input_size, apply, plain=True)


def check_channels(channels: int) -> None:
    """Raise ``DataError`` unless a picture can fill that many channels."""
    if channels not in (1, 3):
        raise DataError(
            f"the model takes {channels} channels, pictures have 1 or 3; measure it on noise "
            f"({parameter('images', 'noise')}) or on tensors of your own through the library"
        )


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """``image`` as RGB (3 channels) or L (1 channel), 8 bits: palettes looked up, 16 bits scaled, transparency dropped.

    32-bit float pictures count as [0, 1] when they stay inside it, else as [0, 255]. Raises ``DataError`` for another
    number of channels, since no picture holds them, and for NaN or infinite pixels.
    """
    import numpy as np
    import PIL.Image

    check_channels(channels)
    mode = image.mode
    if mode == "F":
        values = np.asarray(image, dtype=np.float32)
        if not np.isfinite(values).all():
            raise DataError("NaN or infinite pixels")
        scale = 255.0 if values.min(initial=0.0) >= 0 and values.max(initial=0.0) <= 1 else 1.0
        image = PIL.Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8))
    elif mode == "I" or mode.startswith("I;"):
        # PIL's own conversion would clip at 255 instead of scaling. I;16 is 16 bits for certain, however dark; I may
        # hold 8, or 16 from a decoder that widens them
        whole = np.asarray(image).astype(np.int64)
        sixteen = mode.startswith("I;") or whole.max(initial=0) > 255
        scaled = (whole + 128) // 257 if sixteen else whole
        image = PIL.Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))
    elif mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    wanted = "L" if channels == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)
