"""Weights that need no file: every tensor is drawn from its own name.

The golden files beside this script were measured on the 2021 stack (mmdet 2.17.0, mmcv-full 1.3.17,
timm 0.4.12, torch 1.10.2, CPU, float32) with these weights, so a model with the same parameter
names and shapes reproduces them without any checkpoint.
"""

from __future__ import annotations

import zlib

import numpy as np

#: Gain applied to the last layer of each head. Each golden's JSON carries its own table under "scales".
DEFAULT_SCALES = {"rpn_cls": 1.0, "rpn_reg": 0.2, "fc_cls": 2.5, "fc_reg": 0.2, "conv_logits": 1.0}


def deterministic_array(name: str, shape: tuple[int, ...], scales: dict[str, float] | None = None) -> np.ndarray:
    """Return the float32 value of the floating-point tensor `name`.

    `name` is the state-dict key of the bare detector (no "module." prefix); `shape` its shape.
    The generator is numpy's frozen legacy `RandomState`, seeded by CRC-32 of the name.
    """
    scales = DEFAULT_SCALES if scales is None else scales
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    if name.endswith("running_var"):
        value = np.ones(shape)
    elif name.endswith("running_mean"):
        value = np.zeros(shape)
    elif len(shape) == 1 and name.endswith("weight"):  # the scale of a normalisation layer
        value = 1 + 0.05 * rng.standard_normal(shape)
        if "bn3" in name:  # the last one of a residual block: keeps deep activations bounded
            value = value * 0.2
    elif name.endswith("bias"):
        value = 0.02 * rng.standard_normal(shape)
    else:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        value = 1.4 * rng.standard_normal(shape) / np.sqrt(max(fan_in, 1))
    if name.endswith("weight"):
        for pattern, gain in scales.items():
            if pattern in name:
                value = value * gain
    return np.asarray(value, dtype=np.float32)
