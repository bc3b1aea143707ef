"""Boxes as RoIs: with the number of their image before them, in pieces, and larger."""

from __future__ import annotations

import torch


def boxes_to_rois(boxes_xyxy: torch.Tensor) -> torch.Tensor:
    """Flatten boxes (V, N, 4) of V views to RoIs (V * N, 5), the view's index first."""
    views, count, _ = boxes_xyxy.shape
    index = torch.arange(views, device=boxes_xyxy.device, dtype=boxes_xyxy.dtype)
    return torch.cat([index.repeat_interleave(count)[:, None], boxes_xyxy.reshape(-1, 4)], dim=1)


def chunked_rois(rois: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Split RoIs (M, 5) into pieces of at most `size`; no pieces for none."""
    return torch.split(rois, size) if len(rois) else ()


def enlarge_boxes(boxes_xyxy: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """Boxes (N, 4) `scale` times as wide and high about their centres; a number, or one for each (N, 1)."""
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    halves = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * (scale / 2)
    return torch.cat([centres - halves, centres + halves], dim=1)
