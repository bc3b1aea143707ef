"""One device's images: read ahead and finished in another thread, they are what they are one after the other."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_detectors import tiny_detector

import kernel.runtime.failures
import kernel.runtime.image_worker
from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.members import Member
from kernel.ensemble.networks import NotFiniteError
from kernel.ensemble.quality_levels import QualityLevel
from kernel.images.listing import AskedIds
from kernel.images.reading import read_image
from kernel.manifest.reader import read_manifest
from kernel.runtime.image_worker import ImageWorker
from kernel.runtime.results import RunResults
from kernel.runtime.summary import summarise
from kernel.settings import CELL_TYPES, EQUAL_WEIGHTS, EnsembleSettings, Thresholds

pytestmark = pytest.mark.usefixtures("wheels_site")

LIMITS = Thresholds(rpn_max_per_img=40, rcnn_iou_threshold=0.5, rcnn_score_threshold=0.1, confidence=0.1, min_size=0)
SETTINGS = EnsembleSettings(thresholds=dict.fromkeys(CELL_TYPES, LIMITS))
KINDS = ("maskrcnn", "htc")


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Four images, the third of which is none."""
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    for seed, path in enumerate(paths):
        cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (48, 80, 3)).astype(np.uint8))
    paths[2].write_bytes(b"no image")
    return paths


def make_worker(dtype: torch.dtype = torch.float32) -> ImageWorker:
    members = [Member(kind, kind, tiny_detector(kind), frozenset(CELL_TYPES)) for kind in KINDS]
    return ImageWorker(
        Ensemble(members, SETTINGS, dtype=dtype),
        [
            QualityLevel(
                "full", SETTINGS, dict.fromkeys(KINDS, frozenset(CELL_TYPES)), dict.fromkeys(KINDS, EQUAL_WEIGHTS)
            )
        ],
    )


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("AttributeError(\"module 'numpy' has no attribute 'bool'\")", "has no attribute 'bool'"),
        ("ValueError('numpy.dtype size changed')", "numpy.dtype size changed"),
        ("KeyError('mmdet')", "KeyError"),
    ],
)
def test_whatever_a_process_cannot_start_with_is_told(tmp_path: Path, raised: str, told: str) -> None:
    """Libraries that do not fit each other raise what they like; without a reason a run would end with empty rows."""
    script = f"""
import kernel.runtime.image_worker as served
def fail(*_):
    raise {raised}
served.install_wheels = fail
raise SystemExit(served.serve_device("{{}}"))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps({"packages": str(tmp_path)}) + "\n",
        cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    assert told in json.loads(ended.stdout.splitlines()[-1])["failure"]


def test_on_the_cpu_nothing_overlaps() -> None:
    assert not make_worker().overlaps


def test_what_is_read_ahead_gives_the_same_answers(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    worker, readers = make_worker(), dict[str, str]()

    def read(path: Path) -> np.ndarray:
        readers[path.stem] = threading.current_thread().name
        return read_image(path)

    plain = [worker.begin(path, 0, None)() for path in paths]
    monkeypatch.setattr(kernel.runtime.image_worker, "read_image", read)
    worker.overlaps = True
    unfinished = [worker.begin(path, 0, next_path) for path, next_path in zip(paths, [*paths[1:], None], strict=True)]
    assert set(readers) == {"b", "c", "d"} and all("reads the next image" in name for name in readers.values())
    for finish, expected in zip(unfinished, plain, strict=True):
        found = finish()
        assert found["image"] == expected["image"] and found["failure"] == expected["failure"]
        assert found.get("rles") == expected.get("rles")
    assert [answer["failure"] is None for answer in plain] == [True, True, False, True]
    assert plain[2]["failure"]["wrong_input"] and len(plain[0]["rles"]) > 3


def test_an_image_that_did_not_come_next_is_read_when_it_comes(paths: list[Path]) -> None:
    worker = make_worker()
    expected = worker.begin(paths[3], 0, None)()["rles"]
    worker.overlaps = True
    worker.begin(paths[0], 0, paths[1])
    assert worker.begin(paths[3], 0, None)()["rles"] == expected


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("CUDA error: unspecified launch failure", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", True),
        ("cuDNN error: CUDNN_STATUS_MAPPING_ERROR", True),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", False),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", False),
        ("CUDA error: out of memory", False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
        ("GET was unable to find an engine to execute this computation", False),
    ],
)
def test_a_lost_device_is_noticed(paths: list[Path], monkeypatch: pytest.MonkeyPatch, text: str, lost: bool) -> None:
    worker = make_worker()

    def fail(*_: object) -> None:
        raise torch.AcceleratorError(text)

    monkeypatch.setattr(Ensemble, "predict", fail)
    assert text in worker.begin(paths[0], 0, None)()["failure"]["reason"]
    assert worker.has_lost_device == lost


def test_networks_that_stay_on_the_cpu_do_so_at_every_level(paths: list[Path]) -> None:
    """They share their detectors; a process is told to end, and gives its answer."""
    worker = make_worker(torch.float16)
    expected = make_worker().begin(paths[0], 0, None)()["rles"]
    first, second = worker._ensembles[0], make_worker()._ensembles[0]
    worker._ensembles.append(second)
    worker._device = second.device = torch.device("cuda:1")
    first.dtype, second.dtype = torch.float32, torch.float16  # the first one could not go back
    assert worker.begin(paths[0], 0, None)()["rles"] == expected
    assert worker.is_stranded and not worker.has_lost_device
    assert (second.device, second.dtype) == (torch.device("cpu"), torch.float32)


def test_whatever_an_image_raises_costs_only_itself(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    worker = make_worker()
    expected = worker.begin(paths[0], 0, None)()["rles"]
    for place, name in (
        (kernel.runtime.failures, "read_image"),
        (Ensemble, "predict"),
        (kernel.runtime.image_worker, "finish_prediction"),
        (kernel.runtime.image_worker, "describe_image"),
    ):
        for error in (MemoryError("x"), OSError("x"), TypeError("x"), AssertionError("x")):

            def fail(*_: object, error: Exception = error) -> None:
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(place, name, fail)
                answer = worker.begin(paths[0], 0, None)()
            assert answer["image"] == "a" and not answer["failure"]["wrong_input"]
            assert answer["failure"]["reason"] == f"{type(error).__name__}: x"
    assert worker.begin(paths[0], 0, None)()["rles"] == expected


def test_the_summary_tells_what_was_computed_in(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The ensemble's dtype may be another than the planned one, and an image that overflows has its own."""
    manifest = read_manifest(Path("bundle/synthetic/manifest.json"))
    worker, results, predict = make_worker(torch.bfloat16), RunResults(), Ensemble.predict
    assert summarise(manifest, results, 1.0, {}, AskedIds())["dtype"] is None
    results.succeed("a", worker.begin(paths[0], 0)(), "cpu")
    assert manifest.dtype == "float32" and summarise(manifest, results, 1.0, {}, AskedIds())["dtype"] == "bfloat16"

    def overflow(ensemble: Ensemble, image: np.ndarray) -> Prediction:
        if ensemble.dtype != torch.float32:
            raise NotFiniteError("numbers overflow")
        return predict(ensemble, image)

    monkeypatch.setattr(Ensemble, "predict", overflow)
    results.succeed("b", worker.begin(paths[1], 0)(), "cpu")
    summary = summarise(manifest, results, 1.0, {}, AskedIds())
    assert summary["images"]["b"]["dtype"] == "float32" and summary["dtype"] == "bfloat16, float32"
