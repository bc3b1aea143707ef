"""Write a manifest of your own: your names in the place of the placeholders, your members where you have some.

    python build_kernel.py init --user ada                            # the published ensemble under your names
    python build_kernel.py init --user ada --from ../runs/members     # your own weights

It writes mine.json beside build_kernel.py, which all commands take from then on.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from bundle.commands.common import OWN_MANIFEST, PUBLISHED_MANIFEST, ROOT, meant_options
from bundle.commands.members import file_problem, free_name
from bundle.names import (
    PLACEHOLDER_OWNER,
    PLACEHOLDER_OWNERS,
    competition_problem,
    dataset_problem,
    owner_of,
    refuse_names,
    slug_of_title,
    title_problem,
    user_problem,
)
from kernel.commands.options import CommandParser
from kernel.errors import InputError
from kernel.files import writing, written_file
from kernel.images.listing import is_hidden
from kernel.locks import sole_writer
from kernel.manifest.edit import manifest_entry, read_text
from kernel.manifest.json_text import set_value
from kernel.manifest.member_text import set_member
from kernel.manifest.presets import MANIFEST_NAME, weights_folder
from kernel.manifest.reader import parse_manifest, read_manifest
from kernel.manifest.types import WEIGHT_SUFFIXES, refuse_fold_files
from kernel.settings import CELL_TYPES
from kernel.text import first_names, shell_word

USUAL_TITLE = "In-network ensemble"
#: What the datasets of weights are called after the kernel's slug, which is cut where both are too long for Kaggle.
WEIGHTS_ENDING = "-weights"


def add_options(parser: CommandParser) -> None:
    """Add the options."""
    parser.add_argument("--user", required=True, help="your Kaggle user name, as in the address of your page")
    parser.add_argument(
        "--from",
        dest="from_",
        type=Path,
        metavar="DIR",
        help="folder of your weights: a manifest.json there is taken over, else the files are recognised "
        "(default: the published ensemble)",
    )
    parser.add_argument("--title", help="of the kernel, 5 to 50 characters (default: that of the manifest taken over)")
    parser.add_argument(
        "--dataset",
        metavar="SLUG",
        help="with --from: what the dataset of your weights is called, 6 to 50 characters (default: the title's slug, "
        "and -weights)",
    )
    parser.add_argument("--competition", help="its slug, as in its address (default: Sartorius)")
    parser.add_argument(
        "--manifest", type=Path, default=OWN_MANIFEST, help="the file to write (default: mine.json beside this file)"
    )
    parser.needs(["dataset"], ["from_"], ": the published weights have datasets of their own")


def run(options: argparse.Namespace) -> int:
    """Write the manifest. Returns the exit code."""
    refuse_options(options)
    with writing(options.manifest):
        options.manifest.parent.mkdir(parents=True, exist_ok=True)
    with sole_writer(options.manifest):
        if options.manifest.exists() or options.manifest.is_symlink():
            raise InputError(f"{options.manifest} is there already: edit it, delete it, or name another by --manifest")
        passed_over: list[str] = []
        base, origin = base_text(options.from_, passed_over)
        text = own_text(base, options)
        manifest = parse_manifest(text, f"{options.manifest}, made of {origin},")
        try:
            refuse_names(manifest)
        except InputError as error:
            raise InputError(
                f"{error}\n(taken over from {origin}: --title, or --dataset, gives another name)"
            ) from error
        refuse_fold_files(manifest)
        with written_file(options.manifest) as temporary:
            temporary.write_bytes(text.encode("utf-8"))
    for line in passed_over:
        print(f"passed over: {line}")
    print(f"manifest: {options.manifest}, {len(manifest.members)} member(s), made of {origin}")
    print(f"kernel: {manifest.kernel.id}, for {manifest.kernel.competition}")
    print(f"datasets: {', '.join(dict.fromkeys([*manifest.all_weight_datasets, manifest.wheels_dataset]))}")
    named, weights = meant_options(options), weights_of(options.from_)
    print(
        f"next: `python build_kernel.py members{named}`, then `python build_kernel.py{named} --weights-dir "
        f"{shell_word(weights)}`"
    )
    lacking = [member.file for member in manifest.members if member.file and not (weights / member.file).is_file()]
    if options.from_ is not None and lacking:
        print(f"the build needs these files in {weights} as well: {first_names(lacking)}")
    return 0


def refuse_options(options: argparse.Namespace) -> None:
    """Refuse names that Kaggle would not take, all of them at once, and a folder that is none.

    Raises:
        InputError: lists them.
    """
    found = {"--user": user_problem(options.user)}
    if options.title is not None:
        found["--title"] = title_problem(options.title.strip())
    if options.competition is not None:
        found["--competition"] = competition_problem(options.competition)
    if options.dataset is not None:
        found["--dataset"] = own_dataset_problem(options.dataset, options.user)
    if options.from_ is not None and not options.from_.is_dir():
        what = "is a file: give its folder" if options.from_.is_file() else "no such folder"
        found["--from"] = f"{options.from_}: {what}"
    problems = [f"{option} {problem}" for option, problem in found.items() if problem is not None]
    if problems:
        raise InputError("\n".join(problems))


def own_dataset_problem(dataset: str, user: str) -> str | None:
    """Why `dataset`, a slug or the user's owner/slug, is no name for a dataset of weights; None where it is one."""
    owner, _, slug = dataset.rpartition("/")
    if owner and owner.lower() != user.lower():
        return f"{dataset!r} is not {user}'s: give the dataset's name alone"
    if dataset_problem(f"{PLACEHOLDER_OWNER}/{slug}") is None:
        return None
    like = slug_of_title(slug)[:50].strip("-")
    example = like if len(like) > 5 else weights_slug(like or slug_of_title(USUAL_TITLE))
    return f"{slug!r} is no dataset's name: give 6 to 50 small letters, digits and inner hyphens, like {example}"


