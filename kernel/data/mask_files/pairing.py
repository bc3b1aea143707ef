"""Which mask files belong to which images of a folder, by what lies in it.

A mask file is known by its ending, by a mark behind the image's name (`a.png` and `a_cp_masks.png`), or by a folder
that says so (`images/a.png` and `masks/a.tif`). It belongs to the image whose name is left without these. Where several
images have this name, as those of two plates, it belongs to the one whose folders are called as its own.

A folder of mask files that no image is called as holds one for each cell, where it is called as an image, or is the
masks' folder beside a single image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel.data.image_names import IMAGE_FOLDERS, composed, images_by_name
from kernel.data.mask_files.forms import (
    COMMON_ENDINGS,
    IMAGE_ENDINGS,
    MASK_MARKS,
    OTHER_MARKS,
    PLAIN_MARKS,
    WEAK_ENDINGS,
    form_of,
)
from kernel.data.prepare_report import REPORT_NAME
from kernel.data.prepared import PREPARED_NAME, SHOWN_FOLDER
from kernel.errors import InputError
from kernel.images.listing import FOLDER_LINK, IMAGE_SUFFIXES, FolderContent, is_hidden, is_text

#: Folders of masks, in lower case. The last are those that `predict` writes.
MASK_FOLDERS = frozenset(
    {
        "mask", "masks", "label", "labels", "label_images", "labelimages", "annotation", "annotations", "gt",
        "ground_truth", "groundtruth", "target", "targets", "segmentation", "segmentations", "seg",
        "outlines", "rois", "seg-npy", "ome-tiff", "ome-zarr",
    }
)  # fmt: skip
#: Of these, those that hold nothing else.
PLAIN_MASK_FOLDERS = frozenset({"mask", "masks"})
#: What Cellpose's training data have behind an image's name.
IMAGE_MARKS = ("_img", "_image", "_raw")
#: Folders of `predict` that hold neither images nor masks.
OTHER_FOLDERS = frozenset({"pictures", "report"})


@dataclass(frozen=True)
class MaskFile:
    """A file of masks: its format by its name in MASK_FORMS, and the name of its image, or of what that would be."""

    path: Path
    form: str
    image_name: str
    is_weak: bool = False  # by its ending it may well be something else


@dataclass(frozen=True)
class Pairing:
    """What was found in a folder.

    Attributes:
        images: all images, by their names.
        masks: of those that have any, by the image's name; mostly one.
        without_image: mask files whose image is not there.
    """

    images: Mapping[str, Path]
    masks: Mapping[str, Sequence[MaskFile]]
    without_image: Sequence[MaskFile]


def pair_masks(folder: Path, masks_folder: Path | None = None, frame: int | None = None) -> Pairing:
    """Pair the images below a folder with the mask files there, or below another folder.

    Where some images lie in a folder `images`, image files elsewhere are none. In a folder of masks alone every file
    may be one; among images one of an image's format needs a mark, or a folder that says so.

    With a `frame`, masks of it alone count, too: `predict` ends their names by _t and its number, without dots before.

    Raises:
        InputError: there is no such folder or no image, or two images have the same name.
    """
    is_apart = masks_folder is not None and not is_below(folder, masks_folder)
    files = list(walk_files(folder))
    mask_paths = files if masks_folder is None else list(walk_files(masks_folder))
    images = find_images(folder, [each for each in files if not (is_apart and is_below(each[0], masks_folder))])
    names: dict[str, list[str]] = {}  # of the images by what their files are called, mostly one
    for name, path in images.items():
        names.setdefault(composed(path.stem), []).append(name)
    keys = {key: name for name in names for key in reversed(image_keys(name))} | {name: name for name in names}
    if frame is not None:
        keys = {key.replace(".", "_"): name for key, name in keys.items()} | keys
    taken = set(images.values())
    masks: dict[str, list[MaskFile]] = {}
    without_image = []
    for path, parts in mask_paths:
        form = form_of(path)
        if form is None or path in taken or parts & OTHER_FOLDERS:
            continue
        name, ending = form
        stem = path.name[: -len(ending)]
        bases = mask_keys(stem)
        is_plain = ending in COMMON_ENDINGS and not is_apart and not parts & MASK_FOLDERS
        if is_plain and ending in IMAGE_ENDINGS:
            bases = bases[1:]  # its name is that of an image
        if frame is not None:
            bases += [re.sub(rf"_t0*{frame}$", "", base) for base in bases]
        if ending.startswith(".ome."):
            bases = [*(f"{base}.ome" for base in bases), *bases]
        called = next((names[keys[base]] for base in bases if base in keys), [])
        if len(called) > 1:
            root = masks_folder if masks_folder and not path.is_relative_to(folder) else folder
            called = in_folders(
                telling_folders(path, root), {each: telling_folders(images[each], folder) for each in called}
            )
        found = next(iter(called), None) or only_image(path, images)
        if found is not None:
            masks.setdefault(found, []).append(MaskFile(path, name, found, ending in WEAK_ENDINGS))
        elif ending not in WEAK_ENDINGS and (not is_plain or stem.lower().endswith(MASK_MARKS)):
            without_image.append(MaskFile(path, name, bases[-1]))
    of_cells = folders_of_cell_masks(without_image, images, {name: names[key] for name, key in keys.items()})
    for name, file in of_cells.items():
        if name not in masks:
            masks[name] = [file]
            without_image = [each for each in without_image if each.path.parent != file.path]
    surer = {name: [file for file in found if not file.is_weak] or found for name, found in masks.items()}
    return Pairing(images, surer, without_image)


def is_below(path: Path, folder: Path | None) -> bool:
    """Whether a path is a folder, or in it at any depth."""
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def find_images(folder: Path, files: Sequence[tuple[Path, frozenset[str]]]) -> dict[str, Path]:
    """The images among the files below a folder, by name.

    Raises:
        InputError: there are none, or two have the same name.
    """
    candidates = [
        (path, parts)
        for path, parts in files
        if path.suffix.lower() in IMAGE_SUFFIXES and not parts & (MASK_FOLDERS | OTHER_FOLDERS)
    ]
    candidates = [each for each in candidates if each[1] & IMAGE_FOLDERS] or candidates
    keys = {key for path, _ in candidates for key in image_keys(composed(path.stem))}
    images = [path for path, _ in candidates if not is_of_another(path, keys)]
    if not images:
        raise InputError(
            f"no image below {folder}: expected {', '.join(IMAGE_SUFFIXES)} files, and masks beside them or in a "
            "folder masks or labels"
        )
    return images_by_name(images, lambda path: telling_folders(path, folder))


def telling_folders(path: Path, root: Path) -> tuple[str, ...]:
    """The folders from the root to a file that tell plates and such apart: all but those for images or for masks."""
    parts = map(composed, path.relative_to(root).parent.parts)
    return tuple(part for part in parts if part.lower() not in MASK_FOLDERS | IMAGE_FOLDERS)


def in_folders(folders: tuple[str, ...], images: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Which of several images of one name, with their folders, masks in these `folders` belong to: one, or none.

    All folders of one of the two must end the other's path: masks of another plate, or of none, are not given to it.
    """
    within = [name for name, own in images.items() if own == folders or (own and folders[-len(own) :] == own)]
    around = [name for name, own in images.items() if folders and own[-len(folders) :] == folders]
    if within:
        return [max(within, key=lambda name: len(images[name]))]
    return around if len(around) == 1 else []


