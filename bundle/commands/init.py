"""Write a manifest of your own: your names in the place of the placeholders, your members where you have some.

    python build_kernel.py init --user ada                            # the published ensemble under your names
    python build_kernel.py init --user ada --from ../runs/members     # your own weights

It writes mine.json beside build_kernel.py, which all commands take from then on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

from bundle.checks import USUAL_COMPETITION
from bundle.commands.common import OWN_MANIFEST, PUBLISHED_MANIFEST, ROOT
from bundle.commands.members import member_name
from bundle.kaggle import PLACEHOLDER_OWNERS, owner_of, refused_name, slug_of_title
from kernel.errors import InputError
from kernel.files import written_file
from kernel.images.listing import is_hidden
from kernel.manifest.edit import manifest_entry, read_text
from kernel.manifest.json_text import set_value
from kernel.manifest.member_text import set_member
from kernel.manifest.reader import parse_manifest, read_manifest
from kernel.manifest.types import WEIGHT_SUFFIXES
from kernel.settings import CELL_TYPES

USUAL_TITLE = "In-network ensemble"
WHEELS_SLUG = "mmdet-pure-python-wheels"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--user", required=True, help="your Kaggle user name, as in the address of your page")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="DIR", help="folder of your weights, with or without manifest.json"
    )
    parser.add_argument("--title", help="of the kernel, 5 to 50 characters (default: that of the manifest taken over)")
    parser.add_argument("--dataset", metavar="SLUG", help="of your weights (default: the title's slug, and -weights)")
    parser.add_argument("--competition", help="its slug, as in its address (default: Sartorius)")
    parser.add_argument(
        "--manifest", type=Path, default=OWN_MANIFEST, help="the file to write (default: mine.json beside this file)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the manifest. Returns the exit code."""
    check_user(options.user)
    if options.manifest.exists():
        raise InputError(f"{options.manifest} is there already: edit it, delete it, or name another by --manifest")
    passed_over: list[str] = []
    text = base_text(options, passed_over)
    text = own_text(text, options)
    manifest = parse_manifest(text, str(options.manifest))
    with written_file(options.manifest) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
    for line in passed_over:
        print(f"passed over: {line}")
    print(f"manifest: {options.manifest}, {len(manifest.members)} member(s)")
    print(f"kernel: {manifest.kernel.id}, for {manifest.kernel.competition}")
    print(f"datasets: {', '.join(dict.fromkeys([*manifest.all_weight_datasets, manifest.wheels_dataset]))}")
    print("next: `python build_kernel.py members`, then build")
    return 0


def check_user(user: str) -> None:
    """Raise InputError where `user` is no name that Kaggle has."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", user) or user.lower() in PLACEHOLDER_OWNERS:
        raise InputError(f"--user {user}: give your Kaggle user name, the last part of your page's address")


def base_text(options: argparse.Namespace, passed_over: list[str]) -> str:
    """The manifest to begin with: the folder's own, one of the weight files there, or the published one."""
    if options.source is None:
        return read_text(PUBLISHED_MANIFEST)
    if not options.source.is_dir():
        raise InputError(f"--from {options.source}: no such folder")
    given = options.source / "manifest.json"
    if given.is_file():
        read_manifest(given)
        return read_text(given).removeprefix("\ufeff")
    members = recognised_entries(options.source, passed_over)
    if not members:
        raise InputError(
            f"--from {options.source}: no weight file of ours in it\n"
            + "\n".join(f"  - {line}" for line in passed_over)
        )
    data = {
        "$schema": "bundle/manifest.schema.json",
        "kernel": {
            "id": f"{PLACEHOLDER_OWNERS[0]}/{slug_of_title(USUAL_TITLE)}",
            "title": USUAL_TITLE,
            "competition": USUAL_COMPETITION,
        },
        "wheels_dataset": f"{PLACEHOLDER_OWNERS[0]}/{WHEELS_SLUG}",
        "weight_datasets": [f"{PLACEHOLDER_OWNERS[0]}/{slug_of_title(USUAL_TITLE)}-weights"],
        "members": members,
    }
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def recognised_entries(folder: Path, passed_over: list[str]) -> list[dict[str, Any]]:
    """An entry for each weight file of a folder, used for everything; others are told in `passed_over`."""
    from kernel.models.checkpoints import recognise_checkpoint

    entries: list[dict[str, Any]] = []
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES and not is_hidden(path.name))
    for path in files:
        refused = refused_name(path.name)
        if refused:
            passed_over.append(refused)
            continue
        try:
            spec = recognise_checkpoint(path)
        except InputError as error:
            passed_over.append(str(error))
            continue
        if spec.num_classes != len(CELL_TYPES):
            passed_over.append(f"{path} tells {spec.num_classes} classes apart, not {len(CELL_TYPES)}")
            continue
        entry = manifest_entry(path, spec.kind, spec.encoder, CELL_TYPES)
        entry["name"] = member_name(path)
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

    def owned(name: str) -> str:
        return f"{user}/{name.split('/')[1]}" if owner_of(name) in PLACEHOLDER_OWNERS else name

    title = options.title or data["kernel"]["title"]
    slug = slug_of_title(title) if options.title else data["kernel"]["id"].split("/")[1]
    text = set_value(text, ("kernel", "id"), f"{user}/{slug}")
    text = set_value(text, ("kernel", "title"), title)
    if options.competition:
        text = set_value(text, ("kernel", "competition"), options.competition)
    text = set_value(text, ("wheels_dataset",), owned(data["wheels_dataset"]))
    datasets = [owned(name) for name in data.get("weight_datasets", [])]
    if options.source is not None and datasets and (options.title or options.dataset):
        datasets = [f"{user}/{options.dataset or f'{slug}-weights'}"]
    if datasets != data.get("weight_datasets", []):
        text = set_value(text, ("weight_datasets",), datasets)
    for member in data["members"]:
        if member.get("dataset"):
            text = set_member(text, member["name"], {"dataset": owned(member["dataset"])})
    if "$schema" in data and options.manifest.resolve().parent != ROOT:
        schema = os.path.relpath(ROOT / "bundle" / "manifest.schema.json", options.manifest.resolve().parent)
        text = set_value(text, ("$schema",), Path(schema).as_posix())
    return text
