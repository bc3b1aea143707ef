"""Where Kaggle mounted the inputs: the folders differ between sessions and years, so they are searched for.

Seen so far are `datasets/<owner>/<slug>`, `competitions/<slug>`, `<slug>` alone and, where two sources have one slug,
`d/<owner>/<slug>`. Each search looks for all of these, a few folders down too, and lists what it tried where it finds
nothing. Folders that cannot be read are passed over, with a word.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel.errors import InputError
from kernel.files import file_sha256
from kernel.images.listing import is_hidden
from kernel.log import LOG, printable_name

#: The environment variable that names the folder of the mounts, where it is not Kaggle's.
INPUT_ROOT_VARIABLE = "KERNEL_INPUT_ROOT"
KAGGLE_INPUT_ROOT = "/kaggle/input"
#: How many folders down the search goes: further than any mount seen, and still quick in a large one.
WALK_DEPTH = 5
#: Folders of folders of owners: what lies in them as <owner>/<slug> is no other owner's.
OWNER_PARENTS = ("datasets", "d")


def input_root() -> Path:
    """The folder under which all inputs are mounted.

    Raises:
        InputError: there is none.
    """
    given = os.environ.get(INPUT_ROOT_VARIABLE)
    root = Path(given or KAGGLE_INPUT_ROOT)
    if not is_folder(root):
        origin = f"named by {INPUT_ROOT_VARIABLE}" if given else "where Kaggle mounts inputs"
        raise InputError(
            f"no folder {root}, {origin}: run this on Kaggle, or set {INPUT_ROOT_VARIABLE} to a folder with "
            "datasets/<owner>/<slug> and competitions/<slug> in it"
        )
    return root


@dataclass(frozen=True)
class DatasetFolders:
    """The folders that may be the mount of a Kaggle dataset."""

    own: tuple[Path, ...]  # <owner>/<slug>: no doubt
    unowned: tuple[Path, ...]  # <slug> alone, or below folders that say nothing of an owner
    others: tuple[Path, ...]  # of another owner: only a file's sum can show that it is the right one

    @property
    def trusted(self) -> tuple[Path, ...]:
        """Those that need no sum: the dataset's own if there are any, else those that name no owner."""
        return self.own or self.unowned

    @property
    def all(self) -> tuple[Path, ...]:
        """All, the likeliest first."""
        return self.own + self.unowned + self.others


def dataset_folders(root: Path, dataset: str) -> DatasetFolders:
    """All folders below `root` that may be the mount of the Kaggle dataset "owner/slug".

    Kaggle does not tell small letters from capitals in an owner, and may write one otherwise than the manifest does.

    Raises:
        InputError: there is none; lists what was tried.
    """
    owner, slug = dataset.split("/")
    own: list[Path] = []
    unowned: list[Path] = []
    others: list[Path] = []
    for path in mounted_folders(root, (slug,)):
        parents = path.relative_to(root).parts[:-1]
        if parents and parents[-1].lower() == owner.lower():
            own.append(path)
        elif len(parents) > 1 and parents[-2] in OWNER_PARENTS:
            others.append(path)
        else:
            unowned.append(path)
    if not own + unowned + others:
        tried = [root / "datasets" / owner / slug, root / "d" / owner / slug, root / slug]
        raise not_mounted(root, f"dataset {dataset}", tried, slug)
    return DatasetFolders(tuple(own), tuple(unowned), tuple(others))


def find_competition(root: Path, competition: str) -> Path:
    """The folder `test` of the competition's images, mounted under `root`.

    Raises:
        InputError: there is none; lists what was tried.
    """
    places = [root / "competitions" / competition / "test", root / competition / "test"]
    found = next(filter(is_folder, places), None) or next(mounted_folders(root, (competition, "test")), None)
    if found is None:
        raise not_mounted(root, f"competition {competition}", places, f"{competition}/test")
    return found


def find_files(folder: Path, name: str) -> list[Path]:
    """The file `name` (a relative path with forward slashes) of `folder`, else all those nearest below it."""
    if is_file(folder / name):
        return [folder / name]
    parts = tuple(name.split("/"))
    found = [path for path in walk_paths(folder) if path.parts[-len(parts) :] == parts and is_file(path)]
    nearest = min((len(path.parts) for path in found), default=0)
    return [path for path in found if len(path.parts) == nearest]


def find_files_by_sum(folder: Path, name: str) -> list[Path]:
    """Those of `find_files`, then all others of its base name: for a sum that decides, folders do not matter."""
    base = name.rsplit("/", 1)[-1]
    others = [path for path in walk_paths(folder) if path.name == base and is_file(path)]
    return list(dict.fromkeys([*find_files(folder, name), *others]))


