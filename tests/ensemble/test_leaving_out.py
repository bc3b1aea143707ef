"""What is left of an ensemble without some members: every use has members that count at every stage."""

from __future__ import annotations

import hashlib
import itertools
import queue
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kernel.ensemble import leaving_out
from kernel.ensemble.leaving_out import (
    BEST_EFFORT,
    STRICT,
    lacks_files,
    levels_without,
    load_mounted_ensemble,
    take_over_uses,
    with_all_uses,
    with_uses_taken_over,
)
from kernel.ensemble.quality_levels import quality_levels
from kernel.errors import InputError, RunError
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import PLAIN_ENCODER, Manifest, MemberEntry
from kernel.mounts import INPUT_ROOT_VARIABLE
from kernel.patience import PATIENCE_VARIABLE
from kernel.runtime.budget import TimeBudget
from kernel.runtime.device_workers import LocalWorker
from kernel.runtime.failures import FailedImage
from kernel.runtime.saved_run import SavedRun
from kernel.runtime.segmenting import segment_all
from kernel.settings import CELL_TYPES, CLS_USE, MASKS_ALONE, STAGES, StageWeights, needed_stages


@pytest.fixture
def manifest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Manifest:
    """One whose members' files are there."""
    monkeypatch.setenv(INPUT_ROOT_VARIABLE, str(tmp_path))
    monkeypatch.setenv(PATIENCE_VARIABLE, "0")
    monkeypatch.setattr(leaving_out, "mounted_weights", lambda part, root: {})
    members = [MemberEntry(name, "htc", "resnet50", CELL_TYPES) for name in "abc"]
    return replace(read_manifest(Path(__file__).parents[2] / "weights_manifest.json"), members=tuple(members))


