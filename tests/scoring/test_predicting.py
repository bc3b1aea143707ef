"""Many images on one device or several, stored or not, and a run that is killed goes on where it ended."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from same_predictions import assert_same
from tiny_detectors import tiny_detector

from kernel import processes, scale
from kernel.data.annotated import list_annotated
from kernel.data.synthetic.generate import write_dataset
from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.networks import NetworkRunner
from kernel.ensemble.tiles import needs_tiles
from kernel.errors import InputError, RunError
from kernel.files import file_sha256
from kernel.manifest.types import KernelIdentity, Manifest, MemberEntry
from kernel.scoring import predicting
from kernel.scoring.predicting import (
    EnsembleFiles,
    FoldEnsembles,
    LastEnsemble,
    PredictionJob,
    Predictor,
    predict_in_worker,
    predict_jobs,
)
from kernel.scoring.predictions import SoftPrediction
from kernel.scoring.scores import validate_ensemble, validate_jobs
from kernel.settings import CELL_TYPES, CLS_USE, EnsembleSettings, Thresholds

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
#: Few cells, so that an image takes little time.
QUICK = Thresholds(
    rpn_nms_pre=20, rpn_score_threshold=0.0, rpn_max_per_img=10, rcnn_score_threshold=0.0, confidence=0.0
)


@pytest.fixture(scope="module")
def files(wheels_site: Path, tmp_path_factory: pytest.TempPathFactory) -> EnsembleFiles:
    """An ensemble of two tiny members."""
    folder = tmp_path_factory.mktemp("weights")
    members, paths = [], {}
    for kind in ("maskrcnn", "cascade"):
        path = paths[kind] = folder / f"{kind}.safetensors"
        save_file({key: value.contiguous() for key, value in tiny_detector(kind).state_dict().items()}, path)
        members.append(MemberEntry(kind, kind, "resnet18_narrow", CELL_TYPES, file=path.name, sha256=file_sha256(path)))
    settings = EnsembleSettings(use_tta=False, use_tta_masks=False, thresholds=dict.fromkeys(CELL_TYPES, QUICK))
    identity = KernelIdentity("me/some-kernel", "Some kernel", "cells")
    return EnsembleFiles(
        Manifest(identity, "me/wheels", tuple(members), ("me/weights",), ensemble=settings), paths, "float32"
    )


@pytest.fixture(scope="module")
def jobs(files: EnsembleFiles, tmp_path_factory: pytest.TempPathFactory) -> list[PredictionJob]:
    """Six small images, the first four by both members, the others by one."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, dict.fromkeys(CELL_TYPES, 2), seed=3, shape=(64, 96))
    alone = files.alone("cascade")
    return [
        PredictionJob(entry, files if index < 4 else alone, fold=int(index >= 4))
        for index, entry in enumerate(list_annotated(folder))
    ]


@pytest.fixture(scope="module")
def expected(jobs: list[PredictionJob]) -> list[SoftPrediction]:
    return [prediction for _, prediction in predict_jobs(jobs, ["cpu"])]


def test_a_job_of_one_member_tells_of_that_one_alone(jobs: list[PredictionJob]) -> None:
    """What is stored of it is told by a later tuning of that member."""
    whole = replace(jobs[0], seen_by=("maskrcnn (as other)", "cascade"), untold=("maskrcnn",))
    cascade, maskrcnn = whole.alone("cascade"), whole.alone("maskrcnn")
    assert (cascade.seen_by, cascade.untold) == (("cascade",), ())
    assert (maskrcnn.seen_by, maskrcnn.untold) == (("maskrcnn (as other)",), ("maskrcnn",))


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), InputError, "too little free memory for the 2 member"),
        (RuntimeError("CUDA error: unspecified launch failure"), RuntimeError, "unspecified launch failure"),
    ],
)
def test_members_that_do_not_fit_are_told(
    files: EnsembleFiles, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, raised: type[Exception], told: str
) -> None:
    def fail(runner: NetworkRunner, device: torch.device | str) -> None:
        raise error

    monkeypatch.setattr(NetworkRunner, "move_to", fail)
    monkeypatch.setattr("kernel.ensemble.load.prepare_gpu", lambda device, dtype: dtype)
    with pytest.raises(raised, match=told) as caught:
        files.load("cuda:1")
    assert ("cuda:1 has" in str(caught.value)) == ("--device cpu" in str(caught.value)) == (raised is InputError)


def without_seconds(prediction: SoftPrediction) -> SoftPrediction:
    """But for how long it took, which no two runs agree on."""
    return replace(prediction, seconds={})


def assert_predicted(found: list[tuple[PredictionJob, SoftPrediction]], jobs, expected) -> None:
    assert [job for job, _ in found] == jobs
    for (_, prediction), other in zip(found, expected, strict=True):
        assert_same(without_seconds(prediction), without_seconds(other))


