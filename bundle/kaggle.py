"""What Kaggle's client reads: metadata of the kernel and of a dataset, and checks of a dataset before it is published.

The client checks little, ignores keys that it does not know, and exits with 0 where the server refused; so what
can be known beforehand is checked here. Standard library only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bundle.names import PLACEHOLDER_OWNERS, dataset_problem, kernel_problems, owner_of
from kernel.errors import InputError
from kernel.manifest.types import Manifest
from kernel.text import parse_json, read_any_text

KERNEL_METADATA_NAME = "kernel-metadata.json"
DATASET_METADATA_NAME = "dataset-metadata.json"
SCRIPT_NAME = "kernel.py"
#: In each dataset folder: the sums of its files, by which a push knows what Kaggle has already.
SUMS_NAME = "sha256sums.txt"
#: The licenses that the client's documentation names, as far as they suit code and weights.
DATASET_LICENSES = ("apache-2.0", "CC0-1.0", "CC-BY-SA-4.0", "other", "unknown")
TITLE_LENGTHS = range(6, 51)
SUBTITLE_LENGTHS = range(20, 81)
#: What Kaggle refuses in the names of a dataset's files.
REFUSED_IN_NAMES = "&@"
#: Archives that the server unpacks, so that the mount does not hold what was uploaded.
UNPACKED_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z")


def kernel_metadata(manifest: Manifest) -> dict[str, Any]:
    """The content of kernel-metadata.json, for `kaggle kernels push`. Only `SCRIPT_NAME` is uploaded with it.

    Raises:
        InputError: Kaggle would not take the title, or it and the id would give the kernel two names.
    """
    identity = manifest.kernel
    problems = kernel_problems(identity)
    if problems:
        raise InputError("\n".join(problems))
    return {
        "id": identity.id,
        "title": identity.title,
        "code_file": SCRIPT_NAME,
        "language": "python",
        "kernel_type": "script",
        "is_private": identity.private,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": False,  # the client's default is true, and the competition forbids it
        "machine_shape": identity.accelerator,
        "docker_image_pinning_type": identity.docker_pinning,
        **({} if identity.docker_image is None else {"docker_image": identity.docker_image}),
        "dataset_sources": list(dict.fromkeys([*manifest.all_weight_datasets, manifest.wheels_dataset])),
        "competition_sources": [identity.competition],
        "kernel_sources": [],
        "model_sources": [],
    }


def dataset_metadata(dataset_id: str, license_name: str = "other") -> dict[str, object]:
    """The content of dataset-metadata.json, for `kaggle datasets create`.

    Raises:
        InputError: `dataset_id` is not "owner/slug" as Kaggle has it.
    """
    problem = dataset_problem(dataset_id)
    if problem is not None:
        raise InputError(problem)
    # The slug's limits are the title's, 6 to 50 characters; each package has its own license inside.
    return {
        "id": dataset_id,
        "title": dataset_id.split("/")[1].replace("-", " ").capitalize(),
        "licenses": [{"name": license_name}],
    }


def refused_name(name: str) -> str | None:
    """Why Kaggle takes no file of this name into a dataset, and what to do; None where it does."""
    if not set(REFUSED_IN_NAMES) & set(name):
        return None
    return f"{name}: Kaggle takes no {' or '.join(REFUSED_IN_NAMES)} in a file's name: rename the file"


def check_dataset_folder(folder: Path, dataset: str, shown: Path | None = None) -> None:
    """Check a folder that `kaggle datasets create -p` is to publish as `dataset` ("owner/slug").

    Messages call it `shown`, which it is to become, or else by its own name.

    Raises:
        InputError: lists what the client or the server would refuse, skip or change.
    """
    path = folder / DATASET_METADATA_NAME
    try:
        metadata = parse_json(read_any_text(path))
    except FileNotFoundError as error:
        raise InputError(f"no {path}: a dataset needs one") from error
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: found {type(metadata).__name__}, expected an object")
    problems = []
    if metadata.get("id") != dataset:
        problems.append(f"id: found {metadata.get('id')!r}, expected {dataset!r}, as the manifest says")
    title = metadata.get("title")
    if not isinstance(title, str) or len(title) not in TITLE_LENGTHS:
        problems.append(f"title: found {title!r}, expected 6 to 50 characters")
    subtitle = metadata.get("subtitle")
    if subtitle and len(str(subtitle)) not in SUBTITLE_LENGTHS:
        problems.append(f"subtitle: found {len(str(subtitle))} characters, expected 20 to 80, or none")
    licenses = metadata.get("licenses")
    licenses = licenses if isinstance(licenses, list) else []
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in licenses]
    if len(names) != 1 or names[0] not in DATASET_LICENSES:
        problems.append(
            f"licenses: found {metadata.get('licenses')!r}, expected exactly one, [{{'name': NAME}}], NAME one of "
            + ", ".join(DATASET_LICENSES)
        )
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            problems.append(f"{entry.name}/: folders are skipped by the client; put the files beside each other")
        elif entry.name.endswith(UNPACKED_SUFFIXES):
            problems.append(f"{entry.name}: the server unpacks archives; give it another form")
        elif refused := refused_name(entry.name):
            problems.append(f"{refused}, and correct the member's `file` in the manifest")
    if problems:
        raise InputError(
            f"{shown or folder} cannot be published as a dataset:\n" + "\n".join(f"  - {line}" for line in problems)
        )


def unverified_points(manifest: Manifest) -> list[str]:
    """What a build cannot check, a sentence each, for the user to check before the push."""
    points = []
    named = [("kernel.id", manifest.kernel.id), ("wheels_dataset", manifest.wheels_dataset)]
    named += [("a dataset of weights", dataset) for dataset in manifest.all_weight_datasets]
    for field, name in named:
        if owner_of(name) in PLACEHOLDER_OWNERS:
            points.append(
                f"{field} is {name}: put your own Kaggle user name there (`python build_kernel.py init --user NAME`)"
            )
    nameless = [member.name for member in manifest.members if member.file is None]
    unsummed = [member.name for member in manifest.members if member.file is not None and member.sha256 is None]
    homeless = [member.name for member in manifest.members if member.dataset is None]
    if nameless:
        points.append(
            f"{len(nameless)} member(s) name no weight file, so the kernel must recognise theirs by content when it "
            f"starts, and fails where several suit; --weights-dir fills them in: {', '.join(nameless)}"
        )
    if unsummed:
        points.append(f"the weights of {len(unsummed)} member(s) have no sha256: {', '.join(unsummed)}")
    if homeless:
        points.append(
            f"{len(homeless)} member(s) name no dataset and are looked for in {', '.join(manifest.weight_datasets)}: "
            + ", ".join(homeless)
        )
    points.append(
        "whether the datasets exist and may be used by the kernel's owner: `python build_kernel.py push` asks Kaggle; "
        "`kaggle kernels push` exits with 0 even when it drops one"
    )
    return points
