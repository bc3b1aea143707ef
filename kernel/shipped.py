"""The members that come with this project, to predict with and to train on from."""

from __future__ import annotations

from pathlib import Path

from kernel.errors import InputError

#: How options call them.
SHIPPED = "shipped"
#: Folders of a manifest and `weights`, the best first, below the checkout's or the installed package's folder: members
#: of real cells, and where there are none, the demo's.
MEMBER_FOLDERS = ("bundle/members", "bundle/demo")
MANIFEST_NAME, WEIGHTS_NAME = "manifest.json", "weights"


def shipped_members() -> Path:
    """The folder of the shipped members: manifest.json, and their files in `weights`.

    Raises:
        InputError: this installation has none.
    """
    package = Path(__file__).resolve().parent
    for name in MEMBER_FOLDERS:
        for root in (package.parent, package):  # of a checkout, and of the installed package
            folder = root / name
            if (folder / MANIFEST_NAME).is_file() and (folder / WEIGHTS_NAME).is_dir():
                return folder
    raise InputError(
        f"this installation has no members ({' or '.join(MEMBER_FOLDERS)} with {MANIFEST_NAME} and {WEIGHTS_NAME}): "
        "name a folder that has, or work in the checkout"
    )


def members_folder(name: str) -> Path:
    """The folder of the shipped members, or another one like it by its path.

    Raises:
        InputError: as `shipped_members`, or that folder is none of members.
    """
    if name == SHIPPED:
        return shipped_members()
    folder = Path(name)
    if not (folder / MANIFEST_NAME).is_file():
        raise InputError(
            f"no {MANIFEST_NAME} in {folder}: give {SHIPPED!r}, or a folder of {MANIFEST_NAME} and weights"
        )
    return folder
