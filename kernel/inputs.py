"""Where Kaggle mounted what: it varies between sessions and years, so it is looked for, never assumed.

Seen in the wild are `datasets/<owner>/<slug>`, `competitions/<slug>` and, older, `<slug>` alone. Each look-up
tries the known forms in that order, then walks a few levels down for the folder or file itself, and says what
it tried where all of that fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from kernel.data.folders import is_hidden
from kernel.errors import InputError
from kernel.runtime.wheels import file_sha256

#: The environment variable that says where the mounts are, when not where Kaggle puts them.
INPUT_ROOT_VARIABLE = "KERNEL_INPUT_ROOT"
KAGGLE_INPUT_ROOT = "/kaggle/input"
#: Levels below the root that are searched. Deeper than any form seen, shallow enough for a large mount.
WALK_DEPTH = 5


def input_root() -> Path:
    """The folder under which all inputs are mounted.

    Raises InputError where there is none.
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

    Raises InputError that lists what was tried.
    """
    owner, slug = dataset.split("/")
    forms = (root / "datasets" / owner / slug, root / slug)
    return find_mounted_folder(root, forms, slug, f"dataset {dataset}")


def find_competition(root: Path, competition: str) -> Path:
    """The folder `test` of the competition's images, mounted under `root`.

    Raises InputError that lists what was tried.
    """
    forms = (root / "competitions" / competition / "test", root / competition / "test")
    return find_mounted_folder(root, forms, f"{competition}/test", f"competition {competition}")


def find_file(folder: Path, name: str) -> Path:
    """The file `name` (a relative path with forward slashes) of `folder`, or else a few levels below it.

    Raises InputError where there is none, or where several lie equally far below.
    """
    return pick_only(find_files(folder, name), folder, name)


def find_files(folder: Path, name: str) -> list[Path]:
    """All files `name` of `folder`: the one where the name says, else those at the least depth below."""
    if (folder / name).is_file():
        return [folder / name]
    parts = tuple(name.split("/"))
    found = [path for path in walk_paths(folder) if path.parts[-len(parts) :] == parts and path.is_file()]
    nearest = min((len(path.parts) for path in found), default=0)
    return [path for path in found if len(path.parts) == nearest]


def find_weights(root: Path, datasets: Sequence[str], name: str, sha256: str | None) -> Path:
    """The weight file `name` of the first of `datasets` ("owner/slug") that holds it, unaltered.

    With `sha256` (hexadecimal), files of that name with another sum are passed over. A dataset that is not mounted
    is passed over as long as another has the file.

    Raises InputError that names the file, what was tried, and the expected and found sums.
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
            return pick_only(candidates, folder, name)
        for path in candidates:
            found = file_sha256(path)
            if found == sha256:
                return path
            tried.append(f"{path}: altered, its sha256 is {found}")
    expected = f" with sha256 {sha256}" if sha256 else ""
    raise InputError(
        f"no file {name}{expected} in {', '.join(datasets) or 'no dataset at all'}. Correct the member's "
        "`file`, `sha256` or `dataset` in the manifest, or attach the dataset to the kernel. Tried:\n"
        + "\n".join(f"  - {line}" for line in tried)
    )


def find_mounted_folder(root: Path, forms: Sequence[Path], tail: str, what: str) -> Path:
    """The first of `forms` that is a folder, else the nearest one under `root` whose path ends in `tail`."""
    for form in forms:
        if form.is_dir():
            return form
    parts = tuple(tail.split("/"))
    for path in walk_paths(root):
        if path.parts[-len(parts) :] == parts and path.is_dir():
            return path
    tried = "\n".join(f"  - {form}" for form in forms)
    raise InputError(
        f"{what} is not mounted under {root}: attach it to the kernel (kernel-metadata.json lists the "
        f"sources). Tried:\n{tried}\n  - a folder {tail} up to {WALK_DEPTH} levels below {root}, which holds "
        f"{list_files(root)}"
    )


def walk_paths(folder: Path, depth: int = WALK_DEPTH) -> Iterator[Path]:
    """Everything not hidden up to `depth` levels below `folder`, level by level, sorted within a folder."""
    level = [folder]
    for _ in range(depth):
        below: list[Path] = []
        for parent in level:
            for path in sorted(path for path in parent.iterdir() if not is_hidden(path.name)):
                yield path
                if path.is_dir():
                    below.append(path)
        level = below


def pick_only(candidates: Sequence[Path], folder: Path, name: str) -> Path:
    """The one candidate; InputError for none or several."""
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise InputError(f"no file {name} in {folder}, which holds {list_files(folder)}")
    raise InputError(
        f"{len(candidates)} files {name} under {folder}: say which by giving the path inside the dataset: "
        + ", ".join(str(path.relative_to(folder)) for path in candidates)
    )


def list_files(folder: Path, limit: int = 10) -> str:
    """What `folder` holds, for a message."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) if names else "nothing"
