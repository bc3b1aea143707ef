"""The four views of an image, and how boxes and masks go into a view and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from kernel.settings import PIXEL_MEAN, PIXEL_STD

#: Found by trial by the published solution, which explains it by RoIAlign's half-pixel offsets. Networks here find the
#: same in all views without it: it moves masks towards the competition's annotations (docs/accuracy.md).
FLIP_SHIFT = -0.5
#: Gray level of the padding.
PAD_VALUE = 130
#: Padded sides are multiples of this, the coarsest FPN stride.
PAD_MULTIPLE = 32


@dataclass(frozen=True)
class View:
    """One flip of the image."""

    name: str
    flip_x: bool
    flip_y: bool

    @property
    def flipped_dims(self) -> list[int]:
        """The last two dimensions that this view reverses, as torch.flip takes them."""
        return [dim for dim, flipped in ((-2, self.flip_y), (-1, self.flip_x)) if flipped]


IDENTITY = View("identity", False, False)
#: Identity first: proposals come from it alone.
ALL_VIEWS = (
    IDENTITY,
    View("horizontal", True, False),
    View("vertical", False, True),
    View("diagonal", True, True),
)


def view_images(image_bgr: np.ndarray, views: tuple[View, ...], device: torch.device | str = "cpu") -> torch.Tensor:
    """Flip, pad and normalise an image (H, W, 3) uint8 BGR.

    Returns:
        (V, 3, H', W') float32 RGB. H' and W' are the next multiples of 32; the padding, at the right and the bottom,
        comes after the flip.
    """
    height, width = image_bgr.shape[:2]
    rgb = torch.from_numpy(np.ascontiguousarray(image_bgr[:, :, ::-1].transpose(2, 0, 1))).to(device)
    flips = torch.stack([rgb.flip(view.flipped_dims) for view in views])
    padding = (0, -width % PAD_MULTIPLE, 0, -height % PAD_MULTIPLE)
    padded = F.pad(flips, padding, value=PAD_VALUE).float()
    mean = torch.tensor(PIXEL_MEAN, device=device)[:, None, None]
    std = torch.tensor(PIXEL_STD, device=device)[:, None, None]
    return (padded - mean) / std


def flip_boxes(boxes_xyxy: torch.Tensor, view: View, image_shape: tuple[int, int]) -> torch.Tensor:
    """Mirror boxes (N, 4) in pixels of an image of `image_shape` (H, W). Its own inverse."""
    height, width = image_shape
    x1, y1, x2, y2 = boxes_xyxy.unbind(dim=1)
    if view.flip_x:
        x1, x2 = width - x2, width - x1
    if view.flip_y:
        y1, y2 = height - y2, height - y1
    return torch.stack([x1, y1, x2, y2], dim=1)


def boxes_into_view(boxes_xyxy: torch.Tensor, view: View, image_shape: tuple[int, int]) -> torch.Tensor:
    """Where boxes (N, 4) of the image lie in `view`: mirrored, and along each flipped axis shifted by half a pixel and
    clamped to the image."""
    height, width = image_shape
    x1, y1, x2, y2 = flip_boxes(boxes_xyxy, view, image_shape).unbind(dim=1)
    if view.flip_x:
        x1, x2 = ((x + FLIP_SHIFT).clamp(0, width) for x in (x1, x2))
    if view.flip_y:
        y1, y2 = ((y + FLIP_SHIFT).clamp(0, height) for y in (y1, y2))
    return torch.stack([x1, y1, x2, y2], dim=1)


def masks_out_of_view(masks: torch.Tensor, view: View) -> torch.Tensor:
    """Flip masks (..., h, w) that were predicted in `view` back."""
    return masks.flip(view.flipped_dims)
