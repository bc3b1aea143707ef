"""The folders that become Kaggle datasets: the members' weights, beside the wheels.

Each holds flat files, its metadata, and the files' sums, by which a push knows whether Kaggle has the same already.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle.kaggle import (
    DATASET_LICENSES,
    DATASET_METADATA_NAME,
    SUMS_NAME,
    check_dataset_folder,
    dataset_metadata,
)
from bundle.names import owner_of
from kernel.errors import InputError
from kernel.files import file_sha256
from kernel.folders import ResultFolder, is_of_the_system, refuse_to_replace, replace_folder, scratch_folder
from kernel.local_weights import FoundWeights
from kernel.manifest.types import Manifest

#: The license of a dataset for which none is chosen.
USUAL_LICENSE = "other"


def weights_folder_name(dataset: str) -> str:
    """The name of the folder beside dist/wheels that becomes the dataset "owner/slug"."""
    return f"weights-{dataset.split('/')[1]}"


def write_weights_datasets(
    manifest: Manifest, weights: Sequence[FoundWeights], out: Path, license_name: str | None = None
) -> dict[str, Path]:
    """Write a folder for each dataset that the kernel's owner owns, with the members' files in it.

    Args:
        manifest: what the kernel is built from.
        weights: the members' files on this machine.
        out: where the folders go.
        license_name: of the datasets; None: what the folder has already, or an answer, or `USUAL_LICENSE`.

    Returns:
        The folders, by dataset.

    Raises:
        InputError: a file cannot lie in a dataset as it is called, two files of a dataset have one name, or a folder
            holds other files, or the only copy of one that would go.
    """
    files: dict[str, dict[str, Path]] = {}
    for found in weights:
        dataset = manifest.datasets_for(found.member)[0]
        if owner_of(dataset) != owner_of(manifest.kernel.id):
            continue
        name = str(found.member.file)
        if "/" in name:
            raise InputError(
                f"member {found.member.name}: {name} lies in a folder, and Kaggle's client skips folders: put the file "
                f"beside the others of {dataset}, and name it {name.rsplit('/', 1)[1]} in the manifest"
            )
        files.setdefault(dataset, {})[name] = found.path
    return {
        dataset: write_dataset_folder(out / weights_folder_name(dataset), dataset, named, license_name)
        for dataset, named in files.items()
    }


def write_dataset_folder(folder: Path, dataset: str, files: Mapping[str, Path], license_name: str | None) -> Path:
    """Write one folder, unless it is there already with the same content; returns it. Errors as above."""
    refuse_to_lose_weights(folder, files)
    chosen = license_name or license_of(folder) or ask_license(dataset)
    metadata = dataset_metadata(dataset, chosen)
    sums = {name: file_sha256(path) for name, path in files.items()}
    if read_sums(folder) == sums and sums_of(folder) == sums and license_of(folder) == chosen:
        check_dataset_folder(folder, dataset)
        return folder
    with scratch_folder(folder.parent, folder.name) as scratch:
        made = scratch / "new"
        made.mkdir()
        for name, path in files.items():
            link_or_copy(path, made / name)
        (made / DATASET_METADATA_NAME).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8", newline="\n")
        write_sums(made)
        check_dataset_folder(made, dataset, shown=folder)
        replace_folder(made, folder)
    return folder


def refuse_to_lose_weights(folder: Path, files: Mapping[str, Path]) -> None:
    """Refuse a folder that holds anything but an earlier dataset of weights, since it is replaced as a whole.

    Weights that no earlier build has put there, by the sums that it wrote, and that are not among `files` would be
    lost. So would those that a build has put there, where the weights are read from this folder itself: it is then all
    that the user has kept of them.

    Raises:
        InputError: it does.
    """
    earlier = read_sums(folder)
    own = {DATASET_METADATA_NAME, SUMS_NAME, *files, *earlier}
    refuse_to_replace(folder, ResultFolder("a build", own, (DATASET_METADATA_NAME,)))
    if not any(path.resolve().is_relative_to(folder.resolve()) for path in files.values()):
        return
    left = [folder / name for name in sorted(earlier) if name not in files and (folder / name).is_file()]
    lost = [path.name for path in left if path.stat().st_nlink == 1]
    if lost:
        raise InputError(
            f"{folder} holds the only copy of {', '.join(lost)}, which no member needs any more, and would be replaced "
            "as a whole: move that to another folder, and build again"
        )


def ask_license(dataset: str) -> str:
    """The license of a dataset, asked for where somebody can answer; else `USUAL_LICENSE`."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return USUAL_LICENSE
    while True:
        sys.stdout.write(f"license of {dataset}, one of {', '.join(DATASET_LICENSES)} [{USUAL_LICENSE}]: ")
        sys.stdout.flush()
        answer = sys.stdin.readline().strip() or USUAL_LICENSE
        if answer in DATASET_LICENSES:
            return answer


def license_of(folder: Path) -> str | None:
    """The license in a dataset folder's metadata; None where there is none that can be read."""
    try:
        name = json.loads((folder / DATASET_METADATA_NAME).read_bytes())["licenses"][0]["name"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return name if name in DATASET_LICENSES else None


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name: a hard link where the file system has them, a copy else."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


# Sums


def data_files(folder: Path) -> list[Path]:
    """The files of a dataset folder that are its content, by name; not what a system puts into any folder."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in (DATASET_METADATA_NAME, SUMS_NAME) and not is_of_the_system(path.name)
    ]


def sums_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a dataset folder, by name; empty where there is no folder."""
    return {path.name: file_sha256(path) for path in data_files(folder)} if folder.is_dir() else {}


def write_sums(folder: Path) -> None:
    """Write the sums of a dataset folder's files, in the form of `sha256sum`."""
    text = "".join(f"{total}  {name}\n" for name, total in sums_of(folder).items())
    (folder / SUMS_NAME).write_text(text, encoding="utf-8", newline="\n")


def parse_sums(content: bytes) -> dict[str, str]:
    """The sums by name, as `write_sums` writes them; lines of another form are passed over."""
    lines = content.decode("utf-8", errors="replace").split("\n")  # a name may hold other line ends, and blanks
    pairs = (line.partition("  ") for line in lines)
    return {name.removesuffix("\r"): total for total, separator, name in pairs if separator}


def read_sums(folder: Path) -> dict[str, str]:
    """The sums that a dataset folder says it has; empty where it says none."""
    path = folder / SUMS_NAME
    return parse_sums(path.read_bytes()) if path.is_file() else {}