def is_of_another(path: Path, keys: Collection[str]) -> bool:
    """Whether an image file's name says that it was made of an image, of what is called so, or holds masks plainly."""
    stem = composed(path.stem)
    other = max((mark for mark in OTHER_MARKS if stem.lower().endswith(mark)), key=len, default="")
    bases = mask_keys(stem)[1:] if not other else [stem[: len(stem) - len(other)]]
    return stem.lower().endswith(PLAIN_MARKS) or any(base in keys for base in bases)


def made_of_others(paths: Sequence[Path]) -> set[Path]:
    """Those image files that are, by a mark behind a name, masks or pictures of another one that is beside them."""
    keys: dict[Path, set[str]] = {}
    for path in paths:
        keys.setdefault(path.parent, set()).update(image_keys(composed(path.stem)))
    return {path for path in paths if keys[path.parent].intersection(marked_of(path.stem))}


def folders_of_masks(paths: Sequence[Path]) -> set[Path]:
    """Folders of these image files that say that they hold masks, and stand beside a folder of images so called.

    The name alone does not say it: somebody's `labels` may hold images. A file in it, or a folder with a mask for each
    cell, has to be called as an image is; or it is `masks` beside a folder of a single image.
    """
    images: dict[Path, list[set[str]]] = {}  # what each may be called, by the folder around both
    masks: dict[Path, set[str]] = {}
    for path in paths:
        for folder in path.parents:
            if folder.name.lower() in IMAGE_FOLDERS:
                images.setdefault(folder.parent, []).append(set(image_keys(composed(path.stem))))
            elif folder.name.lower() in MASK_FOLDERS:
                within = path.relative_to(folder).parts[:-1]
                keys = {*mask_keys(composed(path.stem).removesuffix(".ome")), *map(composed, within)}
                masks.setdefault(folder, set()).update(keys)
    return {
        folder
        for folder, keys in masks.items()
        for beside in [images.get(folder.parent, [])]
        if keys & set().union(*beside) or (len(beside) == 1 and folder.name.lower() in PLAIN_MASK_FOLDERS)
    }


