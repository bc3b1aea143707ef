"""Write the wheels that the offline kernel installs, and the metadata of the Kaggle dataset that carries them.

    python -m bundle.vendor --out dist/wheels --dataset-id OWNER/SLUG
    python -m bundle.vendor --update-lock      # after a deliberate change of bundle/*.py or of a version

Needs a bare Python 3.11 or later with pip. Each package of wheels.lock.json is fetched by pip from the index that
pip is configured for, checked against the lock, repacked where it must change, and checked again: the same
lock gives the same bytes on every machine. What was fetched once is kept in the user's cache folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bundle.fetch import cache_dir, fetch
from bundle.kaggle import DATASET_METADATA_NAME, SUMS_NAME, dataset_metadata
from bundle.lock import LOCK_PATH, load_lock, update_lock
from bundle.names import DEFAULT_DATASET_ID
from bundle.repack import make_wheel
from kernel.errors import InputError
from kernel.files import file_sha256
from kernel.folders import ResultFolder, refuse_to_replace, replace_folder, scratch_folder
from kernel.log import LOG
from kernel.output import code_of

#: What an earlier bundle is known by: it is replaced as a whole.
WHEELS_FOLDER = ResultFolder("a build", ("*.whl", DATASET_METADATA_NAME, SUMS_NAME), (DATASET_METADATA_NAME, SUMS_NAME))


def build_wheels(
    out: Path, dataset_id: str = DEFAULT_DATASET_ID, lock_path: Path = LOCK_PATH, cache: Path | None = None
) -> list[Path]:
    """Write the lock's wheels and dataset-metadata.json into the folder `out`; return the wheels' paths.

    Everything is made in a folder beside `out` that takes its place at the end: on any error, what was
    at `out` before is still there, whole.

    Args:
        out: the folder; one that exists may hold nothing but an earlier bundle.
        dataset_id: "owner/slug" of the Kaggle dataset.
        lock_path: the lock.
        cache: where fetched files are kept; None: `cache_dir()`.

    Raises:
        InputError: a bad `dataset_id` or lock, a file that is not what the lock says, an `out` that
            holds other files.
        FetchError: a package is not in the cache and pip could not fetch it.
    """
    metadata = dataset_metadata(dataset_id)
    lock = load_lock(lock_path)
    refuse_to_replace(out, WHEELS_FOLDER)
    with scratch_folder(out.parent, out.name) as scratch:
        made = scratch / "new"
        made.mkdir()
        for entry in lock:
            path = make_wheel(entry, fetch(entry, cache or cache_dir()), made)
            if (path.name, file_sha256(path)) != (entry.wheel, entry.wheel_sha256):
                raise InputError(
                    f"{entry.wheel} comes out otherwise than {lock_path} says: expected sha256 {entry.wheel_sha256}, "
                    f"found {path.name} with {file_sha256(path)}; if bundle/*.py was changed on purpose, run "
                    "`python -m bundle.vendor --update-lock`, otherwise restore the checkout"
                )
        (made / DATASET_METADATA_NAME).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8", newline="\n")
        replace_folder(made, out)
    LOG.info("%d wheels written to %s", len(lock), out)
    return [out / entry.wheel for entry in lock]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bundle.vendor", description="Write the vendored wheels.")
    parser.add_argument(
        "--out", type=Path, default=Path("dist/wheels"), help="the folder to write (default: %(default)s)"
    )
    parser.add_argument("--dataset-id", default=DEFAULT_DATASET_ID, help="owner/slug (default: %(default)s)")
    parser.add_argument("--lock", type=Path, default=LOCK_PATH, help="another lock file")
    parser.add_argument("--update-lock", action="store_true", help="write the lock anew before building")
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.update_lock:
            update_lock(options.lock)
        wheels = build_wheels(options.out, options.dataset_id, options.lock)
        sys.stdout.write("".join(f"{wheel}\n" for wheel in [*wheels, options.out / DATASET_METADATA_NAME]))

    return code_of(work)


if __name__ == "__main__":
    sys.exit(main())
