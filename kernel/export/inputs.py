"""What is to be segmented: files, folders and patterns as people name them, each image with a name of its own.

An image's name is its path below the folder that holds all that was named, without its ending, with `/` between
folders. Where two would have the same one, both keep their endings. Every file of an image is written under its name,
and tables, journal and submission know it by that.
"""

from __future__ import annotations

import glob
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from kernel.data.mask_files.pairing import folders_of_masks, made_of_others
from kernel.errors import InputError
from kernel.images.listing import IMAGE_SUFFIXES, RESULT_FOLDER, FolderContent, holds_results, is_text, search_images
from kernel.images.planes import ALL_FRAMES, PlaneChoice, count_frames
from kernel.images.stacks import STACK_SUFFIXES, is_zarr, open_stack
from kernel.log import LOG, printable_name

#: Endings of what is read.
READ_SUFFIXES = (*IMAGE_SUFFIXES, *STACK_SUFFIXES)
#: Images that are passed over, for one and for several: a folder of images often holds their masks, too.
_OF_AN_IMAGE = ("with masks or outlines of another image", "with masks or outlines of other images")
_OF_IMAGES_BESIDE = ("folder of masks of the images beside it", "folders of masks of the images beside them")


@dataclass(frozen=True)
class InputImage:
    """One image to segment.

    Attributes:
        path: of its file, or of its folder for OME-Zarr.
        file: the same below the folder that holds all, with `/`, for tables.
        name: its own; no two images of a run have the same one.
        frame: which of its file's frames, where all are taken.
    """

    path: Path
    file: str
    name: str
    frame: int | None = None


def list_inputs(
    given: Sequence[str], choice: PlaneChoice, recursive: bool = False, leave_out: Sequence[Path] = ()
) -> list[InputImage]:
    """The images that were named, each once, in the order in which they were, those of a folder by their names.

    Args:
        given: files, folders, and patterns with `*`, `?`, `[...]` or `**`, as the shell has them.
        choice: of planes; with all frames, each is an image of its own.
        recursive: look into sub-folders, too.
        leave_out: folders that hold results; what a search finds in them is no input.

    Raises:
        InputError: something named is not there, or holds no image.
    """
    closed = [folder.resolve() for folder in leave_out]
    found: dict[str, Path] = {}  # by the absolute path
    homes: list[str] = []
    for text in given:
        home, paths = named_images(text, recursive, closed)
        homes.append(home)
        for path in paths:
            found.setdefault(os.path.abspath(path), path)  # noqa: PTH100 (links stay as they are named)
    for path in found.values():
        if not is_text(str(path)):
            raise InputError(f"{printable_name(str(path))}: its name is no text in UTF-8: rename it")
    root = common_folder(homes)
    images = [InputImage(path, below(place, root), "") for place, path in found.items()]
    if choice.frame == ALL_FRAMES:
        images = [frame for image in images for frame in frames_of(image, choice)]
    return named(images)


def named_images(text: str, recursive: bool, closed: Sequence[Path]) -> tuple[str, list[Path]]:
    """What one argument names: the absolute path of the folder that its images are below, and these.

    Raises:
        InputError: nothing.
    """
    if not text.strip():
        raise InputError("an empty text was given for the images: name a file, a folder or a pattern")
    path = Path(text).expanduser()
    if path.is_dir() and not is_zarr(path):
        return os.path.abspath(path), folder_images(path, recursive, closed)  # noqa: PTH100
    if path.exists():
        return os.path.abspath(path.parent), [path]  # noqa: PTH100
    if not glob.has_magic(text):
        raise InputError(f"no file or folder {path}: name files, folders, or patterns in quotes, as 'plate*/*.tif'")
    of_results = cache(holds_results)
    matches = [Path(match) for match in sorted(glob.glob(os.path.expanduser(text), recursive=True))]  # noqa: PTH111, PTH207
    images: list[Path] = []
    homes: list[str] = []
    others = 0
    results: dict[str, None] = {}
    for match in matches:
        in_zarr = "**" in text and any(is_zarr(parent) for parent in match.parents)
        if in_zarr or is_inside(match, closed):
            continue  # `**` goes into folders that are an image as a whole, and into results
        if (folder := next(filter(of_results, matched_folders(match, text)), None)) is not None:
            results[f"{folder}/"] = None
            continue
        if match.is_dir() and not is_zarr(match):
            if "**" not in text:
                homes.append(os.path.abspath(match))  # noqa: PTH100
                images += folder_images(match, recursive, closed)
        elif match.suffix.lower() in READ_SUFFIXES or is_zarr(match):
            homes.append(os.path.abspath(match.parent))  # noqa: PTH100
            images.append(match)
        else:
            others += 1
    passed_over: dict[tuple[str, str], list[str]] = {RESULT_FOLDER: list(results)} if results else {}
    if not images:
        held = f"; {FolderContent([], passed_over, 0).describe()}" if results else ""
        raise InputError(
            f"no image matches {text!r}: {len(matches)} file(s) or folder(s) do, and images end in "
            + ", ".join(READ_SUFFIXES)
            + held
        )
    if others:
        LOG.warning("%s: %d file(s) of other formats are passed over", text, others)
    images, made = without_masks(images, str)
    FolderContent([], {**passed_over, **made}, 0).warn_of_passed_over(text)
    return common_folder(homes), images


