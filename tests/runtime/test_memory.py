"""The memory plan: its figures are what the members really take, and it fits whatever is free."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_detectors import tiny_detector

from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.features import features_bytes
from kernel.ensemble.members import Member
from kernel.ensemble.networks import NotFiniteError
from kernel.ensemble.tiles import LEAST_TILE_SIDE, needs_tiles
from kernel.ensemble.views import IDENTITY, view_images
from kernel.runtime import memory
from kernel.runtime.memory import (
    HEADS_BYTES,
    HEADS_CHANNELS,
    apply_plan,
    free_memory,
    host_memory,
    plan_memory,
    plan_tiling,
    views_that_roi_align_takes,
)
from kernel.settings import CELL_TYPES, CLS_USE, EnsembleSettings

pytestmark = pytest.mark.usefixtures("wheels_site")

ALL_TYPES = frozenset(CELL_TYPES)
SHAPE = (100, 130)
HEADS = HEADS_BYTES * 16 // HEADS_CHANNELS  # tiny detectors have 16 channels
PLENTY = 64 << 30


@pytest.fixture(scope="module")
def ensemble(wheels_site: Path) -> Ensemble:
    """An HTC for the first pass, and a detector of each kind for some type."""
    members = [
        Member("first", "htc", tiny_detector("htc"), frozenset({CLS_USE})),
        Member("a", "maskrcnn", tiny_detector("maskrcnn"), frozenset({"shsy5y", "astro"})),
        Member("b", "htc", tiny_detector("htc", 1), frozenset({"astro"})),
        Member("c", "cascade", tiny_detector("cascade"), frozenset({"cort"})),
    ]
    return Ensemble(members, EnsembleSettings())


def view_bytes(ensemble: Ensemble, name: str) -> int:
    """The features of a view, computed and counted."""
    (member,) = (member for member in ensemble.members if member.name == name)
    images = view_images(np.zeros((*SHAPE, 3), np.uint8), (IDENTITY,))
    with torch.inference_mode():
        return features_bytes(ensemble.compute_features(member, images))


def test_the_figures_are_what_the_features_take(ensemble: Ensemble) -> None:
    plan = plan_memory(ensemble, SHAPE, PLENTY)
    taken = {member.name: view_bytes(ensemble, member.name) for member in ensemble.members}
    assert taken["first"] == taken["b"] > taken["a"] == taken["c"]  # semantic features
    assert plan.view_bytes == taken["first"]
    assert plan.wanted_bytes == 4 * (taken["first"] + taken["a"] + taken["b"])  # astro
    assert plan.feature_budget_bytes == plan.wanted_bytes
    assert plan.working_bytes > plan.view_bytes


def test_identity_alone_takes_a_quarter(ensemble: Ensemble) -> None:
    lone = Ensemble(ensemble.members, EnsembleSettings(use_tta=False, use_tta_masks=False))
    assert plan_memory(lone, SHAPE, PLENTY).wanted_bytes * 4 == plan_memory(ensemble, SHAPE, PLENTY).wanted_bytes


@given(free=st.integers(0, 2 << 30), side=st.integers(1, 2000), most=st.integers(1, 4))
def test_the_plan_fits_or_asks_for_the_least(ensemble: Ensemble, free: int, side: int, most: int) -> None:
    ensemble.views_per_batch = most
    plan = plan_memory(ensemble, (side, side), free)
    needed = HEADS + plan.views_per_batch * plan.working_bytes + plan.feature_budget_bytes
    assert 1 <= plan.views_per_batch <= most and 0 <= plan.feature_budget_bytes <= plan.wanted_bytes
    assert needed <= free or (plan.views_per_batch, plan.feature_budget_bytes) == (1, 0)
    if plan.views_per_batch > 1:
        assert plan.feature_budget_bytes == plan.wanted_bytes  # features come first


def test_more_memory_never_plans_less(ensemble: Ensemble) -> None:
    ensemble.views_per_batch = 3
    plans = [plan_memory(ensemble, (520, 704), free << 20) for free in range(0, 6000, 200)]
    figures = [(plan.feature_budget_bytes, plan.views_per_batch) for plan in plans]
    assert figures == sorted(figures) and len(set(figures)) > 3
    assert figures[0] == (0, 1) and figures[-1] == (plans[0].wanted_bytes, 3)


@pytest.mark.parametrize("side", [100, 10_000, 13_376, 13_440, 16_384, 23_168, 23_200, 40_000])
def test_a_batch_of_views_has_fewer_elements_than_32_bits_number(ensemble: Ensemble, side: int) -> None:
    """By which torchvision's RoIAlign finds them on a GPU; one of 141 GB has room for more."""
    batch, most = views_that_roi_align_takes(ensemble, side * side), 2**31 - 1
    a_view = 16 * side * side // 4  # tiny detectors have 16 channels, and a finest stride of 2
    assert batch * a_view <= most or batch == 1
    assert (batch + 1) * a_view > most


def test_the_plan_heeds_it(ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "views_per_batch", 3)
    assert plan_memory(ensemble, SHAPE, PLENTY).views_per_batch == 3
    monkeypatch.setattr(memory, "views_that_roi_align_takes", lambda ensemble, pixels: 2)
    assert plan_memory(ensemble, SHAPE, PLENTY).views_per_batch == 2


