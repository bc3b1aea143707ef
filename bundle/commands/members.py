"""List the members of the ensemble, and add, remove, swap, assign or verify them.

    python build_kernel.py members                                     # list them
    python build_kernel.py members add FILE --use-for cort cls
    python build_kernel.py members swap OLD FILE
    python build_kernel.py members use NAME --for astro cort
    python build_kernel.py members remove NAME
    python build_kernel.py members verify --weights-dir weights
    python build_kernel.py members time --weights-dir weights --images images --limit 1

What a file holds is recognised by its content. The manifest is edited in its place; its order and form stay.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle.commands.common import USUAL_OUT, add_manifest_option, add_out_option, meant_options, print_table
from bundle.kaggle import SCRIPT_NAME, refused_name
from bundle.lock import LOCK_PATH, load_lock
from bundle.member_table import COLUMNS, TIMES_NAME, explain_blanks, member_row, read_times, seconds_an_image
from bundle.names import PLACEHOLDER_OWNERS, dataset_problems, owner_of
from kernel.commands.options import CommandParser, whole_number
from kernel.commands.rules import is_given, join_flags
from kernel.errors import InputError, RunError
from kernel.files import file_sha256, written_file
from kernel.folders import scratch_folder
from kernel.local_weights import can_read_weights, check_claims, locate_named, resolve_weights
from kernel.manifest.edit import (
    add_to_manifest,
    manifest_entry,
    remove_from_manifest,
    require_member,
    set_in_manifest,
)
from kernel.manifest.presets import weights_folder
from kernel.manifest.reader import read_manifest
from kernel.manifest.rules import RULE_DATASET, is_weight_path
from kernel.manifest.types import MASK_KINDS, WEIGHT_SUFFIXES, Manifest
from kernel.runtime.wheels import verify_wheels
from kernel.settings import CELL_TYPES, EQUAL_WEIGHTS, EVERY_USE
from kernel.text import first_names, name_hint, shell_word
from kernel.vendored import use_vendored_packages

if TYPE_CHECKING:
    from kernel.models.configs import DetectorSpec


def add_options(parser: CommandParser) -> None:
    """Add the actions and their options."""
    add_manifest_option(parser)
    add_out_option(parser)
    add_weights_option(parser)
    parser.set_defaults(action=list_members, name_of_action="", idle=(), out=None)
    actions = parser.add_subparsers(title="actions (none: list them)", metavar="ACTION")

    add = actions.add_parser("add", help="put a weight file into the ensemble")
    add.add_argument("file", type=Path, metavar="FILE")
    add.add_argument("--name", help="of the member (default: the file's)")
    add.add_argument("--dataset", metavar="OWNER/SLUG", help="that holds the file (default: your one in the manifest)")
    add.add_argument(
        "--use-for",
        nargs="+",
        choices=EVERY_USE,
        default=list(EVERY_USE),
        help="default: all cell types, and the first pass",
    )
    add.set_defaults(action=add_member, idle=("out",))

    remove = actions.add_parser("remove", help="take a member out")
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(action=remove_member, idle=("out", "weights_dir"))

    swap = actions.add_parser("swap", help="put another weight file in a member's place")
    swap.add_argument("name", metavar="OLD")
    swap.add_argument("file", type=Path, metavar="FILE")
    swap.add_argument("--name", dest="new_name", help="call the member otherwise from now on")
    swap.add_argument("--dataset", metavar="OWNER/SLUG", help="that holds the file (default: the member's)")
    swap.set_defaults(action=swap_member, idle=("out",))

    use = actions.add_parser("use", help="say what a member is used for")
    use.add_argument("name", metavar="NAME")
    use.add_argument("--for", dest="use_for", nargs="+", choices=EVERY_USE, required=True)
    use.set_defaults(action=use_member, idle=("out", "weights_dir"))

    verify = actions.add_parser("verify", help="compare the weight files with what the manifest says of them")
    verify.set_defaults(action=verify_members, idle=("out",))

    time = actions.add_parser("time", help="run each member dry by itself, and note its seconds an image")
    time.add_argument("--images", type=Path, required=True, help="folder of images")
    time.add_argument(
        "--limit", type=whole_number(1), default=1, metavar="N", help="only the first so many (default: %(default)s)"
    )
    time.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the script's choice)")
    time.add_argument("--out", type=Path, default=argparse.SUPPRESS, help="where the build is (default: dist)")
    time.set_defaults(action=time_members)
    for name, action in actions.choices.items():
        action.set_defaults(name_of_action=name)
        add_manifest_option(action, inherited=True)
    for action in (add, swap, verify, time):
        add_weights_option(action, inherited=True)


def add_weights_option(parser: CommandParser, inherited: bool = False) -> None:
    """Add --weights-dir; `inherited` as in `add_manifest_option`."""
    parser.add_argument(
        "--weights-dir",
        type=Path,
        default=argparse.SUPPRESS if inherited else None,
        help="folder of the members' weight files (default: `weights` beside the manifest, or else the manifest's own)",
    )


def run(options: argparse.Namespace) -> int:
    """Do the action. Returns the exit code.

    Raises:
        InputError: an option before the action's name does nothing for it.
    """
    idle = [name for name in options.idle if is_given(options, name)]
    if idle:
        raise InputError(f"{join_flags(idle, 'and')}: of no use to `members {options.name_of_action}`, leave it out")
    return options.action(options)


def out_folder(options: argparse.Namespace) -> Path:
    """Where the build and what was measured are."""
    return options.out or USUAL_OUT


def weights_dir(options: argparse.Namespace) -> Path:
    """Where weight files are looked for."""
    return options.weights_dir or weights_folder(options.manifest.resolve().parent)


# Listing


def list_members(options: argparse.Namespace) -> int:
    """Print a table of the members."""
    manifest = read_manifest(options.manifest)
    folder = weights_dir(options)
    out = out_folder(options)
    timed = read_times(out / TIMES_NAME)
    rows = [member_row(manifest, member, folder, timed) for member in manifest.members]
    print(f"{len(rows)} member(s) of {manifest.kernel.id} in {options.manifest}; files looked for in {folder}\n")
    print_table(list(COLUMNS), rows)
    for line in explain_blanks(rows, folder):
        print(line)
    for use in EVERY_USE:
        users = [member.name for member in manifest.members if use in member.use_for]
        print(f"{use}: {', '.join(users) or 'none'}")
    print(seconds_an_image(out / "dry-run" / "summary.json", manifest))
    return 0


# Measuring


def time_members(options: argparse.Namespace) -> int:
    """Run each member dry by itself, as Kaggle would, and note its seconds an image."""
    from bundle.build import write_kernel
    from bundle.dry_run import read_summary, run_dry

    out = out_folder(options)
    try:
        verify_wheels(out / "wheels", load_lock(LOCK_PATH))
    except InputError as error:
        raise InputError(
            f"{out / 'wheels'} holds not the wheels that a run needs: build first, by `python build_kernel.py`, and "
            "then measure"
        ) from error
    manifest, found = resolve_weights(read_manifest(options.manifest), weights_dir(options))
    times = read_times(out / TIMES_NAME)
    for weights in found:
        if weights.member.kind in MASK_KINDS:
            print(f"member {weights.member.name}: a {weights.member.kind} finds no cells, and is not timed by itself")
            continue
        alone = replace(manifest, members=(replace(weights.member, use_for=CELL_TYPES, weights=EQUAL_WEIGHTS),))
        with scratch_folder(out, "timed") as scratch:
            write_kernel(alone, scratch / "kernel")
            done = run_dry(
                scratch / "kernel" / SCRIPT_NAME, alone, out / "wheels",
                [replace(weights, member=alone.members[0])], options.images, scratch, options.limit, options.device,
            )  # fmt: skip
            images = read_summary(done.folder / "summary.json").get("images", {})
        if not images:
            raise RunError(f"member {weights.member.name} has a result for no image: see the log above")
        spent = sum(sum(image["seconds"].values()) for image in images.values()) / len(images)
        times[str(weights.member.sha256)] = round(spent, 3)
        print(f"{weights.member.name}: {spent:.2f} s an image by itself")
        with written_file(out / TIMES_NAME) as temporary:
            temporary.write_text(json.dumps(times, indent=2) + "\n", encoding="utf-8", newline="\n")
    return 0


# Editing


def recognise(manifest: Manifest, file: Path) -> DetectorSpec:
    """What detector a file holds.

    Raises:
        InputError: it is no file, holds no detector of ours, one of too few classes, or the same as a member's, or
            Kaggle or a manifest would not take its name.
    """
    from kernel.models.checkpoints import recognise_checkpoint

    problem = lacking_file(file) or (file_problem(file) if file.suffix in WEIGHT_SUFFIXES else None)
    if problem is not None:
        raise InputError(problem)
    spec = recognise_checkpoint(file)
    if spec.num_classes < len(CELL_TYPES):
        raise InputError(
            f"{file} tells {spec.num_classes} classes apart, the ensemble {len(CELL_TYPES)} ({', '.join(CELL_TYPES)}): "
            "train it on these (`python -m kernel train --init FILE`)"
        )
    sha256 = file_sha256(file)
    same = [member.name for member in manifest.members if member.sha256 == sha256]
    if same:
        raise InputError(f"{file} is the file of {same[0]} already: the same detector counted twice adds nothing")
    return spec


def lacking_file(file: Path) -> str | None:
    """Why there is no file of that name, and which may be meant; None where there is one."""
    if file.is_file():
        return None
    folder = file if file.is_dir() else file.parent
    names = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES) if folder.is_dir() else []
    if file.is_dir():
        inside = f": give one of its files, {first_names(names)}" if names else ", and has no weight file in it"
        return f"{file} is a folder{inside}"
    if file.is_symlink():
        return f"no weight file {file}: it is a link to {file.readlink()}, which is not there"
    hint = name_hint(file.name, names, f"{folder} has") if names else f"{folder} has no weight file"
    return f"no weight file {file}: {hint}"


def file_problem(file: Path) -> str | None:
    """Why Kaggle, or a manifest, would not take a weight file's name; None where both do."""
    if (refused := refused_name(file.name)) is not None:
        return refused
    if "{" in file.name or "}" in file.name:
        return f"{file.name}: braces stand for folds in a manifest: rename the file"
    if not is_weight_path(file.name):
        return f"{file.name!r}: a manifest takes no such name: rename the file"
    return None


