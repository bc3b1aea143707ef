"""The members as a table: what the manifest says, what their files hold, what dry runs have measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from bundle.dry_run import read_summary
from kernel.errors import InputError
from kernel.local_weights import can_read_weights, locate_named
from kernel.manifest.types import Manifest, MemberEntry
from kernel.settings import StageWeights
from kernel.text import first_names

COLUMNS = (
    "member", "kind", "encoder", "parameters", "size", "s/image", "use for", "weights", "dataset", "file", "sha256"
)  # fmt: skip
#: In the output folder: each member's seconds an image by itself, by its file's sha256.
TIMES_NAME = "member-seconds.json"
#: Tensors that are no parameters, by their keys' ends.
_BUFFERS = (".running_mean", ".running_var", ".num_batches_tracked", ".int8_scale")


def member_row(manifest: Manifest, member: MemberEntry, folder: Path, timed: Mapping[str, float]) -> list[str]:
    """A member's row of the table; what is not known is a dash. `timed`: seconds an image by a file's sha256."""
    count = size = "-"
    sha256 = (member.sha256 or "-")[:12]
    if member.file is not None:
        try:
            path = locate_named(manifest, member, folder).path
        except InputError as error:
            sha256 += " (the file at hand is another)" if "was altered" in str(error) else ""
        else:
            size = f"{path.stat().st_size / 1e6:.1f} MB"
            try:
                if path.suffix == ".safetensors" or can_read_weights():
                    count = f"{parameter_count(path) / 1e6:.2f} M"
            except InputError:
                count = "damaged"
    alone = timed.get(member.sha256 or "")
    weights = [f"{getattr(member.weights, part.name):g}" for part in fields(StageWeights)]
    return [
        member.name, member.kind, member.encoder, count, size, "-" if alone is None else f"{alone:.2f}",
        " ".join(member.use_for), "/".join(weights), ", ".join(manifest.datasets_for(member)),
        member.file or "-", sha256,
    ]  # fmt: skip


def explain_blanks(rows: Sequence[Sequence[str]], folder: Path) -> list[str]:
    """What the dashes of the table mean, a sentence for each kind that it has."""
    cells = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    unnamed = [row["member"] for row in cells if row["file"] == "-"]
    absent = [row["member"] for row in cells if row["file"] != "-" and row["size"] == "-"]
    unsummed = [row["member"] for row in cells if row["file"] != "-" and row["sha256"] == "-"]
    lines = []
    if unnamed:
        lines.append(
            f"- no `file` yet, found by its content when you build with --weights-dir: {first_names(unnamed, 5)}"
        )
    if absent:
        lines.append(
            f"- not in {folder}, so that parameters and size are unknown: {first_names(absent, 5)}; name the folder of "
            "the files by --weights-dir"
        )
    torchless = [row["member"] for row in cells if row["size"] != "-" and row["parameters"] == "-"]
    if torchless:
        lines.append(f"- parameters of PyTorch files, which take the environment to read: {first_names(torchless, 5)}")
    if unsummed:
        lines.append(f"- no `sha256` yet, which a build with --weights-dir fills in: {first_names(unsummed, 5)}")
    if any(row["s/image"] == "-" for row in cells):
        lines.append("- no seconds an image: `members time --images DIR` measures them")
    return [*lines, ""]


def parameter_count(path: Path) -> int:
    """How many parameters a weight file holds; of safetensors without torch.

    Raises:
        InputError: the file is damaged.
    """
    if path.suffix == ".safetensors":
        shapes = safetensors_shapes(path)
    else:
        from kernel.models.checkpoints import read_state_dict, shapes_of

        shapes = shapes_of(read_state_dict(path))
    total = 0
    for key, shape in shapes.items():
        count = 1
        for side in shape:
            count *= side
        total += 0 if key.endswith(_BUFFERS) else count
    return total


def safetensors_shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of a safetensors file's tensors, by its header.

    Raises:
        InputError: it has none.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        return {key: [int(side) for side in entry["shape"]] for key, entry in header.items() if key != "__metadata__"}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error


def seconds_an_image(summary_path: Path, manifest: Manifest) -> str:
    """What the dry run measured, as a sentence."""
    summary = read_summary(summary_path)
    if not summary:
        return "seconds an image: not measured yet; a dry run does (--dry-run)"
    images, names = summary.get("images"), [member.name for member in manifest.members]
    if not images or summary.get("members") != names:
        return f"seconds an image: {summary_path} is of other members; a dry run measures these"
    try:
        spent = sum(sum(image.get("seconds", {}).values()) for image in images.values()) / len(images)
    except (AttributeError, TypeError):
        return f"seconds an image: {summary_path} is damaged; a dry run writes it anew"
    return (
        f"seconds an image: {spent:.2f} of all {len(names)} members together, by the dry run of {len(images)} image(s)"
    )


def read_times(path: Path) -> dict[str, float]:
    """Seconds an image by the sha256 of a member's file; empty where nothing was measured.

    Raises:
        InputError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return {str(sha256): float(spent) for sha256, spent in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it, `members time` writes it anew") from error
