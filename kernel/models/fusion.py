"""Convolutions take over the BatchNorm behind them: for inference, where its statistics are fixed."""

from __future__ import annotations

import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fuse_batch_norms(detector: nn.Module) -> int:
    """Multiply each BatchNorm into the convolution before it, in place; returns how many there were.

    Saves a pass over every map of the encoder, and changes results by rounding only. Meant for a detector in eval mode
    that is not trained or saved afterwards: its state dict is another one. A BatchNorm belongs to the convolution that
    stands right before it in the same module, as in all our encoders. timm's BatchNorms have their activation in them:
    it stays.
    """
    fused = 0
    for parent in list(detector.modules()):
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
                fused += 1
    return fused