def chosen_dataset(manifest: Manifest, given: str | None) -> str:
    """The dataset of a new member: the given one, or the only one of the kernel's owner.

    Raises:
        InputError: it is not clear which, or it is no dataset.
    """
    owner = manifest.kernel.id.split("/")[0]
    named = list(dict.fromkeys([*manifest.weight_datasets, *manifest.all_weight_datasets]))
    own = [name for name in named if owner_of(name) == owner.lower()]
    if given is not None:
        if not RULE_DATASET.allows(given):
            example = own[0] if own else f"{owner}/my-cell-weights"
            raise InputError(f"--dataset {given!r}: expected a dataset as owner/slug, {example} for example")
        member = replace(manifest.members[0], dataset=given)
        refused = [
            problem
            for problem in dataset_problems(replace(manifest, members=(*manifest.members, member)))
            if problem not in dataset_problems(manifest)
        ]
        if refused:
            raise InputError(f"--dataset {given}: {refused[0]}")
        return given
    if owner.lower() in PLACEHOLDER_OWNERS:
        raise InputError(
            f"whose dataset is to hold the file? the manifest names no user yet, but {owner}: `python build_kernel.py "
            "init --user NAME` makes one of your own, or give --dataset NAME/my-cell-weights"
        )
    if len(own) == 1:
        return own[0]
    options = f"one of {', '.join(own)}" if own else f"{owner}/my-weights, for example: the push makes it"
    raise InputError(f"which dataset is to hold the file? say by --dataset: {options}")


