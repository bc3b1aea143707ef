"""The synthetic cascade and HTC, made of the synthetic Mask R-CNN, which alone is in the repository.

Trained ones would be another 15 MB of each clone. Tests ask of them that they find cells as their kind does, not that
they find more. conftest.py makes them before the first test, and the Makefile before what is no test. The manifest
knows their SHA-256, so other bytes are refused wherever they are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kernel.files import file_sha256, whole_file
from kernel.models.configs import CASCADE_STDS
from kernel.training.initialise import stage_keys

WEIGHTS = Path(__file__).resolve().parents[1] / "bundle" / "synthetic" / "weights"

State = dict[str, torch.Tensor]


def cascade_of(state: Mapping[str, torch.Tensor]) -> State:
    """The cascade each of whose stages has a Mask R-CNN's heads: its classes, its masks, its boxes.

    A cascade's boxes are of no class, so they are the mean of the classes'. Each stage measures them in units of its
    own, and its layer is multiplied such that it moves a box as far.
    """
    made: State = {}
    for key, value in state.items():
        for name, stds in zip(stage_keys(key), CASCADE_STDS, strict=False):  # one name, where it is no head's
            made[name] = boxes_of_no_class(value, stds) if ".fc_reg." in key else value.clone()
    return made


def boxes_of_no_class(layer: torch.Tensor, stds: Sequence[float]) -> torch.Tensor:
    """The mean over classes of the layer that moves boxes, (4 * classes, ...), in a stage's units: (4, ...)."""
    mean = layer.float().unflatten(0, (-1, 4)).mean(0)
    unit = torch.tensor(CASCADE_STDS[0]) / torch.tensor(stds)
    return (mean * unit.view(-1, *[1] * (mean.ndim - 1))).half()


def htc_of(state: Mapping[str, torch.Tensor]) -> State:
    """The same with HTC's further layers: a five-hundredth of a mask's features flows on to the next, and of the neck's
    maps through the semantic branch to boxes and masks."""
    made = cascade_of(state)
    channels = state["roi_head.mask_head.convs.0.conv.weight"].shape[0]
    neck = state["rpn_head.rpn_conv.weight"].shape[0]
    classes = state["roi_head.mask_head.conv_logits.weight"].shape[0]
    shapes = {f"roi_head.mask_head.{stage}.conv_res.conv": (channels, channels, 1, 1) for stage in (1, 2)}
    semantic = "roi_head.semantic_head."
    shapes |= {f"{semantic}lateral_convs.{level}.conv": (neck, neck, 1, 1) for level in range(5)}
    shapes |= {f"{semantic}convs.{layer}.conv": (neck, neck, 3, 3) for layer in range(4)}
    shapes |= {f"{semantic}conv_embedding.conv": (neck, neck, 1, 1), f"{semantic}conv_logits": (classes, neck, 1, 1)}
    for layer, shape in shapes.items():
        share = 0.002 if layer.endswith(("conv_res.conv", "conv_embedding.conv")) else 1
        made[f"{layer}.weight"] = (torch.nn.init.dirac_(torch.empty(shape)) * share).half()
        made[f"{layer}.bias"] = torch.zeros(shape[:1], dtype=torch.float16)
    return made


def make_synthetic_members() -> None:
    """Write those of cascade.safetensors and htc.safetensors that are not there, or not the manifest's."""
    manifest = json.loads((WEIGHTS.parent / "manifest.json").read_text(encoding="utf-8"))
    known = {member["file"]: member["sha256"] for member in manifest["members"]}
    for kind, make in (("cascade", cascade_of), ("htc", htc_of)):
        path = WEIGHTS / f"{kind}.safetensors"
        if not path.is_file() or file_sha256(path) != known[path.name]:
            with whole_file(path) as temporary:
                save_file(make(load_file(WEIGHTS / "maskrcnn.safetensors")), temporary)


if __name__ == "__main__":
    make_synthetic_members()