def load_but(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let loading raise this wherever member b is to be loaded; otherwise it gives the members' names."""

    def load(part: Manifest, *_: object) -> list[str]:
        names = [member.name for member in part.members]
        if "b" in names:
            raise error
        return names

    monkeypatch.setattr(leaving_out, "load_ensemble", load)


@pytest.mark.parametrize(
    "error",
    [
        InputError("no such file"),
        RuntimeError("Unknown model (tf_efficientnet_b4)"),
        TypeError("unexpected keyword 'pretrained'"),
        KeyError("mmdet"),
        torch.OutOfMemoryError("CUDA error: out of memory"),
        MemoryError("of the host"),
    ],
)
def test_a_member_is_left_out_whatever_it_cannot_be_loaded_with(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    load_but(monkeypatch, error)
    device = torch.device("cpu")
    found, left_out = load_mounted_ensemble(manifest, device, torch.float32, BEST_EFFORT)
    assert found == ["a", "c"] and list(left_out) == ["b"] and str(error) in left_out["b"]
    assert "MEMBER b IS LEFT OUT" in caplog.text
    with pytest.raises(type(error)):
        load_mounted_ensemble(manifest, device, torch.float32, STRICT)


def test_a_gpu_that_is_lost_leaves_no_member_out(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    load_but(monkeypatch, torch.AcceleratorError("CUDA error: unspecified launch failure"))
    with pytest.raises(torch.AcceleratorError):
        load_mounted_ensemble(manifest, torch.device("cpu"), torch.float32, BEST_EFFORT)


def load_but_on_gpu(monkeypatch: pytest.MonkeyPatch, error: Exception, most: int = 0) -> None:
    """Let loading more than so many members on a GPU raise this; otherwise it gives the members' names."""

    def load(part: Manifest, weights: object, device: torch.device, dtype: object) -> list[str]:
        names = [member.name for member in part.members]
        if device.type == "cuda" and len(names) > most:
            raise error
        return names

    monkeypatch.setattr(leaving_out, "load_ensemble", load)


@pytest.mark.parametrize(
    ("error", "most"),
    [
        (RuntimeError("No CUDA GPUs are available"), 0),
        (torch.OutOfMemoryError("CUDA out of memory"), 0),
        (torch.OutOfMemoryError("CUDA out of memory"), 2),  # each fits alone, and beside another one
        (MemoryError("of the host"), 2),
        (InputError("torch has no kernels for it"), 0),
    ],
)
def test_an_error_of_the_device_leaves_no_member_out(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, most: int
) -> None:
    """It is raised as it is: what a process does about it is not for the members to say."""
    load_but_on_gpu(monkeypatch, error, most)
    with pytest.raises(type(error)) as raised:
        load_mounted_ensemble(manifest, torch.device("cuda"), torch.float16, BEST_EFFORT)
    assert raised.value is error and "LEFT OUT" not in caplog.text


def test_what_is_wrong_for_a_moment_leaves_no_member_out(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [RuntimeError("No CUDA GPUs are available")]

    def load(part: Manifest, *_: object) -> list[str]:
        if errors:
            raise errors.pop()
        return [member.name for member in part.members]

    monkeypatch.setattr(leaving_out, "load_ensemble", load)
    found, left_out = load_mounted_ensemble(manifest, torch.device("cuda"), torch.float16, BEST_EFFORT)
    assert found == ["a", "b", "c"] and not left_out
    assert "LEFT OUT" not in caplog.text and "GOING ON WITH" not in caplog.text


@pytest.mark.parametrize(
    ("error", "told"), [(InputError("no such file"), InputError), (MemoryError("of the host"), RunError)]
)
def test_where_no_member_can_be_loaded_only_files_are_wrong_input(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception]
) -> None:
    """Another start does not help against files; against all else it may."""

    def load(*_: object) -> None:
        raise error

    monkeypatch.setattr(leaving_out, "load_ensemble", load)
    with pytest.raises(told, match="no member can be loaded"):
        load_mounted_ensemble(manifest, torch.device("cuda"), torch.float16, BEST_EFFORT)


def test_every_use_keeps_members_that_count_whichever_are_left() -> None:
    draw = random.Random(3)
    every_use = [*CELL_TYPES, CLS_USE]
    for _ in range(300):
        members = [
            MemberEntry(
                f"m{number}", "htc", "resnet50", tuple(draw.sample(every_use, draw.randint(1, 4))),
                weights=StageWeights(*(draw.choice([0.0, 1.0, 2.0]) for _ in STAGES)),
            )
            for number in range(draw.randint(1, 4))
        ]  # fmt: skip
        left = with_uses_taken_over(members)
        assert [member.name for member in left] == [member.name for member in members]
        for use, stages in needed_stages(member.use_for for member in left).items():
            for stage in stages:
                assert any(use in member.use_for and getattr(member.weights, stage) > 0 for member in left), members
        for before, after in zip(members, left, strict=True):
            assert set(before.use_for) <= set(after.use_for)


def test_a_mask_network_is_never_asked_for_boxes() -> None:
    """Whoever is left: detectors that did not count for masks do, where the mask network is gone."""
    network = MemberEntry("masks", "unet", PLAIN_ENCODER, CELL_TYPES, weights=MASKS_ALONE)
    detector = MemberEntry("one", "htc", "resnet50", CELL_TYPES, weights=StageWeights(masks=0))
    both = with_uses_taken_over([network, detector])
    assert [member.weights for member in both] == [network.weights, detector.weights]
    assert with_all_uses([network])[0].weights == MASKS_ALONE
    (alone,) = with_uses_taken_over([detector])
    assert alone.weights == StageWeights()
    idle = replace(detector, weights=StageWeights(0, 0, 1))
    assert [member.weights for member in with_uses_taken_over([network, idle])] == [MASKS_ALONE, StageWeights()]


def test_members_that_suffice_stay_as_they_are() -> None:
    uses = {"a": frozenset({"shsy5y", "astro"}), "b": frozenset({"cort", CLS_USE})}
    weights = dict.fromkeys(uses, StageWeights())
    assert take_over_uses(uses, weights) == uses
    for gone in itertools.chain(uses):
        (left,) = take_over_uses({name: own for name, own in uses.items() if name != gone}, weights).values()
        assert left >= set(CELL_TYPES)


def test_lower_quality_is_less_work_whoever_is_left_out() -> None:
    """And there are as many levels, by whose index images are requested."""
    manifest = read_manifest(Path(__file__).parents[2] / "weights_manifest.json")
    whole = quality_levels(manifest.members, manifest.ensemble)
    for gone in (member.name for member in manifest.members):
        levels = levels_without(manifest, [gone])
        assert len(levels) == len(whole) and all(gone not in {*level.uses, *level.weights} for level in levels)
        for cell_type in CELL_TYPES:
            work = [level.stage_work(cell_type) for level in levels]
            for stage in work[0]:
                assert all(low[stage] <= high[stage] for high, low in itertools.pairwise(work)), (gone, stage)


def test_a_worker_that_leaves_members_out_does_so_in_the_budget(tmp_path: Path) -> None:
    manifest = read_manifest(Path(__file__).parents[2] / "weights_manifest.json")
    gone = manifest.members[0].name
    levels, said = quality_levels(manifest.members, manifest.ensemble), queue.SimpleQueue[Any]()
    budget, path = TimeBudget(levels, {"a": 1.0}, 1e18), Path("a")
    worker = LocalWorker("cpu", lambda *_: lambda: {"image": "a", "failure": asdict(FailedImage("none", False))}, said)
    said.put((worker, {"left_out": {gone: "no such file"}}))
    saved = SavedRun(tmp_path, [path], [path])
    segment_all([worker], said, [path], budget, 1e18, saved, manifest)
    worker.close()
    saved.close()
    assert budget.levels == levels_without(manifest, [gone]) and list(saved.results.left_out) == [gone]


@pytest.mark.parametrize(
    ("mounted", "sha256", "lacks"),
    [
        ({"datasets/me/weights/a.pt": b"a"}, None, False),
        ({"weights/a.pt": b"a"}, "a", False),
        ({"weights/b.pt": b"a"}, "a", True),
        ({"datasets/you/weights/run/a.pt": b"a"}, "a", False),  # found by its checksum: nothing to wait for
        ({"datasets/you/weights/a.pt": b"other"}, "a", True),  # the right one may still come
        ({"datasets/you/weights/a.pt": b"a"}, None, True),
        ({"datasets/me/weights/b.pt": b"a", "datasets/you/weights/a.pt": b"a"}, "a", False),
        ({"datasets/me/second/a.pt": b"a"}, None, False),  # one of the two datasets suffices
        ({}, None, True),
    ],
)
def test_what_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounted: dict[str, bytes], sha256: str | None, lacks: bool
) -> None:
    monkeypatch.setenv(INPUT_ROOT_VARIABLE, str(tmp_path))
    for name, content in mounted.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    total = None if sha256 is None else hashlib.sha256(sha256.encode()).hexdigest()
    member = MemberEntry("one", "htc", "resnet50", CELL_TYPES, file="a.pt", sha256=total)
    published = read_manifest(Path(__file__).parents[2] / "weights_manifest.json")
    manifest = replace(published, members=(member,), weight_datasets=("me/weights", "me/second"))
    assert lacks_files(manifest) is lacks
    nameless = replace(manifest, members=(replace(member, file=None, sha256=None),))
    assert lacks_files(nameless)  # its file may be in either, and only one is there
    (tmp_path / "datasets" / "me" / "weights").mkdir(parents=True, exist_ok=True)
    (tmp_path / "datasets" / "me" / "second").mkdir(parents=True, exist_ok=True)
    assert not lacks_files(nameless)
