"""A tiny run as a process of its own: what `torchrun` starts, and what is killed and resumed.

python tests/training/train_tiny.py OUT [setting=value ...] [--resume]

{rank} in OUT is the process's number among those of `torchrun`: machines that share no disk.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> int:
    import torch
    from tiny_detectors import tiny_spec

    from kernel.data.synthetic.generate import generate_image
    from kernel.errors import InputError, RunError
    from kernel.log import show_log
    from kernel.settings import CELL_TYPES
    from kernel.training.settings import TrainSettings
    from kernel.vendored import use_vendored_packages

    use_vendored_packages()
    from kernel.training.run import TrainingRun
    from kernel.training.samples import TrainingImage
    from kernel.training.trainer import train_detector

    show_log(sys.stderr, "%(message)s")
    torch.set_num_threads(1)
    import numpy as np

    images = []
    for label, cell_type in enumerate(CELL_TYPES):
        made = generate_image(cell_type, 3, (128, 160))
        images.append(
            TrainingImage(
                np.repeat(made.image[..., None], 3, axis=2),
                tuple(crop for crop, _ in made.masks),
                np.array([corner for _, corner in made.masks], np.int64).reshape(-1, 2),
                np.full(len(made.masks), label),
                cell_type,
                name=cell_type,
            )
        )
    given = {
        "iterations": 6,
        "batch_size": 2,
        "crop_size": 64,
        "rpn_nms_pre": 50,
        "rois_per_image": 16,
        "norm_eval": True,
    }
    out, *words = sys.argv[1:]
    out = Path(out.format(rank=os.environ.get("RANK", "0")))
    for word in words:
        if "=" in word:
            name, value = word.split("=")
            given[name] = type(TrainSettings.__dataclass_fields__[name].default)(value)
    try:
        train_detector(
            TrainingRun(tiny_spec("maskrcnn"), TrainSettings(**given), images, out, resume="--resume" in words)
        )
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except RunError as error:
        sys.stderr.write(f"failed: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