def test_the_plan_is_applied_and_logged(ensemble: Ensemble, caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_memory(ensemble, SHAPE, PLENTY)
    with caplog.at_level("INFO", logger="kernel"):
        apply_plan(ensemble, plan)
    assert (ensemble.views_per_batch, ensemble.feature_budget_bytes) == (plan.views_per_batch, plan.wanted_bytes)
    assert "64.00 GB free" in caplog.text and "all of the features stay" in caplog.text


@given(free=st.integers(0, 200 << 30))
def test_only_what_is_larger_than_the_competitions_images_is_tiled(ensemble: Ensemble, free: int) -> None:
    tiling = plan_tiling(ensemble, free)
    assert not needs_tiles((520, 704), tiling) and not needs_tiles((1024, 1024), tiling)
    assert needs_tiles((10_000, 10_000), tiling)
    assert LEAST_TILE_SIDE <= tiling.side <= 2048 and tiling.side**2 <= max(tiling.whole_pixels, LEAST_TILE_SIDE**2)


def test_tiles_on_the_cpu_are_the_same_from_four_gigabytes_on(ensemble: Ensemble) -> None:
    """What they take leaves room for a large image's pixels and masks within 4 GB."""
    little, much = plan_tiling(ensemble, 4 << 30), plan_tiling(ensemble, 200 << 30)
    assert (little.side, little.feature_bytes) == (much.side, much.feature_bytes)
    working = plan_memory(ensemble, (much.side, much.side), PLENTY).working_bytes
    assert HEADS + working + much.feature_bytes <= 2 << 30
    assert plan_tiling(ensemble, 0).side == LEAST_TILE_SIDE


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float16, 2), (torch.bfloat16, 1), (torch.float32, 1)])
def test_a_gpus_image_is_cut_by_the_hosts_memory_on_the_cpu(
    ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, factor: int
) -> None:
    """No GPU is needed: nothing is computed. Of float16 the CPU makes float32."""
    host, per_pixel = 4 << 30, 1000.0
    monkeypatch.setattr("kernel.runtime.memory.host_memory", lambda meminfo, cgroup: host)
    on_cpu = plan_tiling(ensemble, host, factor * per_pixel)
    monkeypatch.setattr(ensemble, "device", torch.device("cuda:1"))
    monkeypatch.setattr(ensemble, "dtype", dtype)
    tiling = plan_tiling(ensemble, 100 << 30, per_pixel)
    assert tiling.on_cpu == on_cpu and on_cpu.on_cpu is None
    assert on_cpu.whole_pixels < tiling.whole_pixels and on_cpu.side < tiling.side


def test_the_log_says_that_large_images_are_tiled(ensemble: Ensemble, caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_memory(ensemble, (10_000, 10_000), PLENTY)
    with caplog.at_level("INFO", logger="kernel"):
        apply_plan(ensemble, plan)
    assert f"larger images in tiles of up to {plan.tiling.side} pixels" in caplog.text
    assert ensemble.tiling == plan.tiling == Ensemble.like(ensemble, ensemble.members).tiling
    ensemble.tiling = None


@pytest.mark.parametrize("kind", ["maskrcnn", "htc"])
def test_numbers_that_overflow_take_what_others_do(wheels_site: Path, kind: str) -> None:
    """An image where they do is done in float32, so the plan must not end the run."""
    planned = []
    for factor in (1.0, 1e38):
        detector = tiny_detector(kind)
        for parameter in detector.neck.parameters():
            parameter.data.mul_(factor)
        runner = Ensemble([Member("a", kind, detector, ALL_TYPES)], EnsembleSettings(), dtype=torch.bfloat16)
        planned.append(plan_memory(runner, SHAPE, PLENTY))
    with torch.inference_mode(), pytest.raises(NotFiniteError):
        runner.compute_features(runner.members[0], torch.zeros(1, 3, 64, 64))
    assert planned[0] == planned[1]


def test_measuring_leaves_no_hooks(ensemble: Ensemble) -> None:
    plan_memory(ensemble, SHAPE, PLENTY)
    assert not any(module._forward_hooks for member in ensemble.members for module in member.detector.modules())


# --- what is free ------------------------------------------------------------------------------------------------


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_the_machine_or_its_container(tmp_path: Path) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    put(meminfo, "MemTotal:       2000 kB\nMemAvailable:   1000 kB\n")
    assert host_memory(meminfo, cgroup) == 1000 << 10
    put(cgroup / "memory.max", "max\n")
    put(cgroup / "memory.current", "700000\n")
    assert host_memory(meminfo, cgroup) == 1000 << 10
    put(cgroup / "memory.max", "900000\n")
    assert host_memory(meminfo, cgroup) == 200_000
    put(cgroup / "memory.stat", "anon 5\ninactive_file 50000\n")
    assert host_memory(meminfo, cgroup) == 250_000
    put(cgroup / "memory.current", "1000000\n")
    assert host_memory(meminfo, cgroup) == 0


def test_the_older_container(tmp_path: Path) -> None:
    put(tmp_path / "cgroup" / "memory" / "memory.limit_in_bytes", "5000")
    put(tmp_path / "cgroup" / "memory" / "memory.usage_in_bytes", "3000")
    put(tmp_path / "cgroup" / "memory" / "memory.stat", "inactive_file 1\ntotal_inactive_file 500\n")
    assert host_memory(tmp_path / "none", tmp_path / "cgroup") == 2500


def test_a_system_that_is_not_linux(tmp_path: Path) -> None:
    assert host_memory(tmp_path / "none", tmp_path / "none") > 0


def test_this_machine() -> None:
    assert 0 < free_memory(torch.device("cpu")) < 1 << 50