def matched_folders(match: Path, pattern: str) -> list[Path]:
    """The folders on the way to what a pattern has matched, and itself, but for those that the pattern names."""
    parts = Path(os.path.expanduser(pattern)).parts  # noqa: PTH111
    named = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    return [match, *match.parents][: len(match.parts) - named][::-1]


def folder_images(folder: Path, recursive: bool, closed: Sequence[Path]) -> list[Path]:
    """The images in a folder; the log says what else it holds.

    Raises:
        InputError: there are none.
    """
    content = search_images(folder, below=recursive, more=STACK_SUFFIXES)
    images = [path for path in content.images if not is_inside(path, closed)]
    if not images:
        hint = "" if recursive else "; --recursive looks into sub-folders"
        raise InputError(
            f"no image in {folder}: {content.describe() if not content.images else 'it holds results'}; images end in "
            f"{', '.join(READ_SUFFIXES)}{hint}"
        )
    others = {
        sort: [name for name in names if not is_inside(folder / name, closed)]
        for sort, names in content.passed_over.items()
    }
    images, made = without_masks(images, lambda path: path.relative_to(folder).as_posix())
    others = {sort: names for sort, names in {**others, **made}.items() if names}
    replace(content, passed_over=others).warn_of_passed_over(folder)
    return images


def without_masks(
    paths: Sequence[Path], shown: Callable[[Path], str]
) -> tuple[list[Path], dict[tuple[str, str], list[str]]]:
    """Those image files that hold no masks of others among them; and the others as `shown`, by their sort."""
    folders = folders_of_masks(paths)
    images = [path for path in paths if folders.isdisjoint(path.parents)]
    made = made_of_others(images)
    told = {
        _OF_AN_IMAGE: sorted(map(shown, made)),
        _OF_IMAGES_BESIDE: sorted(f"{shown(folder)}/" for folder in folders),
    }
    return [path for path in images if path not in made], {sort: names for sort, names in told.items() if names}


def is_inside(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a path lies in one of the resolved folders."""
    return any(path.resolve().is_relative_to(folder) for folder in folders)


def common_folder(folders: Sequence[str]) -> str:
    """The deepest folder that holds all; empty where there is none, as over the drives of Windows."""
    try:
        return os.path.commonpath(folders)
    except ValueError:
        return ""


def below(place: str, root: str) -> str:
    """An absolute path below a folder, with `/`; without a folder, all of it, the drive as the first part."""
    path = Path(place)
    if root:
        return path.relative_to(root).as_posix()
    return "/".join([path.drive.replace(":", "").strip("\\/"), *path.parts[1:]])


def frames_of(image: InputImage, choice: PlaneChoice) -> list[InputImage]:
    """An image for each frame of its file; the file itself where it has one, or cannot be opened, as will be told."""
    try:
        stack = open_stack(image.path, choice)
        count = count_frames(stack.axes, stack.sizes, choice)
    except InputError as error:
        LOG.debug("%s", error)
        return [image]
    return [replace(image, frame=frame) for frame in range(count)] if count > 1 else [image]


def named(images: Sequence[InputImage]) -> list[InputImage]:
    """The images with names of their own; file systems that take `A` and `a` for the same are thought of."""
    digits = len(str(max((image.frame or 0 for image in images), default=0)))

    def name_of(image: InputImage, whole: bool) -> str:
        path = Path(image.file)
        last = path.name if whole else path.stem
        if image.frame is not None:  # without dots: Cellpose would save the frames of `a.ome.tif` all as `a_seg.npy`
            last = f"{last.replace('.', '_')}_t{image.frame:0{digits}}"
        return path.with_name(last).as_posix()

    whole = [False] * len(images)
    while True:
        names = [name_of(image, each) for image, each in zip(images, whole, strict=True)]
        counts = Counter(map(same_file, names))
        twice = [counts[same_file(name)] > 1 and not each for name, each in zip(names, whole, strict=True)]
        if not any(twice):
            break
        whole = [each or again for each, again in zip(whole, twice, strict=True)]
    taken: set[str] = set()
    result = []
    for image, name in zip(images, names, strict=True):
        number, free = 1, name
        while same_file(free) in taken:
            number, free = number + 1, f"{name}~{number + 1}"
        taken.add(same_file(free))
        result.append(replace(image, name=free))
    return result


def same_file(name: str) -> str:
    """The same for names that some file system takes for the same."""
    return unicodedata.normalize("NFC", name).casefold()