def marked_of(stem: str) -> list[str]:
    """What a file with a mark behind a name may be of, by its name without ending; empty where it has no mark."""
    stem = composed(stem).removesuffix(".ome")
    mark = max((mark for mark in (*MASK_MARKS, *OTHER_MARKS) if stem.lower().endswith(mark)), key=len, default="")
    return mask_keys(stem[: len(stem) - len(mark)]) if mark else []


def only_image(path: Path, images: Mapping[str, Path]) -> str | None:
    """The name of the only image beside a RoiSet.zip, as the ROI Manager calls what it saves."""
    is_set = path.name.lower() == "roiset.zip"
    beside = [name for name, image in images.items() if image.parent == path.parent] if is_set else []
    return beside[0] if len(beside) == 1 else None


def folders_around(image: Path) -> tuple[Path, ...]:
    """The folders beside whose masks an image lies: its own, and that of its folder of images."""
    own = image.parent
    return (own, own.parent) if own.name.lower() in IMAGE_FOLDERS else (own,)


def folders_of_cell_masks(
    files: Sequence[MaskFile], images: Mapping[str, Path], called: Mapping[str, Sequence[str]]
) -> dict[str, MaskFile]:
    """The folders of a mask file for each cell among those of `files`, which no image is called as, by image.

    Args:
        files: that have no image.
        images: by their names.
        called: the names of images, by each that a folder may have.
    """
    found = {}
    for folder in {file.path.parent: None for file in files if file.form == "labels"}:
        is_plain = folder.name.lower() in MASK_FOLDERS
        own = called.get(composed(folder.parent.name if is_plain else folder.name), ())
        if is_plain and not own:
            own = [name for name, path in images.items() if folder.parent in folders_around(path)]
        if len(own) == 1:
            found[own[0]] = MaskFile(folder, "cell-masks", own[0])
    return found


def walk_files(folder: Path) -> Iterator[tuple[Path, frozenset[str]]]:
    """The files below a folder, and OME-Zarr folders, in order; with the folders between, in lower case.

    Hidden ones, links to folders, which the log names, and names that are no text are passed over. So is what `prepare`
    has shown of images: copies of them, where an earlier output of it lies among the images.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder of the images and their masks")

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename}: {error.strerror}; check its permissions") from error

    links = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        parts = frozenset(part.lower() for part in Path(parent).relative_to(folder).parts)
        whole = sorted(name for name in folders if name.lower().endswith(".zarr"))
        folders[:] = sorted(name for name in folders if not is_hidden(name) and name not in whole)
        if {PREPARED_NAME, REPORT_NAME} <= set(files) and SHOWN_FOLDER in folders:
            folders.remove(SHOWN_FOLDER)
        paths = (Path(parent, name) for name in folders)
        links += [f"{path.relative_to(folder).as_posix()}/" for path in paths if path.is_symlink()]
        for name in (*whole, *sorted(files)):
            path = Path(parent, name)
            if not is_hidden(name) and is_text(name) and (name in whole or os.path.isfile(path)):  # noqa: PTH113
                yield path, parts
    if links:
        FolderContent([], {FOLDER_LINK: links}, 0).warn_of_passed_over(folder)


def image_keys(name: str) -> list[str]:
    """The names by which a mask file may call an image, the image's own first."""
    bare = name.removesuffix(".ome")
    return list(dict.fromkeys([name, bare, *(bare.removesuffix(mark) for mark in IMAGE_MARKS)]))


def mask_keys(stem: str) -> list[str]:
    """What a mask file may be of, by its name without ending: all of it, or without mark or an image's ending."""
    stem = composed(stem)
    mark = max((mark for mark in MASK_MARKS if stem.lower().endswith(mark)), key=len, default="")
    bases = [stem, stem[: len(stem) - len(mark)]]
    bases += [Path(base).stem for base in bases if Path(base).suffix.lower() in IMAGE_SUFFIXES]
    return list(dict.fromkeys(base for base in bases if base))