def add_member(options: argparse.Namespace) -> int:
    """Put a file into the ensemble."""
    manifest = read_manifest(options.manifest)
    spec = recognise(manifest, options.file)
    entry = manifest_entry(options.file, spec.kind, spec.encoder, list(dict.fromkeys(options.use_for)))
    if options.name is not None:
        entry["name"] = options.name
    entry["dataset"] = chosen_dataset(manifest, options.dataset)
    if entry["name"] in [member.name for member in manifest.members]:
        raise InputError(
            f"{options.manifest} has a member {entry['name']!r} already: give another --name, or "
            f"`python build_kernel.py members swap {entry['name']} {shell_word(options.file)}{meant_options(options)}`"
        )
    print(add_to_manifest(options.manifest, entry), end="")
    print(f"added: {entry['name']}, a {spec.kind} {spec.encoder}, of {entry['dataset']}")
    print(next_step(options, entry["name"]))
    return 0


def next_step(options: argparse.Namespace, name: str) -> str:
    """How to build with the new file of the member `name`: the build takes all of them from one folder."""
    manifest, folder = read_manifest(options.manifest), weights_dir(options)
    build = f"python build_kernel.py{meant_options(options)} --weights-dir"
    lacking = list[str]()
    for member in manifest.members:
        if member.file is not None:  # the build recognises the others by content
            try:
                locate_named(manifest, member, folder)
            except InputError:
                lacking.append(member.name)
    others = [lacks for lacks in lacking if lacks != name]
    if others:
        return (
            f"next: the files of {first_names(others)} are not in {folder}: put all members' files, {options.file} "
            f"among them, into one folder, and name that: `{build} DIR`"
        )
    first = f"put {options.file} into {folder}, where the other members' files are; then " if lacking else ""
    return f"next: {first}`{build} {shell_word(folder)}`"


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, with a number behind it where it is taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if one not in taken)


