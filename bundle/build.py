"""The folder of the kernel: the script that everything is inlined into, and its metadata."""

from __future__ import annotations

import json
from pathlib import Path

from bundle.inline import inline_package
from bundle.kaggle import KERNEL_METADATA_NAME, SCRIPT_NAME, kernel_metadata
from bundle.lock import LOCK_PATH
from kernel.folders import replace_folder, scratch_folder
from kernel.manifest.types import Manifest, manifest_to_json

ENTRY = Path(__file__).resolve().parents[1] / "kernel" / "main.py"


def script_text(manifest: Manifest) -> str:
    """The script of a manifest; always the same of the same modules."""
    embedded = {
        "MANIFEST_JSON": manifest_to_json(manifest),
        "WHEELS_LOCK_JSON": LOCK_PATH.read_text(encoding="utf-8"),
    }
    return inline_package(ENTRY, embedded)


def write_kernel(manifest: Manifest, target: Path) -> None:
    """Write the folder that `kaggle kernels push -p` takes: the script and its metadata."""
    script = script_text(manifest)
    metadata = json.dumps(kernel_metadata(manifest), indent=2) + "\n"
    with scratch_folder(target.parent, target.name) as scratch:
        new = scratch / "new"
        new.mkdir()
        (new / SCRIPT_NAME).write_text(script, encoding="utf-8", newline="\n")
        (new / KERNEL_METADATA_NAME).write_text(metadata, encoding="utf-8", newline="\n")
        replace_folder(new, target)
