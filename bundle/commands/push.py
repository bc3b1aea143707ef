"""Send the datasets that changed, wait until they are ready, push the kernel, and see that it arrived as it was meant.

    python build_kernel.py push               # shows what will be sent, and asks
    python build_kernel.py push --yes         # in a script
    python build_kernel.py push --offline     # only the check that needs no network

You log in as for Kaggle's client: `kaggle auth login`. What was built last, in dist/, is what is sent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.checks import Finding, dataset_folders, offline_findings, online_findings
from bundle.client import KaggleClient, log_in
from bundle.commands.common import (
    add_manifest_option,
    add_out_option,
    add_poll_option,
    confirm,
    positive_int,
    progress_line,
    seconds,
)
from bundle.datasets import data_files
from bundle.kaggle import SCRIPT_NAME
from bundle.push import (
    built_manifest,
    check_pulled,
    needs_sending,
    refuse_stale,
    send_and_wait,
    wait_for_dataset,
    write_record,
)
from kernel.commands.options import CommandParser
from kernel.errors import InputError
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import Manifest


@dataclass(frozen=True)
class Plan:
    """What a push is to do about each dataset."""

    new: tuple[str, ...]  # to be made
    changed: tuple[str, ...]  # to get a new version
    waited_for: tuple[str, ...]  # there, and not ready yet


def add_options(parser: CommandParser) -> None:
    """Add the options."""
    add_manifest_option(parser)
    add_out_option(parser)
    parser.add_argument("--yes", action="store_true", help="send without asking; open questions still stop it")
    parser.add_argument(
        "--accept-questions", action="store_true", help="go on although something looks wrong and may be meant"
    )
    parser.add_argument("--offline", action="store_true", help="only check what needs no network; nothing is sent")
    parser.add_argument("--check", action="store_true", help="only check, with Kaggle's help; nothing is sent")
    parser.add_argument("--no-run", action="store_true", help="save the version without running it")
    parser.add_argument("--timeout", type=positive_int, metavar="SECONDS", help="the longest that the run may take")
    parser.add_argument(
        "--ready-timeout",
        type=seconds,
        default=1800.0,
        metavar="SECONDS",
        help="wait so long for each dataset (default: 1800)",
    )
    add_poll_option(parser)
    parser.excludes(["yes", "no_run", "timeout", "ready_timeout", "poll", "check"], ["offline"])
    parser.excludes(["yes", "no_run", "timeout", "ready_timeout", "poll"], ["check"])


def run(options: argparse.Namespace) -> int:
    """Check, show, ask, send, compare. Returns the exit code."""
    folder = options.out / "kernel"
    manifest = built_manifest(folder / SCRIPT_NAME)
    given = read_manifest(options.manifest)
    if options.offline:
        refuse(offline_findings(manifest, options.out), options.accept_questions)
        refuse_stale(manifest, given, options.manifest, folder)
        there = [name for name in manifest.all_weight_datasets if name not in dataset_folders(manifest, options.out)]
        if there:
            print(f"not checked without the network: whether Kaggle has {', '.join(there)}")
        print("nothing is wrong that can be found without the network; nothing was sent")
        return 0
    # What needs no login is told first.
    refuse([finding for finding in offline_findings(manifest, options.out) if finding.certain], False)
    refuse_stale(manifest, given, options.manifest, folder)
    client = log_in()
    states: dict[str, str | None] = {}
    findings = offline_findings(manifest, options.out, client.user)
    if not any(finding.certain for finding in findings):
        findings += online_findings(client, manifest, options.out, states)
    refuse(findings, options.accept_questions)
    folders = dataset_folders(manifest, options.out)
    plan = make_plan(client, states, folders)
    show_plan(client, manifest, plan, folders, options)
    if options.check:
        print("nothing is wrong that can be found; nothing was sent")
        return 0
    if not confirm("send this?", options.yes):
        print("nothing was sent")
        return 0
    send_datasets(client, plan, folders, options)
    pushed = client.push(folder, manifest.kernel.id, options.timeout, options.no_run)
    unknown = check_pulled(client, pushed, folder, options.out, options.poll)
    write_record(pushed, folder, options.out)
    print(f"version {pushed.version} of {pushed.kernel} is on Kaggle as it was meant: {pushed.url}")
    if unknown:
        print(f"what Kaggle does not tell, and was not compared: {', '.join(unknown)}")
    if options.no_run:
        print("it was saved and does not run; push without --no-run to run it")
    else:
        print("next: `python build_kernel.py status --wait`, then `fetch`, then `submit`")
    return 0


def refuse(findings: Sequence[Finding], accept_questions: bool) -> None:
    """Refuse what is wrong; print the questions, and ask them where somebody can answer.

    Raises:
        InputError: something is certainly wrong, or open questions are left.
    """
    certain = [finding.text for finding in findings if finding.certain]
    questions = [finding.text for finding in findings if not finding.certain]
    for text in questions:
        print(f"question: {text}")
    if certain:
        raise InputError("nothing was sent, as something is wrong:\n" + "\n".join(f"  - {text}" for text in certain))
    if not questions or accept_questions or (sys.stdin.isatty() and confirm("is all of this meant?", False)):
        return
    raise InputError(
        f"nothing was sent, as {len(questions)} question(s) above are open: correct what is wrong, or, if it is "
        "meant, push with --accept-questions"
    )


def make_plan(client: KaggleClient, states: Mapping[str, str | None], folders: Mapping[str, Path]) -> Plan:
    """What is to be done about each dataset, by what Kaggle has."""
    new, changed, waited_for = [], [], []
    for dataset, state in states.items():
        if state is None:
            new.append(dataset)
        elif dataset in folders and (
            state in ("failed", "deleted") or needs_sending(client, dataset, folders[dataset])
        ):
            changed.append(dataset)
        elif state != "ready":
            waited_for.append(dataset)
    return Plan(tuple(new), tuple(changed), tuple(waited_for))


def show_plan(
    client: KaggleClient, manifest: Manifest, plan: Plan, folders: Mapping[str, Path], options: argparse.Namespace
) -> None:
    """Print what a push will do."""
    print(f"as {client.user}, to Kaggle:")
    for dataset in [*manifest.all_weight_datasets, manifest.wheels_dataset]:
        if dataset in plan.new:
            what = f"new, private, {folder_size(folders[dataset])} from {folders[dataset]}"
        elif dataset in plan.changed:
            what = f"a new version, {folder_size(folders[dataset])} from {folders[dataset]}"
        else:
            what = "there, unchanged" if dataset in folders else "there"
            what += ", not ready yet" if dataset in plan.waited_for else ""
        print(f"  dataset {dataset}: {what}")
    identity = manifest.kernel
    how = "saved without a run" if options.no_run else f"run on {identity.accelerator}, internet off"
    limit = f", for {options.timeout} s at most" if options.timeout else ""
    image = f", in {identity.docker_image}" if identity.docker_image else ""
    print(f"  kernel {identity.id} ({'private' if identity.private else 'public'}): {how}{limit}{image}")


def folder_size(folder: Path) -> str:
    """The number and size of a dataset folder's files."""
    files = data_files(folder)
    return f"{len(files)} file(s), {sum(path.stat().st_size for path in files) / 1e6:.1f} MB"


def send_datasets(client: KaggleClient, plan: Plan, folders: Mapping[str, Path], options: argparse.Namespace) -> None:
    """Send what is new or changed, and wait for all."""
    for dataset in [*plan.new, *plan.changed]:
        folder, new = folders[dataset], dataset in plan.new
        with progress_line() as show:
            send_and_wait(client, dataset, folder, new, options.ready_timeout, options.poll, show)
    for dataset in plan.waited_for:
        with progress_line() as show:
            wait_for_dataset(client, dataset, options.ready_timeout, options.poll, show)
