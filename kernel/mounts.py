"""Where Kaggle mounted the inputs: the folders differ between sessions and years, so they are searched for.

Seen so far are `datasets/<owner>/<slug>`, `competitions/<slug>` and, older, `<slug>` alone. Each search tries these in
this order, then walks a few folders down, and lists what it tried where it finds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from kernel.errors import InputError
from kernel.files import file_sha256
from kernel.images.listing import is_hidden

#: The environment variable that names the folder of the mounts, where it is not Kaggle's.
INPUT_ROOT_VARIABLE = "KERNEL_INPUT_ROOT"
KAGGLE_INPUT_ROOT = "/kaggle/input"
#: How many folders down the search goes: further than any mount seen, and still quick in a large one.
WALK_DEPTH = 5


def input_root() -> Path:
    """The folder under which all inputs are mounted.

    Raises:
        InputError: there is none.
    """
    given = os.environ.get(INPUT_ROOT_VARIABLE)
    root = Path(given or KAGGLE_INPUT_ROOT)
    if not root.is_dir():
        origin = f"named by {INPUT_ROOT_VARIABLE}" if given else "where Kaggle mounts inputs"
        raise InputError(
            f"no folder {root}, {origin}: run this on Kaggle, or set {INPUT_ROOT_VARIABLE} to a folder with "
            "datasets/<owner>/<slug> and competitions/<slug> in it"
        )
    return root


def find_dataset(root: Path, dataset: str) -> Path:
    """The folder in which the Kaggle dataset "owner/slug" is mounted under `root`.

    Raises:
        InputError: there is none; lists what was tried.
    """
    owner, slug = dataset.split("/")
    places = (root / "datasets" / owner / slug, root / slug)
    return find_mounted_folder(root, places, slug, f"dataset {dataset}")


def find_competition(root: Path, competition: str) -> Path:
    """The folder `test` of the competition's images, mounted under `root`.

    Raises:
        InputError: there is none; lists what was tried.
    """
    places = (root / "competitions" / competition / "test", root / competition / "test")
    return find_mounted_folder(root, places, f"{competition}/test", f"competition {competition}")


def find_files(folder: Path, name: str) -> list[Path]:
    """The file `name` (a relative path with forward slashes) of `folder`, else all those nearest below it."""
    if (folder / name).is_file():
        return [folder / name]
    parts = tuple(name.split("/"))
    found = [path for path in walk_paths(folder) if path.parts[-len(parts) :] == parts and path.is_file()]
    nearest = min((len(path.parts) for path in found), default=0)
    return [path for path in found if len(path.parts) == nearest]


def find_weights(root: Path, datasets: Sequence[str], name: str, sha256: str | None) -> Path:
    """The weight file of the first of `datasets` that holds it; one that is not mounted is passed over.

    Args:
        root: the folder under which all inputs are mounted.
        datasets: as "owner/slug".
        name: a relative path with forward slashes.
        sha256: in hexadecimal; files with another sum are passed over.

    Raises:
        InputError: no dataset holds the file, or several files of one could be meant; lists what was tried.
    """
    tried: list[str] = []
    for dataset in datasets:
        try:
            folder = find_dataset(root, dataset)
        except InputError as error:
            tried.append(str(error))
            continue
        candidates = find_files(folder, name)
        if not candidates:
            tried.append(f"{folder}: no file {name}; it holds {list_files(folder)}")
        elif sha256 is None:
            if len(candidates) > 1:
                raise InputError(
                    f"{len(candidates)} files {name} under {folder}: say which by giving the path inside the dataset: "
                    + ", ".join(str(path.relative_to(folder)) for path in candidates)
                )
            return candidates[0]
        for path in candidates:
            found = file_sha256(path)
            if found == sha256:
                return path
            tried.append(f"{path}: altered, its sha256 is {found}")
    expected = f" with sha256 {sha256}" if sha256 else ""
    raise InputError(
        f"no file {name}{expected} in {', '.join(datasets) or 'no dataset at all'}: correct the member's "
        "`file`, `sha256` or `dataset` in the manifest, or attach the dataset to the kernel; tried:\n"
        + "\n".join(f"  - {line}" for line in tried)
    )


def find_mounted_folder(root: Path, places: Sequence[Path], tail: str, what: str) -> Path:
    """The first of `places` that is a folder, else the nearest one under `root` whose path ends in `tail`."""
    for place in places:
        if place.is_dir():
            return place
    parts = tuple(tail.split("/"))
    for path in walk_paths(root):
        if path.parts[-len(parts) :] == parts and path.is_dir():
            return path
    tried = "\n".join(f"  - {place}" for place in places)
    raise InputError(
        f"{what} is not mounted under {root}: attach it to the kernel (kernel-metadata.json lists the "
        f"sources); tried:\n{tried}\n  - a folder {tail} up to {WALK_DEPTH} folders below {root}, which holds "
        f"{list_files(root)}"
    )


def walk_paths(folder: Path) -> Iterator[Path]:
    """Everything not hidden up to `WALK_DEPTH` folders down, breadth first, sorted within a folder."""
    parents = [folder]
    for _ in range(WALK_DEPTH):
        below: list[Path] = []
        for parent in parents:
            for path in sorted(path for path in parent.iterdir() if not is_hidden(path.name)):
                yield path
                if path.is_dir():
                    below.append(path)
        parents = below


def list_files(folder: Path) -> str:
    """The first ten names in a folder, for a message."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(names[:10]) + more) if names else "nothing"
