"""A mask network: a U-Net (Ronneberger et al., 2015) on crops of the image, one per box, that makes masks and no boxes.

A mask head sees 14 x 14 features of a detector that has learned boxes and classes besides. This network sees the pixels
of one cell and its surroundings, and learns masks alone. Its answer is a mask of the same size as theirs, so it is
averaged with theirs like any member's.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import RoIAlign

from kernel.models.rois import boxes_to_rois, chunked_rois, enlarge_boxes

#: Pixels of a mask's side, as of the mask heads'.
MASK_SIDE = 28
#: What the network sees around the box, in pixels of the mask, on each side; the mask is cut out of its middle.
MARGIN = 6
#: The side of its answer, and of its input: twice that.
WINDOW_SIDE = MASK_SIDE + 2 * MARGIN
CROP_SIDE = 2 * WINDOW_SIDE
#: How many channels each coarser level has more than the one before.
MORE_CHANNELS = 8
#: Boxes of this many pixels a side have 0 in the maps that tell the network a box's size.
USUAL_SIDE = 24.0
#: Crops that go through at a time; they take 1.3 MB each at 32 channels.
CROP_CHUNK = 64


class CropUNet(nn.Module):
    """The network; it is a member's detector that only answers for masks.

    Args:
        channels: of its finest level; each of the two coarser ones has 8 more.
    """

    def __init__(self, channels: int = 32):
        super().__init__()
        self.crop_unet = UNet(channels)
        self.cells_per_crop = 128  # in training

    def init_weights(self) -> None:
        """As mmdet's detectors have it; torch has drawn the weights already."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What it sees of normalised images (V, 3, H, W): their gray levels (V, 1, H, W)."""
        return images.mean(dim=1, keepdim=True)

    def window_logits(self, gray: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Logits of the windows around boxes.

        Args:
            gray: (V, 1, H, W) float32, of `features`.
            rois: (M, 5) the image's index, then x1, y1, x2, y2 in pixels.

        Returns:
            (M, 1, 40, 40) float32 of the `windows`.
        """
        crops = RoIAlign(CROP_SIDE, 1.0, sampling_ratio=0, aligned=True)(gray, windows(rois))
        sides = (rois[:, 3:] - rois[:, 1:3]).clamp(min=1).log() - math.log(USUAL_SIDE)
        maps = sides[:, :, None, None].expand(-1, -1, CROP_SIDE, CROP_SIDE)
        return self.crop_unet(torch.cat([crops, maps], dim=1)).float()

    def masks(self, gray: torch.Tensor, boxes_xyxy: torch.Tensor) -> torch.Tensor:
        """Mask probabilities (V, N, 28, 28) of boxes (V, N, 4), each in its view's pixels of `gray` (V, 1, H, W)."""
        views, count = boxes_xyxy.shape[:2]
        rois = boxes_to_rois(boxes_xyxy)
        inner = slice(MARGIN, MARGIN + MASK_SIDE)
        parts = [
            self.window_logits(gray, part)[:, 0, inner, inner].sigmoid() for part in chunked_rois(rois, CROP_CHUNK)
        ]
        masks = torch.cat(parts) if parts else rois.new_zeros((0, MASK_SIDE, MASK_SIDE))
        return masks.unflatten(0, (views, count))


def windows(rois: torch.Tensor) -> torch.Tensor:
    """RoIs (M, 5) enlarged by the margin on all sides."""
    return torch.cat([rois[:, :1], enlarge_boxes(rois[:, 1:], WINDOW_SIDE / MASK_SIDE)], dim=1)


class UNet(nn.Module):
    """Three levels down and up again, of crops (M, 3, S, S) to logits (M, 1, S / 2, S / 2).

    The first level works on 2 x 2 pixels at a time, as four channels: at half the resolution, which the masks have.
    """

    def __init__(self, channels: int):
        super().__init__()
        widths = (channels, channels + MORE_CHANNELS, channels + 2 * MORE_CHANNELS)
        self.down = nn.ModuleList(
            block(given, width) for given, width in zip((3 * 4, *widths[:-1]), widths, strict=True)
        )
        self.up = nn.ModuleList(block(coarse + fine, fine) for fine, coarse in itertools.pairwise(widths))
        self.logits = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """(M, 3, S, S) to (M, 1, S / 2, S / 2)."""
        x = F.pixel_unshuffle(crops, 2)
        levels: list[torch.Tensor] = []
        for down in self.down:
            x = down(F.max_pool2d(x, 2) if levels else x)
            levels.append(x)
        for up, fine in zip(reversed(self.up), levels[-2::-1], strict=True):
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0), fine], dim=1))
        return self.logits(x)


def block(given: int, channels: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with BatchNorm and ReLU."""

    def layer(channels_in: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels_in, channels, kernel_size=3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]

    return nn.Sequential(*layer(given), *layer(channels))
