"""BatchNorms fused into the convolutions before them: for inference, where their statistics are fixed."""

from __future__ import annotations

import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kernel.models.timm_encoders import TimmFeatures


def fuse_batch_norms(detector: nn.Module) -> int:
    """Fuse each BatchNorm into the convolution before it, in place, and return their number.

    This saves a pass over every feature map of the encoder and changes results by rounding only. The detector must be
    in eval mode, and cannot be trained or saved afterwards: its state dict has other keys. A BatchNorm belongs to the
    convolution right before it in the same module, as in all our encoders; of networks of timm at large nobody knows
    that, so these (`TimmFeatures`) stay as they are. The activation that timm's BatchNorms contain stays.
    """
    fused = 0
    kept = {part for module in detector.modules() if isinstance(module, TimmFeatures) for part in module.modules()}
    for parent in [module for module in detector.modules() if module not in kept]:
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
                fused += 1
    return fused
