"""`tune`: choose the post-processing's thresholds on annotated images."""

from __future__ import annotations

import argparse
from typing import Any

from bundle.site import use_vendored_packages
from kernel.commands.common import add_ensemble_arguments, list_fold, load_options_ensemble


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser("tune", help="choose the post-processing's thresholds on annotated images")
    add_ensemble_arguments(parser)
    parser.add_argument("--write", action="store_true", help="put the thresholds into the manifest")
    parser.set_defaults(run=run_tune)


def run_tune(options: argparse.Namespace) -> None:
    """Choose the post-processing's thresholds."""
    use_vendored_packages()
    from kernel.validation.tuning import write_thresholds
    from kernel.validation.validate import tune_ensemble

    images = list_fold(options)
    ensemble = load_options_ensemble(options)
    tuned = tune_ensemble(ensemble, images)
    for cell_type, (thresholds, before, after) in tuned.items():
        print(f"{cell_type}: {before:.4f} before, {after:.4f} after, on the images tuned on")
        print(
            f"  mask_threshold {thresholds.mask_threshold}, mask_nms_threshold {thresholds.mask_nms_threshold}, "
            f"min_size {thresholds.min_size}, confidence {thresholds.confidence}"
        )
    if options.write:
        write_thresholds(options.manifest, {cell_type: result[0] for cell_type, result in tuned.items()})
        print(f"written: {options.manifest}")
