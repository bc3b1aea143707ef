"""Shares of images: who does what, and that the files of all processes make one result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernel.errors import InputError
from kernel.runtime.failures import FailedImage
from kernel.runtime.results import RunResults
from kernel.runtime.shards import (
    Shard,
    begin_shard,
    gather_shards,
    read_shard,
    segment_in_processes,
    shard_path,
    this_shard,
    write_shard,
)

PATHS = [Path(f"{name}.png") for name in "abcdefg"]


def result_of(shard: Shard) -> RunResults:
    """What a process says that finds a cell in each image but "c", which fails."""
    ids = [path.stem for path in shard.share(PATHS)]
    good = [name for name in ids if name != "c"]
    return RunResults(
        {name: ([f"{ord(name)} 2"] if name in good else [], (10, 20)) for name in ids},
        {name: {"cells": 1, "device": "cpu"} for name in good},
        {name: FailedImage("broken", wrong_input=True) for name in ids if name not in good},
        {"cpu": (1.5, None)},
        [{"rank": shard.rank}],
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9])
def test_every_image_is_in_one_share_and_all_come_together(count: int, tmp_path: Path) -> None:
    shards = [Shard(rank, count, rank, count, "now") for rank in range(count)]
    for shard in reversed(shards):
        write_shard(tmp_path, shard, result_of(shard))
    whole = gather_shards(tmp_path, shards[0], PATHS, hard_deadline=0.0, clock=lambda: 0.0)
    assert whole.rows == result_of(Shard()).rows
    assert list(whole.rows) == list("abcdefg")
    assert list(whole.summaries) == list("abdefg")
    assert whole.failed == {"c": FailedImage("broken", wrong_input=True)}
    assert {summary["device"] for summary in whole.summaries.values()} <= set(whole.peaks)
    assert [each["rank"] for each in whole.forecasts] == list(range(count))
    assert list(tmp_path.iterdir()) == []


def test_a_share_that_never_comes_is_left_out(tmp_path: Path) -> None:
    """Its process may have done most of it, as its journal tells: none of its images has failed for that."""
    shards = [Shard(rank, 2, rank, 2, "now") for rank in range(2)]
    write_shard(tmp_path, shards[0], result_of(shards[0]))
    whole = gather_shards(tmp_path, shards[0], PATHS, hard_deadline=0.0, clock=lambda: 1.0)
    assert list(whole.rows) == list("aceg") and list(whole.failed) == ["c"]


@pytest.mark.parametrize("error", [InputError("no mount"), MemoryError("none left"), RuntimeError("of torch")])
def test_whatever_ends_another_process_costs_its_share_alone(tmp_path: Path, error: Exception) -> None:
    """With an exit code other than 0 torchrun would end the first process as well."""

    def fail() -> None:
        raise error

    first, second = (Shard(rank, 2, rank, 2, "now") for rank in range(2))
    assert segment_in_processes(second, tmp_path, PATHS, 0.0, RunResults(), fail) is None
    told = read_shard(tmp_path, first, 1)
    assert told is not None and list(told.failed) == list("bdf")
    assert all("process 1" in each.reason and str(error) in each.reason for each in told.failed.values())
    with pytest.raises(type(error), match=str(error)):
        segment_in_processes(first, tmp_path, PATHS, 0.0, RunResults(), fail)


def test_a_share_of_an_earlier_launch_does_not_count(tmp_path: Path) -> None:
    earlier, now = Shard(1, 2, 1, 2, "earlier"), Shard(1, 2, 1, 2, "now")
    write_shard(tmp_path, earlier, result_of(earlier))
    assert read_shard(tmp_path, now, 1) is None
    assert read_shard(tmp_path, earlier, 1) == result_of(earlier)
    begin_shard(tmp_path, now)
    assert not shard_path(tmp_path, 1).exists()


def test_a_share_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    shard = Shard(0, 2)
    write_shard(tmp_path, shard, result_of(shard))
    before = shard_path(tmp_path, 0).read_bytes()
    unwritable = RunResults({}, {"a": {"cells": object()}}, {}, {}, [])
    with pytest.raises(TypeError):
        write_shard(tmp_path, shard, unwritable)
    assert shard_path(tmp_path, 0).read_bytes() == before
    assert json.loads(before)["launch"] == ""
    assert [path.name for path in tmp_path.iterdir()] == [shard_path(tmp_path, 0).name]


def test_torchruns_variables() -> None:
    assert this_shard({}) == Shard()
    given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"}
    shard = this_shard(given)
    assert (shard.rank, shard.count, shard.local_rank, shard.local_count) == (5, 8, 1, 4)
    assert this_shard({**given, "TORCHELASTIC_RUN_ID": "y"}).launch != shard.launch
    alone = this_shard({"RANK": "2", "WORLD_SIZE": "3"})
    assert (alone.local_rank, alone.local_count) == (2, 3)


@pytest.mark.parametrize(
    "given",
    [
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
    ],
)
def test_wrong_variables_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(InputError, match="RANK"):
        this_shard(given)


@pytest.mark.parametrize(
    ("names", "local_rank", "own", "sharing"),
    [
        (["cpu"], 0, ["cpu"], 3),
        (["cuda:0", "cuda:1"], 0, ["cuda:0"], 2),
        (["cuda:0", "cuda:1"], 1, ["cuda:1"], 1),
        (["cuda:0", "cuda:1"], 2, ["cuda:0"], 2),
    ],
)
def test_devices_of_the_processes(names: list[str], local_rank: int, own: list[str], sharing: int) -> None:
    shard = Shard(local_rank, 3, local_rank, 3)
    assert shard.own_device(names) == own
    assert shard.sharing(names) == sharing


def test_alone_a_process_has_all_devices_to_itself() -> None:
    assert Shard().own_device(["cuda:0", "cuda:1"]) == ["cuda:0", "cuda:1"]
    assert Shard().sharing(["cuda:0", "cuda:1"]) == 1
    assert Shard().share(PATHS) == PATHS
