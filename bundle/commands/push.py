"""Send the datasets that changed, wait until they are ready, push the kernel, and see that it arrived as it was meant.

    python build_kernel.py push               # shows what will be sent, and asks
    python build_kernel.py push --yes         # in a script
    python build_kernel.py push --offline     # only the check that needs no network

You log in as for Kaggle's client: `kaggle auth login`. What was built last, in dist/, is what is sent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.checks import (
    Finding,
    dataset_folders,
    kernel_there_findings,
    offline_findings,
    online_findings,
    replaced_findings,
    unchecked_datasets,
)
from bundle.client import KaggleClient, KernelThere, log_in
from bundle.client_errors import KaggleError
from bundle.commands.common import (
    Stand,
    add_manifest_option,
    add_out_option,
    add_poll_option,
    alone_in,
    confirm,
    meant_options,
    positive_int,
    progress_line,
    seconds,
    telling_stops,
)
from bundle.datasets import USUAL_LICENSE, data_files, license_of, write_sums
from bundle.kaggle import SCRIPT_NAME, kernel_metadata
from bundle.push import (
    LOST_STATES,
    built_manifest,
    check_pulled,
    is_under_way,
    needs_sending,
    push_kernel,
    read_record,
    refuse_stale,
    send_and_wait,
    text_sha256,
    wait_for_dataset,
    wait_for_sent,
)
from bundle.waiting import Waiting
from kernel.commands.options import CommandParser
from kernel.errors import InputError, RunError
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import Manifest


@dataclass(frozen=True)
class Plan:
    """What a push is to do about each dataset."""

    new: tuple[str, ...] = ()  # to be made
    changed: tuple[str, ...] = ()  # to get a new version
    under_way: tuple[str, ...] = ()  # sent by a push before, and not seen to have arrived
    waited_for: tuple[str, ...] = ()  # there, and not ready yet


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
    with telling_stops("nothing was sent") as stand:
        if options.offline:
            return check_offline(options)
        with alone_in(options.out):  # until the end: what was checked and shown is what is sent
            return push(options, stand)


def check_offline(options: argparse.Namespace) -> int:
    """Check what needs no network; only reads, also what another process sends just now. Returns the exit code."""
    folder = options.out / "kernel"
    manifest = built_manifest(folder / SCRIPT_NAME)
    given = read_manifest(options.manifest)
    refuse(offline_findings(manifest, options.out), options.accept_questions)
    refuse_stale(manifest, given, options.manifest, folder)
    unchecked = unchecked_datasets(manifest, options.out)
    if unchecked:
        print(f"not checked without the network: whether Kaggle has {', '.join(unchecked)}")
    print("nothing is wrong that can be found without the network; nothing was sent")
    return 0


def push(options: argparse.Namespace, stand: Stand) -> int:
    """What `run` does with the network; `stand` tells how far it is."""
    folder = options.out / "kernel"
    manifest = built_manifest(folder / SCRIPT_NAME)
    given = read_manifest(options.manifest)
    # What needs no login is told first.
    refuse([finding for finding in offline_findings(manifest, options.out) if finding.certain], False)
    refuse_stale(manifest, given, options.manifest, folder)
    client = log_in()
    states: dict[str, str | None] = {}
    there = None
    timeout = None if options.no_run else options.timeout
    findings = offline_findings(manifest, options.out, client.user, timeout)
    if not any(finding.certain for finding in findings):
        findings += online_findings(client, manifest, options.out, states)
        there = client.kernel_there(manifest.kernel.id)
        findings += kernel_there_findings(manifest, options.out, there)
    folders = dataset_folders(manifest, options.out)
    plan = Plan()
    if not any(finding.certain for finding in findings):
        plan = make_plan(client, states, folders)
        readable = [dataset for dataset in plan.changed if states[dataset] not in LOST_STATES]
        findings += replaced_findings(client, manifest, folders, readable)
    refuse(findings, options.accept_questions)
    show_plan(client, manifest, plan, folders, there, options)
    if options.check:
        print("nothing is wrong that can be found; nothing was sent")
        return 0
    if not confirm("send this?", options.yes):
        print("nothing was sent")
        return 0
    unknown = send(client, manifest, plan, folders, options, stand)
    if unknown:
        print(f"what Kaggle does not tell, and was not compared: {', '.join(unknown)}")
    if options.no_run:
        print("it was saved and does not run; push without --no-run to run it")
    else:
        print(f"next: `python build_kernel.py status{meant_options(options)} --wait`, then `fetch`, then `submit`")
    return 0


def send(
    client: KaggleClient,
    manifest: Manifest,
    plan: Plan,
    folders: Mapping[str, Path],
    options: argparse.Namespace,
    stand: Stand,
) -> list[str]:
    """Send what is to be sent, and compare the kernel; returns what could not be compared.

    Raises:
        RunError: something of it has failed; what was sent until then is not sent again by another push.
    """
    sent = ""
    for dataset in [*plan.new, *plan.changed]:
        stand.text = f"{sent}the dataset {dataset} may not have arrived: push again, which sends what is left"
        with progress_line() as show:
            send_and_wait(client, dataset, folders[dataset], dataset in plan.new, dataset_waiting(options, show))
        sent += f"the dataset {dataset} was sent; "
    stand.text = f"{sent}the kernel was not pushed: push again, which sends nothing twice"
    for dataset in plan.under_way:
        with progress_line() as show:
            wait_for_sent(client, dataset, folders[dataset], dataset_waiting(options, show))
    for dataset in plan.waited_for:
        with progress_line() as show:
            wait_for_dataset(client, dataset, dataset_waiting(options, show))
    stand.text = (
        f"{sent}whether a version of {manifest.kernel.id} was made is not known: look by `python build_kernel.py "
        "status`, then push again"
    )
    folder = options.out / "kernel"
    record = push_kernel(client, manifest.kernel.id, folder, options.out, options.timeout, options.no_run)
    version = f"version {record.version} of {record.kernel}"
    stand.text = (
        f"{version} was pushed, and not yet compared with what was meant: do not push again; `python build_kernel.py "
        f"status{meant_options(options)} --wait` waits for its run, and `submit` compares it first"
    )
    try:
        unknown = check_pulled(client, record, options.out, options.poll)
    except KaggleError as error:
        raise RunError(f"{error.what}: {stand.text}") from error
    stand.text = f"{version} is on Kaggle as it was meant"
    print(f"{version} is on Kaggle as it was meant: {record.url}")
    return unknown


def dataset_waiting(options: argparse.Namespace, show: Callable[[str], None]) -> Waiting:
    """How to wait for a dataset."""
    again = "push again later, which does not send it twice, or wait longer by --ready-timeout SECONDS"
    return Waiting(options.ready_timeout, options.poll, show, again)


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
    """What is to be done about each dataset, by what Kaggle has; what may be sent says its sums from now on."""
    new, changed, under_way, waited_for = [], [], [], []
    for dataset, state in states.items():
        own = folders.get(dataset)
        if own is not None and state not in LOST_STATES and is_under_way(dataset, own):
            under_way.append(dataset)
            continue
        if own is not None:
            write_sums(own)
        if state is None:
            new.append(dataset)
        elif own is not None and (state in LOST_STATES or needs_sending(client, dataset, own)):
            changed.append(dataset)
        elif state != "ready":
            waited_for.append(dataset)
    return Plan(tuple(new), tuple(changed), tuple(under_way), tuple(waited_for))


def show_plan(
    client: KaggleClient,
    manifest: Manifest,
    plan: Plan,
    folders: Mapping[str, Path],
    there: KernelThere | None,
    options: argparse.Namespace,
) -> None:
    """Print what a push will do; `there` is the kernel that Kaggle has already, if it has."""
    print(f"as {client.user}, to Kaggle:")
    for dataset in [*manifest.all_weight_datasets, manifest.wheels_dataset]:
        if dataset in plan.new:
            what = f"new, private, {folder_size(folders[dataset])} from {folders[dataset]}"
        elif dataset in plan.changed:
            what = f"a new version, {folder_size(folders[dataset])} from {folders[dataset]}"
        elif dataset in plan.under_way:
            what = "sent before, and waited for"
        else:
            what = "there, unchanged" if dataset in folders else "there"
            what += ", not ready yet" if dataset in plan.waited_for else ""
        if dataset in folders and dataset not in (*plan.new, *plan.under_way, manifest.wheels_dataset):
            what += license_left(client, dataset, folders[dataset])
        print(f"  dataset {dataset}: {what}")
    identity = manifest.kernel
    number = "new" if there is None else there.following
    how = "saved without a run" if options.no_run else f"run on {identity.accelerator}, internet off"
    limit = f", for {options.timeout} s at most" if options.timeout else ""
    image = f", in {identity.docker_image}" if identity.docker_image else ""
    same = same_version(manifest, plan, options)
    whose = "private" if identity.private else "public"
    print(f"  kernel {identity.id} ({whose}): {number}, {how}{limit}{image}{same}")


def license_left(client: KaggleClient, dataset: str, folder: Path) -> str:
    """That a push does not give a dataset the license that was chosen; empty where it has it, or none was chosen."""
    chosen = license_of(folder)
    if chosen in (None, USUAL_LICENSE):
        return ""
    there = client.dataset_license(dataset)
    if there == chosen:
        return ""
    has = f"has {there}" if there else "has not"
    return f"; the license {chosen} is for new datasets, this one {has}: change it on kaggle.com/datasets/{dataset}"


def same_version(manifest: Manifest, plan: Plan, options: argparse.Namespace) -> str:
    """That this is what was pushed last; empty where it is not."""
    folder = options.out / "kernel"
    try:
        record = read_record(options.out)
    except InputError:
        return ""  # which this push replaces
    if plan.new or plan.changed or plan.under_way:
        return ""
    if record is None or record.version is None or record.kernel != manifest.kernel.id:
        return ""
    if record.sha256 != text_sha256(folder / SCRIPT_NAME) or record.meant != kernel_metadata(manifest):
        return ""
    return f"; nothing has changed since version {record.version}: this makes another one, which is the same"


def folder_size(folder: Path) -> str:
    """The number and size of a dataset folder's files."""
    files = data_files(folder)
    return f"{len(files)} file(s), {sum(path.stat().st_size for path in files) / 1e6:.1f} MB"
