"""Images shared over the processes of torchrun: each does its share and writes it as a file, the first one merges them.

Only files pass between the processes, so they need no network and no collective library; all must see the same folder
of results.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kernel.errors import InputError, as_failure
from kernel.files import whole_file
from kernel.log import LOG
from kernel.runtime.results import RunResults, results_from_json, results_to_json

#: The first process looks for the others' files at this interval.
SHARD_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Shard:
    """Which of torchrun's processes this is, and of how many."""

    rank: int = 0
    count: int = 1  # processes in all
    local_rank: int = 0
    local_count: int = 1  # on this machine
    launch: str = ""  # the same in all processes of one start, another in an earlier start

    def share(self, paths: Sequence[Path]) -> list[Path]:
        """This process's images: every `count`-th, since neighbours are often alike."""
        return list(paths[self.rank :: self.count])

    def own_device(self, names: Sequence[str]) -> list[str]:
        """Of the machine's devices, this process's one; all where it is the only process."""
        return list(names) if self.count == 1 else [names[self.local_rank % len(names)]]

    def sharing(self, names: Sequence[str]) -> int:
        """How many processes of this machine have the device of this one."""
        place = self.local_rank % len(names)
        return sum(other % len(names) == place for other in range(self.local_count))


def this_shard(environment: Mapping[str, str] = os.environ) -> Shard:
    """This process, by torchrun's variables RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; the only one without.

    Raises:
        InputError: the variables are no numbers, or contradict each other.
    """
    if "WORLD_SIZE" not in environment and "RANK" not in environment:
        return Shard()
    try:
        rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
        local_count = int(environment.get("LOCAL_WORLD_SIZE", count))
    except (KeyError, ValueError) as error:
        raise InputError("RANK and WORLD_SIZE must both be set to whole numbers, as torchrun does") from error
    if not (0 <= rank < count and 0 <= local_rank < local_count <= count):
        raise InputError(
            f"RANK {rank} of WORLD_SIZE {count}, LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE {local_count}: ranks go "
            "from 0 to one less than the number of processes"
        )
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    parent = [str(os.getppid())] if local_count == count else []
    return Shard(
        rank, count, local_rank, local_count, " ".join([*(environment.get(name, "") for name in names), *parent])
    )


def shard_path(working: Path, rank: int) -> Path:
    """The file with the results of process `rank`."""
    return working / f"shard-{rank:04}.json"


def segment_in_processes(
    shard: Shard,
    working: Path,
    paths: Sequence[Path],
    hard_deadline: float,
    results: RunResults,
    segment_share: Callable[[], None],
    while_waiting: Callable[[], None] = lambda: None,
) -> RunResults | None:
    """Do this process's share of the images, and in the first process wait for the others.

    In another than the first one, an error only fails the images of its share: where a process ends with an exit code
    other than 0, torchrun ends the first one as well, and the submission with it.

    Args:
        shard: this process.
        working: the folder of the results.
        paths: all images.
        hard_deadline: when the first process stops waiting, by `time.monotonic`.
        results: those of the share, so far.
        segment_share: segments the images of the share that are left, and adds to `results`.
        while_waiting: called now and then while the first process waits.

    Returns:
        The results of all images in the first process, as far as shares have come in time; None in the others.

    Raises:
        Exception: what `segment_share` raises in the first process.
    """
    begin_shard(working, shard)
    try:
        segment_share()
    except Exception as error:  # whatever it is: see above
        if shard.rank == 0:
            raise
        failure = as_failure(error)
        LOG.error("%s", failure)
        results.fail_rest(shard.share(paths), f"process {shard.rank}: {failure}")
    write_shard(working, shard, results)
    if shard.rank:
        return None
    return gather_shards(working, shard, paths, hard_deadline, while_waiting=while_waiting)


def begin_shard(working: Path, shard: Shard) -> None:
    """Delete the file that an earlier run may have left for this process."""
    shard_path(working, shard.rank).unlink(missing_ok=True)


def write_shard(working: Path, shard: Shard, results: RunResults) -> None:
    """Write the results of a share, whole or not at all."""
    with whole_file(shard_path(working, shard.rank)) as temporary:
        temporary.write_text(
            json.dumps({"launch": shard.launch, **results_to_json(results)}), encoding="utf-8", newline="\n"
        )


def read_shard(working: Path, shard: Shard, rank: int) -> RunResults | None:
    """The results of process `rank`; None while its file is missing, or is one of an earlier launch."""
    path = shard_path(working, rank)
    if not path.is_file():
        return None
    written = json.loads(path.read_text(encoding="utf-8"))
    if written["launch"] != shard.launch:
        return None
    return results_from_json(written)


def gather_shards(
    working: Path,
    shard: Shard,
    paths: Sequence[Path],
    hard_deadline: float,
    clock: Callable[[], float] = time.monotonic,
    while_waiting: Callable[[], None] = lambda: None,
) -> RunResults:
    """Wait for the results of all processes, delete their files, and join them in the order of the images `paths`.

    Images of a process that has not written its results by `hard_deadline` (by `clock`, in seconds) are left out: it
    may just be ending an image that hangs, and its journal has the others.
    """
    found: dict[int, RunResults] = {}
    while len(found) < shard.count and (not found or clock() <= hard_deadline):
        for rank in range(shard.count):
            if rank not in found and (results := read_shard(working, shard, rank)) is not None:
                found[rank] = results
        if len(found) < shard.count:
            while_waiting()
            time.sleep(SHARD_POLL_SECONDS)
    for rank in sorted(set(range(shard.count)) - set(found)):
        LOG.error("process %d of %d has not written its share in time: its journal is read", rank, shard.count)
    for rank in found:
        shard_path(working, rank).unlink(missing_ok=True)
    whole = RunResults()
    for rank, part in sorted(found.items()):
        for summary in part.summaries.values():
            summary["device"] = f"process {rank}, {summary['device']}"
        peaks = {f"process {rank}, {device}": each for device, each in part.peaks.items()}
        whole.add(replace(part, peaks=peaks))
    return whole.in_order(paths)