def weights_slug(slug: str) -> str:
    """The name of the weights' dataset for a kernel's slug."""
    return f"{slug[: 50 - len(WEIGHTS_ENDING)].rstrip('-')}{WEIGHTS_ENDING}"


def base_text(source: Path | None, passed_over: list[str]) -> tuple[str, str]:
    """The manifest to begin with, and what it is made of: the folder's own, its weight files, or the published one.

    Its weight files get the settings of `new_manifest`: the published thresholds are of thirteen members.
    """
    if source is None:
        return read_text(PUBLISHED_MANIFEST), "the published ensemble"
    given = source / MANIFEST_NAME
    if given.is_file():
        read_manifest(given)
        return read_text(given).removeprefix("\ufeff"), str(given)
    members = recognised_entries(source, passed_over)
    if not members:
        raise InputError(nothing_text(source, passed_over))
    from kernel.training.manifests import new_manifest  # by now torch is loaded

    data = {"$schema": "bundle/manifest.schema.json", **new_manifest(members)}
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n", f"the weight files in {source}"


def weights_of(source: Path | None) -> Path:
    """The folder of the weight files that the members of `base_text` name, for the build."""
    if source is None:
        return Path("weights")
    return weights_folder(source) if (source / MANIFEST_NAME).is_file() else source


def nothing_text(source: Path, passed_over: list[str]) -> str:
    """Why a folder gives no member, and where there are weight files."""
    if passed_over:
        return f"--from {source}: no weight file of ours in it:\n" + "\n".join(f"  - {line}" for line in passed_over)
    folders = [path for path in source.iterdir() if path.is_dir() and any(map(is_weight_file, path.iterdir()))]
    inside = first_names(sorted(path.name for path in folders))
    hint = f"; in its folder(s) {inside} there are some: give one of these" if inside else ""
    return f"--from {source}: no weight file of ours in it: no name ends in {', '.join(WEIGHT_SUFFIXES)}{hint}"


def is_weight_file(path: Path) -> bool:
    """Whether a path is that of a weight file, by its name."""
    return path.suffix in WEIGHT_SUFFIXES and not is_hidden(path.name) and path.is_file()


def recognised_entries(folder: Path, passed_over: list[str]) -> list[dict[str, Any]]:
    """An entry for each weight file of a folder, used for everything; others are told in `passed_over`."""
    from kernel.models.checkpoints import recognise_checkpoint

    entries: list[dict[str, Any]] = []
    for path in sorted(filter(is_weight_file, folder.iterdir())):
        refused = file_problem(path)
        if refused:
            passed_over.append(refused)
            continue
        try:
            spec = recognise_checkpoint(path)
        except InputError as error:
            passed_over.append(str(error))
            continue
        if spec.num_classes < len(CELL_TYPES):
            passed_over.append(f"{path} tells {spec.num_classes} classes apart, fewer than {len(CELL_TYPES)}")
            continue
        entry = manifest_entry(path, spec.kind, spec.encoder, CELL_TYPES)
        entry["name"] = free_name(entry["name"], [other["name"] for other in entries])
        same = [other["name"] for other in entries if other["sha256"] == entry["sha256"]]
        if same:
            passed_over.append(f"{path} is the same file as {same[0]}'s")
            continue
        entries.append(entry)
    return entries


def own_text(text: str, options: argparse.Namespace) -> str:
    """A manifest's text with the user's names in it."""
    data = json.loads(text)
    user = options.user
    title = data["kernel"]["title"] if options.title is None else options.title.strip()
    slug = data["kernel"]["id"].split("/")[1] if options.title is None else slug_of_title(title)

    def owned(name: str) -> str:
        return f"{user}/{name.split('/')[1]}" if owner_of(name) in PLACEHOLDER_OWNERS else name

    def weights_home(name: str) -> str:
        if options.dataset is not None:
            return f"{user}/{options.dataset.rpartition('/')[2]}"
        if options.from_ is not None and options.title is not None and owner_of(name) in PLACEHOLDER_OWNERS:
            return f"{user}/{weights_slug(slug)}"
        return owned(name)

    text = set_value(text, ("kernel", "id"), f"{user}/{slug}")
    text = set_value(text, ("kernel", "title"), title)
    if options.competition is not None:
        text = set_value(text, ("kernel", "competition"), options.competition)
    text = set_value(text, ("wheels_dataset",), owned(data["wheels_dataset"]))
    datasets = list(dict.fromkeys(map(weights_home, data.get("weight_datasets", []))))
    if datasets != data.get("weight_datasets", []):
        text = set_value(text, ("weight_datasets",), datasets)
    for member in data["members"]:
        if member.get("dataset"):
            text = set_member(text, member["name"], {"dataset": weights_home(member["dataset"])})
    if "$schema" in data:
        text = set_value(text, ("$schema",), schema_reference(options.manifest.resolve().parent))
    return text


def schema_reference(folder: Path) -> str:
    """The manifest's schema as a manifest in `folder` names it."""
    schema = ROOT / "bundle" / "manifest.schema.json"
    try:
        return Path(os.path.relpath(schema, folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return schema.as_uri()