def test_images_too_large_for_the_memory_are_tiled_by_what_commands_load(files: EnsembleFiles) -> None:
    ensemble = files.load("cpu")
    assert ensemble.tiling is not None and needs_tiles((10_000, 10_000), ensemble.tiling)
    assert not needs_tiles((520, 704), ensemble.tiling)


def test_what_an_image_keeps_is_planned_by_what_is_free(
    jobs: list[PredictionJob], expected: list[SoftPrediction], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small machine's system would end the process of a run that keeps 4 GB of features, whatever is free."""
    predictor = Predictor("cpu")
    for free, kept in ((0, False), (64 << 30, True)):
        monkeypatch.setattr(scale, "free_memory", lambda device, free=free: free)
        predictor.last = LastEnsemble("cpu")
        found = predictor.predict(jobs[0], None)
        assert_same(without_seconds(found), without_seconds(expected[0]))
        assert bool(predictor.last.load(jobs[0].files).feature_budget_bytes) == kept


def test_predictions_are_the_ensembles(jobs: list[PredictionJob], expected: list[SoftPrediction]) -> None:
    assert all(len(prediction.instances) for prediction in expected)
    for files, start in ((jobs[0].files, 0), (jobs[4].files, 4)):
        images = [job.image for job in jobs[start : start + 2]]
        by_ensemble = validate_ensemble(files.load("cpu"), images)
        by_jobs = validate_jobs(jobs[start : start + 2], ["cpu"])
        assert [replace(r, seconds=0, fold=None) for r in by_jobs] == [replace(r, seconds=0) for r in by_ensemble]
    assert [r.fold for r in validate_jobs(jobs[3:5], ["cpu"])] == [0, 1]


def test_an_ensemble_is_loaded_once_for_the_jobs_that_it_has(
    jobs: list[PredictionJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, ...]] = []
    load = EnsembleFiles.load

    def count(files: EnsembleFiles, device: str) -> object:
        loaded.append(tuple(files.paths))
        return load(files, device)

    monkeypatch.setattr(EnsembleFiles, "load", count)
    assert len(list(predict_jobs(jobs, ["cpu"]))) == 6
    assert loaded == [("maskrcnn", "cascade"), ("cascade",)]

    loaded.clear()
    ensembles = FoldEnsembles(jobs, LastEnsemble("cpu"))
    for _ in range(2):
        found = [(len(ensemble.members), images) for ensemble, images in ensembles]
        assert [count for count, _ in found] == [2, 1]
        assert [image for _, images in found for image in images] == [job.image for job in jobs]
    assert len(loaded) == 4  # one at a time
    alone = FoldEnsembles(jobs[:3], LastEnsemble("cpu"))
    assert next(iter(alone))[0] is next(iter(alone))[0] and len(loaded) == 5


def test_one_ensembles_weights_are_held_at_a_time_and_its_memory_is_planned(
    jobs: list[PredictionJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "free_memory", lambda device: 0)
    held: list[Ensemble] = []
    for ensemble, _ in FoldEnsembles(jobs, LastEnsemble("cpu")):
        held.append(ensemble)
        places = [{weight.device.type for m in each.members for weight in m.detector.parameters()} for each in held]
        assert places == [{"meta"}] * (len(held) - 1) + [{"cpu"}]
        assert ensemble.feature_budget_bytes == 0
    assert len(held) == 2


def test_what_is_stored_is_not_predicted_again(
    jobs: list[PredictionJob],
    expected: list[SoftPrediction],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    predicted: list[str] = []
    predict = Predictor.predict

    def remember(self: Predictor, job: PredictionJob, folder: Path | None) -> SoftPrediction:
        predicted.append(job.image.image_id)
        return predict(self, job, folder)

    monkeypatch.setattr(Predictor, "predict", remember)
    names = [job.image.image_id for job in jobs]
    folder = tmp_path / "new" / "stored"
    assert_predicted(list(predict_jobs(jobs[1:3], ["cpu"], folder)), jobs[1:3], expected[1:3])
    assert [result.is_stored for result in validate_jobs(jobs[2:4], ["cpu"], folder)] == [True, False]
    assert_predicted(list(predict_jobs(jobs, ["cpu"], folder)), jobs, expected)
    assert predicted == [*names[1:4], names[0], *names[4:]]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.npz" for name in names)

    # Thresholds of the post-processing are not part of what is stored; those of the boxes are.
    def with_threshold(job: PredictionJob, **given: float) -> PredictionJob:
        settings = replace(job.files.manifest.ensemble, thresholds=dict.fromkeys(CELL_TYPES, replace(QUICK, **given)))
        return replace(job, files=replace(job.files, manifest=replace(job.files.manifest, ensemble=settings)))

    predicted.clear()
    other = [with_threshold(job, confidence=0.9, mask_threshold=0.2) for job in jobs]
    assert_predicted(list(predict_jobs(other, ["cpu"], folder)), other, expected)
    assert predicted == [] and not caplog.records
    again = [with_threshold(jobs[0], rcnn_score_threshold=0.01), *jobs[1:]]
    assert len(list(predict_jobs(again, ["cpu"], folder))) == 6
    assert predicted == names[:1]
    assert "1 stored predictions were made of something else and are replaced" in caplog.text
    assert "thresholds.shsy5y.rcnn_score_threshold: stored 0.0, wanted 0.01" in caplog.text

    (folder / f"{names[2]}.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=rf"{names[2]}\.npz is no stored prediction, or a damaged one"):
        list(predict_jobs(jobs, ["cpu"], folder))


def test_no_jobs(tmp_path: Path) -> None:
    assert list(predict_jobs([], ["cpu", "cpu"], tmp_path / "stored")) == []
    assert validate_jobs([], ["cpu"]) == []


def test_what_fails_in_a_process_is_told(jobs: list[PredictionJob], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(jobs[1].image.path.read_bytes()[:100])
    bad = replace(jobs[1], image=replace(jobs[1].image, path=broken))
    with pytest.raises(InputError, match=r"broken\.png"):
        list(predict_jobs([bad, bad], ["cpu", "cpu"]))


def die(work: tuple[PredictionJob, Path | None]) -> SoftPrediction:
    """In the place of `predict_in_worker`: what the system does to a process that takes all memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(work)


def stop_at_the_third(work: tuple[PredictionJob, Path | None]) -> SoftPrediction:
    """The same: a process is stopped while it has work."""
    assert work[1] is not None
    if len(list(work[1].glob("*.npz"))) >= 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    return predict_in_worker(work)


def test_a_process_that_dies_is_told(jobs: list[PredictionJob], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "predict_in_worker", die)
    with pytest.raises(RunError, match=r"a process died.*run the same again"):
        list(predict_jobs(jobs[:2], ["cpu", "cpu"]))


def test_a_process_that_is_stopped_is_told_and_what_is_stored_stays(
    jobs: list[PredictionJob], expected: list[SoftPrediction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LONGEST_SILENCE", 4.0)
    with monkeypatch.context() as patched:
        patched.setattr(predicting, "predict_in_worker", stop_at_the_third)
        with pytest.raises(RunError, match=r"no process has moved for 4 s.*what --predictions has stored is kept"):
            list(predict_jobs(jobs, ["cpu", "cpu"], tmp_path))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    assert len(kept) >= 2 and not multiprocessing.active_children()
    assert_predicted(list(predict_jobs(jobs, ["cpu"], tmp_path)), jobs, expected)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


KILLED_RUN = """
import os, pickle, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:4]
import torch
import kernel.scoring.predicting as predicting
torch.set_num_threads(1)  # more may move the last bits
jobs = pickle.loads(Path(sys.argv[4]).read_bytes())
store, left = predicting.store_prediction, [3]
def store_or_die(*arguments):
    left[0] -= 1
    if not left[0]:
        import numpy
        numpy.savez_compressed = lambda stream, **rest: (stream.write(b"PK"), stream.flush(), die())
    store(*arguments)
def die():
    os.kill(os.getpid(), signal.SIGKILL)
predicting.store_prediction = store_or_die
list(predicting.predict_jobs(jobs, ["cpu"], Path(sys.argv[5])))
"""


def test_a_killed_run_goes_on(
    jobs: list[PredictionJob], expected: list[SoftPrediction], wheels_site: Path, tmp_path: Path
) -> None:
    """Killed in the middle of writing the third: two are there, whole, and are left as they are."""
    folder, pickled = tmp_path / "stored", tmp_path / "jobs"
    pickled.write_bytes(pickle.dumps(jobs))
    places = [str(ROOT), str(ROOT / "tests"), str(wheels_site)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, *places, str(pickled), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert sorted(whole) == sorted(f"{job.image.image_id}.npz" for job in jobs[:2])
    assert_predicted(list(predict_jobs(jobs, ["cpu"], folder)), jobs, expected)
    assert len(list(folder.glob("*.npz"))) == 6
    assert {name: (folder / name).stat().st_mtime_ns for name in whole} == whole


def test_a_lone_member_is_used_for_everything(files: EnsembleFiles) -> None:
    first, second = files.manifest.members
    members = (replace(first, use_for=("shsy5y", CLS_USE)), replace(second, use_for=("astro", "cort")))
    files = replace(files, manifest=replace(files.manifest, members=members))
    alone = files.alone("cascade")
    assert alone.manifest.members == (replace(second, use_for=(*CELL_TYPES, CLS_USE)),)
    assert alone.manifest.ensemble is files.manifest.ensemble
    assert alone.sums == {"cascade": second.sha256}
    ensemble = alone.load("cpu")
    assert [member.name for member in ensemble.members] == ["cascade"] and not ensemble.needs_first_pass
    assert files.load("cpu").needs_first_pass
