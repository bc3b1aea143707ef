"""The images shared over the processes of torchrun: each does its share and writes it as a file, the first merges them.

Nothing but files passes between the processes, so they need no GPU, no network and no collective library; only the
folder of results must be one for all.
"""

from __future__ import annotations

import json
import os
import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernel.attempt import FailedImage
from kernel.errors import InputError
from kernel.postprocess.submission import SubmissionWriter
from kernel.runtime.files import whole_file
from kernel.runtime.log import LOG

#: How often the first process looks for the others' files.
SHARD_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Shard:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1  # processes in all
    local_rank: int = 0
    local_count: int = 1  # on this machine
    launch: str = ""  # tells this start of the processes from an earlier one

    def share(self, paths: Sequence[Path]) -> list[Path]:
        """This process's images: every `count`-th, so that neighbours, which are often alike, spread."""
        return list(paths[self.rank :: self.count])

    def own_device(self, names: Sequence[str]) -> list[str]:
        """Of the machine's devices the one of this process; all where it is alone."""
        return list(names) if self.count == 1 else [names[self.local_rank % len(names)]]

    def sharing(self, names: Sequence[str]) -> int:
        """How many processes of this machine have the same one of its devices."""
        place = self.local_rank % len(names)
        return sum(other % len(names) == place for other in range(self.local_count))


@dataclass(frozen=True)
class ShardResult:
    """What one process found."""

    rows: dict[str, tuple[list[str], tuple[int, int]]]  # by image: run lengths and (H, W)
    done: dict[str, dict[str, Any]]  # what the summary says of each image done
    failed: dict[str, FailedImage]
    peaks: dict[str, tuple[float | None, float | None]]  # memory by device, the machine's and the GPU's
    forecasts: list[Any]  # of the time budget


class RowKeeper(SubmissionWriter):
    """A submission's writer that keeps what it was given, for another to write."""

    def __init__(self, expected_ids: Iterable[str]) -> None:
        super().__init__(expected_ids)
        self.given: dict[str, tuple[list[str], tuple[int, int]]] = {}

    def add(self, image_id: str, rles: Iterable[str], image_shape: tuple[int, int]) -> None:
        """As `SubmissionWriter.add`."""
        texts = list(rles)
        super().add(image_id, texts, image_shape)
        self.given[image_id] = texts, image_shape


def this_shard(environment: Mapping[str, str] = os.environ) -> Shard:
    """What torchrun's variables RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE say; alone without them.

    Raises InputError for values that cannot be.
    """
    if "WORLD_SIZE" not in environment and "RANK" not in environment:
        return Shard()
    try:
        rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
        local_count = int(environment.get("LOCAL_WORLD_SIZE", count))
    except (KeyError, ValueError) as error:
        raise InputError("RANK and WORLD_SIZE must both be whole numbers, as torchrun sets them") from error
    if not (0 <= rank < count and 0 <= local_rank < local_count <= count):
        raise InputError(
            f"RANK {rank} of WORLD_SIZE {count}, LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE {local_count}: ranks go "
            "from 0 to one less than the number of processes"
        )
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    parent = [str(os.getppid())] if local_count == count else []
    return Shard(
        rank, count, local_rank, local_count, " ".join([*(environment.get(name, "") for name in names), *parent])
    )


def failed_share(paths: Sequence[Path], reason: str) -> ShardResult:
    """What is left of a share whose process could not do it: an empty row for each image."""
    ids = [path.stem for path in paths]
    failure = FailedImage(reason, wrong_input=False)
    return ShardResult({image_id: ([], (0, 0)) for image_id in ids}, {}, dict.fromkeys(ids, failure), {}, [])


def shard_path(working: Path, rank: int) -> Path:
    """The file of a process's share."""
    return working / f"shard-{rank:04}.json"


def begin_shard(working: Path, shard: Shard) -> None:
    """Take away what this process's predecessor in an earlier run may have left."""
    shard_path(working, shard.rank).unlink(missing_ok=True)


def write_shard(working: Path, shard: Shard, result: ShardResult) -> None:
    """Write a share, whole or not at all."""
    with whole_file(shard_path(working, shard.rank)) as temporary:
        temporary.write_text(json.dumps({"launch": shard.launch, **asdict(result)}), encoding="utf-8", newline="\n")


def read_shard(working: Path, shard: Shard, rank: int) -> ShardResult | None:
    """The share of process `rank`, once it is there; one of an earlier launch is not."""
    path = shard_path(working, rank)
    if not path.is_file():
        return None
    told = json.loads(path.read_text(encoding="utf-8"))
    if told.pop("launch") != shard.launch:
        return None
    return ShardResult(
        {name: (rles, (shape[0], shape[1])) for name, (rles, shape) in told["rows"].items()},
        told["done"],
        {name: FailedImage(**failure) for name, failure in told["failed"].items()},
        {device: (host, gpu) for device, (host, gpu) in told["peaks"].items()},
        told["forecasts"],
    )


def gather_shards(
    working: Path,
    shard: Shard,
    paths: Sequence[Path],
    last_call: float,
    clock: Callable[[], float] = time.monotonic,
) -> ShardResult:
    """Wait for the shares of all processes, and join them in the order of the images `paths`; takes the files away.

    Images of a process that has not written its share at `last_call` fail.
    """
    found: dict[int, ShardResult] = {}
    while len(found) < shard.count and (not found or clock() <= last_call):
        for rank in range(shard.count):
            if rank not in found and (result := read_shard(working, shard, rank)) is not None:
                found[rank] = result
        if len(found) < shard.count:
            time.sleep(SHARD_POLL_SECONDS)
    for rank in sorted(set(range(shard.count)) - set(found)):
        LOG.error("process %d of %d has not written its share in time", rank, shard.count)
        found[rank] = failed_share(paths[rank :: shard.count], f"process {rank} did not end in time")
    for rank in found:
        shard_path(working, rank).unlink(missing_ok=True)
    parts = [found[rank] for rank in range(shard.count)]
    for rank, part in enumerate(parts):
        for told in part.done.values():
            told["device"] = f"process {rank}, {told['device']}"

    def joined(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        by_image = ChainMap(*map(dict, parts))
        return {path.stem: by_image[path.stem] for path in paths if path.stem in by_image}

    peaks = {
        f"process {rank}, {device}": peak for rank, part in enumerate(parts) for device, peak in part.peaks.items()
    }
    return ShardResult(
        joined(part.rows for part in parts),
        joined(part.done for part in parts),
        joined(part.failed for part in parts),
        peaks,
        [forecast for part in parts for forecast in part.forecasts],
    )