def remove_member(options: argparse.Namespace) -> int:
    """Take a member out."""
    print(remove_from_manifest(options.manifest, options.name), end="")
    print(f"removed: {options.name}")
    return 0


def swap_member(options: argparse.Namespace) -> int:
    """Put another file in a member's place: uses and weights stay, what was known of the old one's network goes."""
    require_member(options.manifest, options.name)
    manifest = read_manifest(options.manifest)
    spec = recognise(manifest, options.file)
    (old,) = (member for member in manifest.members if member.name == options.name)
    dataset = old.dataset if options.dataset is None else None
    values: dict[str, Any] = {
        "name": old.name if options.new_name is None else options.new_name,
        "kind": spec.kind,
        "encoder": spec.encoder,
        "dataset": dataset or chosen_dataset(manifest, options.dataset),
        "file": options.file.name,
        "sha256": file_sha256(options.file),
        "stem_stride": None,
        "worth": None,
    }
    if old.notes:
        values["notes"] = ""
    print(set_in_manifest(options.manifest, options.name, values), end="")
    print(f"swapped: {values['name']} is now a {spec.kind} {spec.encoder}, of {values['dataset']}")
    print(next_step(options, values["name"]))
    return 0


def use_member(options: argparse.Namespace) -> int:
    """Set what a member is used for."""
    print(set_in_manifest(options.manifest, options.name, {"use_for": options.use_for}), end="")
    print(f"{options.name} is used for {', '.join(options.use_for)}")
    return 0


def verify_members(options: argparse.Namespace) -> int:
    """Compare the files with the manifest; print a line for each member."""
    manifest = read_manifest(options.manifest)
    folder = weights_dir(options)
    manifest, found = resolve_weights(manifest, folder)
    if can_read_weights():
        use_vendored_packages()
    open_points = check_claims(manifest, found)
    for weights in found:
        member = weights.member
        print(f"{member.name}: {weights.path} is a {member.kind} {member.encoder}, sha256 {str(member.sha256)[:12]}")
    for point in open_points:
        print(f"unverified: {point}")
    print(f"all {len(found)} member(s) are as {options.manifest} says")
    return 0
