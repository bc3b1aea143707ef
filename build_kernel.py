"""Build the offline Kaggle kernel: one readable script, its metadata, and the datasets of wheels and weights.

    python build_kernel.py                                   # dist/kernel/, dist/wheels/, dist/weights-<slug>/
    python build_kernel.py --manifest mine.json --weights-dir weights
    python build_kernel.py --weights-dir weights --dry-run --images images --limit 3 --device cpu

A bare Python 3.11 or later with pip is enough to build. `--weights-dir` checks the members' weight files and fills in
what the manifest leaves open; recognising files by content needs torch, and `--dry-run` the whole environment.

Exit codes: 0 done, 1 something failed, 2 something given was wrong.

Other commands, each with --help:
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - an older one cannot even read the modules below
    print(f"build_kernel.py needs Python 3.11 or later, this is {sys.version.split()[0]}", file=sys.stderr)
    raise SystemExit(2)

from kernel.signals import ended_at_once

with ended_at_once():  # while this imports, Ctrl-C would come out as a traceback
    from bundle.build import write_kernel
    from bundle.commands.common import add_manifest_option, add_out_option, alone_in, meant_options
    from bundle.datasets import weights_folder_name, write_sums, write_weights_datasets
    from bundle.dry_run import RESULT_NAMES, check_device, choose_images, run_dry
    from bundle.kaggle import (
        DATASET_LICENSES,
        KERNEL_METADATA_NAME,
        SCRIPT_NAME,
        check_dataset_folder,
        unverified_points,
    )
    from bundle.lock import LOCK_PATH, load_lock
    from bundle.names import owner_of, refuse_names
    from bundle.rules import IMAGE_PACKAGES, VENDORED_NEEDS
    from bundle.vendor import build_wheels
    from kernel.commands.options import CommandParser, whole_number
    from kernel.errors import InputError
    from kernel.files import writing
    from kernel.folders import ResultFolder, end_on_sigterm, refuse_to_lose, refuse_to_replace
    from kernel.local_weights import FoundWeights, can_read_weights, check_claims, resolve_weights
    from kernel.manifest.presets import WEIGHTS_NAME, weights_folder
    from kernel.manifest.reader import read_manifest
    from kernel.manifest.types import WEIGHT_SUFFIXES, Manifest, manifest_to_json, refuse_fold_files
    from kernel.output import code_of, let_readers_leave
    from kernel.runtime.wheels import LockedWheel, verify_wheels
    from kernel.text import name_hint, shell_word
    from kernel.vendored import use_vendored_packages

ROOT = Path(__file__).resolve().parent
#: The sub-commands: what each does, by its name, which is also its module's in bundle/commands/.
COMMANDS = {
    "check": "whether a submission.csv is valid for its images",
    "init": "write a manifest under your own names",
    "members": "list the members; add, remove, swap, assign or verify them",
    "push": "send the datasets that changed, then the kernel, and see that it arrived as it was meant",
    "status": "how the kernel's run is doing",
    "logs": "the log of the kernel's run",
    "fetch": "the run's results, checked",
    "submit": "submit the run to the competition",
    "quota": "hours of GPU that are left this week",
}
#: What a dry run takes where no other images are named.
SAMPLE_IMAGES = ROOT / "bundle" / "members" / "images"
#: What an earlier build is known by, whose folders are replaced as a whole.
KERNEL_FOLDER = ResultFolder("a build", (SCRIPT_NAME, KERNEL_METADATA_NAME), (KERNEL_METADATA_NAME,))
DRY_RUN_FOLDER = ResultFolder("a dry run", RESULT_NAMES, ("submission.csv",))
#: The manifest with what was found in the weights.
FILLED_NAME = "manifest.json"
#: What the script does not bring along, and names at its start where it is missing.
IMAGE_NEEDS = sorted(IMAGE_PACKAGES | VENDORED_NEEDS, key=str.lower)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    is_command = bool(given) and not given[0].startswith("-")
    try:
        return code_of(lambda: run_command(given[0], given[1:]) if is_command else run_build(parse_arguments(given)))
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is not installed: building needs a bare Python, but recognising weights and running "
            "dry need the environment: `make .venv/complete`, then `. .venv/bin/activate` (without make: "
            "`python -m venv .venv`, and `python -m bundle.install` by the Python in there)",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted: results of earlier runs are as they were", file=sys.stderr)
        return 130


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run a sub-command. Returns its exit code."""
    if name not in COMMANDS:
        raise InputError(f"there is no command {name!r}: {name_hint(name, COMMANDS)}; without any, the kernel is built")
    module = importlib.import_module(f"bundle.commands.{name}")
    parser = CommandParser(
        prog=f"build_kernel.py {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_options(parser)
    return module.run(parser.parse_args(arguments))


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line of a build.

    Raises:
        InputError: an option does nothing beside or without others, or a command stands among them.
    """
    assert __doc__ is not None
    commands = "".join(f"  {name:8} {what}\n" for name, what in COMMANDS.items())
    parser = CommandParser(
        prog="build_kernel.py", description=__doc__ + commands, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_manifest_option(parser)
    add_out_option(parser)
    parser.add_argument(
        "--weights-dir",
        type=Path,
        help="folder of weight files: <slug>/<file>, <owner>/<slug>/<file> or <file> (a dry run's default: `weights` "
        "beside the manifest, or else the manifest's own)",
    )
    parser.add_argument(
        "--license",
        choices=DATASET_LICENSES,
        help="of the datasets of your weights, for the push that makes them: those on Kaggle keep theirs (default: as "
        "before; else it is asked for, or `other`)",
    )
    dry = parser.add_argument_group("dry run")
    dry.add_argument("--dry-run", action="store_true", help="run the built script here, as Kaggle would")
    dry.add_argument(
        "--images",
        type=Path,
        help="folder of PNG, TIFF or JPEG images (default: those of bundle/members)",
    )
    dry.add_argument("--limit", type=whole_number(1), metavar="N", help="only the first so many images")
    dry.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the script's choice)")
    parser.needs(["images", "limit", "device"], ["dry_run"])
    parser.needs(["license"], ["weights_dir", "dry_run"], ": without weights no dataset of them is written")
    options, unknown = parser.parse_known_args(arguments)
    late = next((word for word in unknown if word in COMMANDS), None)
    if late is not None:
        raise InputError(f"a command comes first: `python build_kernel.py {late}`, and its options after it")
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def run_build(options: argparse.Namespace) -> int:
    """Build, and run dry if asked to. Returns the exit code of the dry run's script, 0 without."""
    refuse_to_replace(options.out / "kernel", KERNEL_FOLDER)
    if options.dry_run:
        refuse_to_replace(options.out / "dry-run", DRY_RUN_FOLDER)
        check_device(options.device)
        choose_images(options.images or SAMPLE_IMAGES, options.limit)
    refuse_to_lose_manifest(options.out / FILLED_NAME, options.manifest)
    refuse_to_lose(read_paths(options), (options.out / name for name in ("kernel", "wheels", "dry-run")))
    lock = load_lock(LOCK_PATH)
    given = read_manifest(options.manifest)
    refuse_fold_files(given)
    refuse_names(given)
    manifest, weights, open_points = given, (), []
    folder = weights_dir(options)
    if folder is not None:
        manifest, weights = resolve_weights(given, folder)
        if can_read_weights():
            use_vendored_packages()
        open_points = check_claims(manifest, weights)
    refuse_idle_license(manifest, options.license)
    open_points = [*open_points, f"whether Kaggle's image still has what the script needs: {', '.join(IMAGE_NEEDS)}"]

    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    with alone_in(options.out):
        write_kernel(manifest, options.out / "kernel")
        print(f"manifest: {options.manifest}")
        print(f"kernel: {options.out / 'kernel'}")
        write_wheels(manifest, lock, options.out / "wheels")
        print(f"wheels: {options.out / 'wheels'}")
        for dataset, path in write_weights_datasets(manifest, weights, options.out, options.license).items():
            print(f"weights: {path}, for {dataset}")
        filled = options.out / FILLED_NAME
        if filled.resolve() == options.manifest.resolve():
            print(f"{filled} is the manifest that was given, and stays as it is")
        elif manifest == given:
            filled.unlink(missing_ok=True)  # of an earlier build with other weights
        else:
            filled.write_text(manifest_to_json(manifest), encoding="utf-8", newline="\n")
            print(f"manifest with what was found in {folder} filled in: {filled}")
        code = 0
        if options.dry_run:
            code = report_dry_run(options, manifest, weights)
    print_next_steps(manifest, options, open_points)
    return code


def refuse_idle_license(manifest: Manifest, license_name: str | None) -> None:
    """Raise InputError where a license is chosen for datasets of weights, and none of them is the user's."""
    owner = manifest.kernel.id.split("/")[0]
    datasets = manifest.all_weight_datasets
    if license_name is not None and owner_of(owner) not in map(owner_of, datasets):
        raise InputError(
            f"--license: no dataset of weights is {owner}'s, so that none is written ({', '.join(datasets)}): leave it "
            "out"
        )


def refuse_to_lose_manifest(filled: Path, given: Path) -> None:
    """Refuse to replace a manifest that no earlier build has written: beside one lies the kernel that it built.

    Raises:
        InputError: there is one.
    """
    if filled.exists() and filled.resolve() != given.resolve() and not (filled.parent / "kernel").is_dir():
        raise InputError(
            f"{filled} was not written by a build, and would be replaced: give another --out, or name it by --manifest"
        )


def read_paths(options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """What the build reads, by the options that name it. Weights may lie in the datasets that it writes."""
    yield "--manifest", options.manifest
    if options.weights_dir is not None:
        yield "--weights-dir", options.weights_dir
    if options.dry_run:
        yield "--images", options.images or SAMPLE_IMAGES


def weights_dir(options: argparse.Namespace) -> Path | None:
    """Where weights are to be looked for; None where none are needed.

    Raises:
        InputError: a dry run needs weights, and no folder of them is named or lies beside the manifest.
    """
    if options.weights_dir is not None or not options.dry_run:
        return options.weights_dir
    home = options.manifest.resolve().parent
    folder = weights_folder(home)
    if folder == home and not any(path.suffix in WEIGHT_SUFFIXES for path in home.iterdir()):
        # In a checkout all files would be read, to recognise members that name none.
        raise InputError(
            f"--dry-run needs the members' weights: give their folder by --weights-dir (there is no "
            f"{home / WEIGHTS_NAME}, and no weight file in {home} either)"
        )
    return folder


def write_wheels(manifest: Manifest, lock: Sequence[LockedWheel], target: Path) -> None:
    """Write the wheel dataset, unless a whole one for the same dataset is there already."""
    try:
        verify_wheels(target, lock)
        check_dataset_folder(target, manifest.wheels_dataset)
    except InputError:
        build_wheels(target, manifest.wheels_dataset)
        check_dataset_folder(target, manifest.wheels_dataset)
    write_sums(target)


def report_dry_run(options: argparse.Namespace, manifest: Manifest, weights: Sequence[FoundWeights]) -> int:
    """Run the built script, and print what it found and where that is. Returns the script's exit code."""
    done = run_dry(
        options.out / "kernel" / SCRIPT_NAME,
        manifest,
        options.out / "wheels",
        weights,
        options.images or SAMPLE_IMAGES,
        options.out,
        options.limit,
        options.device,
    )
    print(f"\ndry run: {sum(done.cells.values())} cells in {len(done.cells)} images")
    for image_id, count in done.cells.items():
        reason = done.failed.get(image_id)
        found = f"{count} {done.cell_types.get(image_id, '')}".rstrip() if reason is None else f"no result: {reason}"
        print(f"  {image_id}: {found}")
    for what in ("submission.csv", "pictures", "summary.json"):
        if (done.folder / what).exists():
            print(f"  {done.folder / what}")
    if done.exit_code:
        print(f"  the script ended with exit code {done.exit_code}: see its log above, and summary.json")
    return done.exit_code


def print_next_steps(manifest: Manifest, options: argparse.Namespace, open_points: Sequence[str]) -> None:
    """Print what is left to do, and what nobody has checked, `open_points` among it."""
    out = options.out
    print("\nunverified:")
    for point in (*unverified_points(manifest), *open_points):
        print(f"  - {point}")
    push = f"python build_kernel.py push{meant_options(options)}"
    print(f"\nnext: `{push}` sends all of it, and sees that it arrives. By hand instead:")
    print(f"  kaggle datasets create -p {shell_word(out / 'wheels')}")
    for dataset in manifest.all_weight_datasets:
        if (out / weights_folder_name(dataset)).is_dir():
            print(f"  kaggle datasets create -p {shell_word(out / weights_folder_name(dataset))}")
    print("  kaggle datasets status OWNER/SLUG        # of each, until it is ready: a kernel starts without it else")
    print(f"  kaggle kernels push -p {shell_word(out / 'kernel')}")


if __name__ == "__main__":
    let_readers_leave()
    end_on_sigterm()
    raise SystemExit(main())