def find_weights(root: Path, datasets: Sequence[str], name: str, sha256: str | None) -> Path:
    """The weight file of the first of `datasets` that holds it; one that is not mounted is passed over.

    Args:
        root: the folder under which all inputs are mounted.
        datasets: as "owner/slug".
        name: a relative path with forward slashes.
        sha256: in hexadecimal; files with another sum are passed over, and one with it may lie in another folder of
            the dataset than `name` says. Without it, only a file of the dataset's own owner is taken, or of a mount
            that names none.

    Raises:
        InputError: no dataset holds the file, or several files of one could be meant; lists what was tried.
    """
    tried: list[str] = []
    failure: OSError | None = None
    for dataset in datasets:
        try:
            folders = dataset_folders(root, dataset)
        except InputError as error:
            tried.append(str(error))
            continue
        if sha256 is None:
            for tier in (folders.own, folders.unowned):
                candidates = [path for folder in tier for path in find_files(folder, name)]
                if len(candidates) > 1:
                    raise InputError(
                        f"{len(candidates)} files {name} under {root} could be that of the dataset {dataset}: say "
                        "which by the member's `sha256`, or by the path inside the dataset as its `file`: "
                        + join_paths([path.relative_to(root) for path in candidates])
                    )
                if candidates:
                    return candidates[0]
                tried += [f"{folder}: no file {name}; it holds {list_files(folder)}" for folder in tier]
            tried += [f"{folder}: passed over, for it is another owner's" for folder in folders.others]
            continue
        for folder in folders.all:
            candidates = find_files_by_sum(folder, name)
            if not candidates:
                tried.append(f"{folder}: no file {name}; it holds {list_files(folder)}")
            for path in candidates:
                try:
                    found = file_sha256(path)
                except OSError as error:
                    failure = error
                    tried.append(f"{path}: cannot be read: {error.strerror}")
                    continue
                if found == sha256:
                    return path
                tried.append(f"{path}: altered, its sha256 is {found}")
    expected = f" with sha256 {sha256}" if sha256 else ""
    raise InputError(
        f"no file {name}{expected} in {', '.join(datasets) or 'no dataset at all'}: correct the member's "
        "`file`, `sha256` or `dataset` in the manifest, or attach the dataset to the kernel; tried:\n"
        + "\n".join(f"  - {line}" for line in tried)
    ) from failure


def mounted_folders(root: Path, tail: tuple[str, ...]) -> Iterator[Path]:
    """The folders under `root` whose path ends in `tail`, the nearest first; none of them lies in another one."""
    found: list[Path] = []
    for path in walk_paths(root):
        if path.parts[-len(tail) :] == tail and is_folder(path) and not any(map(path.is_relative_to, found)):
            found.append(path)
            yield path


def not_mounted(root: Path, what: str, places: Sequence[Path], tail: str) -> InputError:
    """The error that says what was looked for in vain, and where."""
    tried = "\n".join(f"  - {place}" for place in places)
    return InputError(
        f"{what} is not mounted under {root}: attach it to the kernel (kernel-metadata.json lists the "
        f"sources); tried:\n{tried}\n  - a folder {tail} up to {WALK_DEPTH} folders below {root}, which holds "
        f"{list_files(root)}"
    )


def walk_paths(folder: Path) -> Iterator[Path]:
    """Everything not hidden up to `WALK_DEPTH` folders down, breadth first, sorted within a folder.

    A folder that cannot be read is passed over with a word, one that several links lead to is walked once.
    """
    parents = [folder]
    seen: set[tuple[int, int]] = set()
    for _ in range(WALK_DEPTH):
        below: list[Path] = []
        for parent in parents:
            try:
                identity = parent.stat()
                if (identity.st_dev, identity.st_ino) in seen:
                    continue
                seen.add((identity.st_dev, identity.st_ino))
                names = sorted(path.name for path in parent.iterdir() if not is_hidden(path.name))
            except OSError as error:
                LOG.warning("%s is passed over: it cannot be read (%s)", printable_name(str(parent)), error.strerror)
                continue
            for path in (parent / name for name in names):
                yield path
                if is_folder(path):
                    below.append(path)
        parents = below


def is_folder(path: Path) -> bool:
    """Whether there is such a folder that can be seen; `Path.is_dir` raises an error below one that is closed."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: Path) -> bool:
    """Whether there is such a file that can be seen; `Path.is_file` raises an error below a folder that is closed."""
    return os.path.isfile(path)  # noqa: PTH113


def join_paths(paths: Sequence[Path]) -> str:
    """Paths in a message."""
    return ", ".join(printable_name(str(path)) for path in paths)


def list_files(folder: Path) -> str:
    """The first ten names in a folder, for a message."""
    try:
        names = sorted(path.name + ("/" if is_folder(path) else "") for path in folder.iterdir())
    except OSError as error:
        return f"what cannot be read ({error.strerror})"
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(map(printable_name, names[:10])) + more) if names else "nothing"
