"""The ladder of smaller memory plans on a device that has little, and images that fail alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_detectors import tiny_detector

import kernel.ensemble.networks
import kernel.runtime.failures
from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.fallbacks import MEMORY_FALLBACKS, means_out_of_memory, predict_image
from kernel.ensemble.features import ImageFeatures, features_bytes
from kernel.ensemble.members import Member
from kernel.ensemble.networks import NotFiniteError, Tiling
from kernel.errors import InputError
from kernel.models.detectors import ViewFeatures
from kernel.runtime.failures import FailedImage, FirstImages, attempt, attempt_prediction
from kernel.segment import Segmentation, finish_prediction, segment_image
from kernel.settings import CELL_TYPES, EnsembleSettings, Thresholds

pytestmark = pytest.mark.usefixtures("wheels_site")

LIMITS = Thresholds(rpn_max_per_img=40, rcnn_iou_threshold=0.5, rcnn_score_threshold=0.1, confidence=0.1, min_size=0)
SETTINGS = EnsembleSettings(thresholds=dict.fromkeys(CELL_TYPES, LIMITS))
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 80, 3)).astype(np.uint8)


class SmallDevice(Ensemble):
    """An ensemble on a device whose memory holds so many views in a batch and so many bytes of kept features."""

    most_views = 4
    most_bytes = 1 << 40

    def __init__(self, members: Sequence[Member], settings: EnsembleSettings):
        super().__init__(members, settings, views_per_batch=3, feature_budget_bytes=1 << 30)
        self.tried: list[tuple[int, int]] = []
        self.features: ImageFeatures | None = None

    def image_features(self, image_bgr: np.ndarray) -> ImageFeatures:
        self.tried.append((self.views_per_batch, self.feature_budget_bytes))
        self.features = super().image_features(image_bgr)
        return self.features

    def compute_features(self, member: Member, images: torch.Tensor) -> ViewFeatures:
        assert self.features is not None
        kept = sum(map(features_bytes, self.features._kept.values()))
        if len(images) > self.most_views or kept > self.most_bytes:
            raise torch.OutOfMemoryError("the small device is full")
        return super().compute_features(member, images)


@pytest.fixture(scope="module")
def members(wheels_site: Path) -> list[Member]:
    kinds = ("maskrcnn", "htc")
    return [Member(kind, kind, tiny_detector(kind), frozenset(CELL_TYPES)) for kind in kinds]


def rows(result: Segmentation) -> list[str]:
    found = result.masks.rles()
    assert len(found) > 3
    return found


@pytest.mark.parametrize(
    ("most_views", "most_bytes", "tried"),
    [
        (4, 1 << 40, [(3, 1 << 30)]),
        (1, 1 << 40, [(3, 1 << 30), (1, 1 << 29)]),
        (1, 0, [(3, 1 << 30), (1, 1 << 29), (1, 0)]),
    ],
)
def test_each_rung_gives_the_same_masks(
    members: list[Member], most_views: int, most_bytes: int, tried: list[tuple[int, int]]
) -> None:
    small = SmallDevice(members, SETTINGS)
    small.most_views, small.most_bytes = most_views, most_bytes
    expected = segment_image(Ensemble(members, SETTINGS), IMAGE)
    found = predict_image(small, IMAGE)
    assert small.tried == tried
    assert rows(finish_prediction(found, small.settings.thresholds)) == rows(expected)
    assert (small.views_per_batch, small.feature_budget_bytes) == (3, 1 << 30), "the next image starts at the top"


def test_what_no_rung_holds_is_raised(members: list[Member]) -> None:
    small = SmallDevice(members, SETTINGS)
    small.most_views = 0
    with pytest.raises(torch.OutOfMemoryError, match="small device"):
        predict_image(small, IMAGE)
    assert len(small.tried) == 3  # it is the CPU already
    assert (small.views_per_batch, small.feature_budget_bytes) == (3, 1 << 30)


def test_a_gpu_hands_its_image_to_the_cpu_and_takes_the_next(
    members: list[Member], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No GPU is needed: moving is noted, and a run that is not on the CPU raises as a full one does."""
    moves: list[str] = []

    def move_to(self: Ensemble, device: torch.device | str) -> None:
        self.device = torch.device(device)
        moves.append(str(device))

    predict = Ensemble.predict

    def predict_there(ensemble: Ensemble, image: np.ndarray) -> Prediction:
        if ensemble.device.type != "cpu":
            raise torch.OutOfMemoryError("full")
        assert ensemble.dtype == torch.float32, "float16 is no type for a CPU"
        assert ensemble.tiling == tiling.on_cpu, "the host's memory decides, not the GPU's"
        return predict(ensemble, image)

    tiling = Tiling(1 << 24, 2048, 1 << 30, on_cpu=Tiling(1 << 20, 512, 0))
    ensemble = Ensemble(members, SETTINGS, dtype=torch.float16, tiling=tiling)
    monkeypatch.setattr(Ensemble, "move_to", move_to)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: moves.append("emptied"))
    monkeypatch.setattr(Ensemble, "predict", predict_there)
    ensemble.move_to("cuda:1")
    found = predict_image(ensemble, IMAGE)
    assert moves == ["cuda:1", "emptied", "emptied", "emptied", "cpu", "cuda:1"]
    assert (ensemble.device, ensemble.dtype, ensemble.tiling) == (torch.device("cuda:1"), torch.float16, tiling)
    assert [each.description in caplog.text for each in MEMORY_FALLBACKS] == [False, True, True, True, False]
    monkeypatch.undo()
    assert rows(finish_prediction(found, SETTINGS.thresholds)) == rows(
        segment_image(Ensemble(members, SETTINGS), IMAGE)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_the_cpu_has_found_counts_where_the_gpu_does_not_take_the_networks_back(
    members: list[Member], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, dtype: torch.dtype
) -> None:
    """Two members: the GPU has room for one of them only, after it had room for both."""
    expected = rows(segment_image(Ensemble(members, SETTINGS), IMAGE))
    places = dict[int, str]()  # of each detector
    is_full = False

    def to(detector: torch.nn.Module, device: torch.device, **_: object) -> torch.nn.Module:
        if device.type == "cuda" and is_full and detector is members[-1].detector:
            raise torch.OutOfMemoryError("CUDA out of memory\nand more")
        places[id(detector)] = device.type
        return detector

    predict = Ensemble.predict

    def predict_there(ensemble: Ensemble, image: np.ndarray) -> Prediction:
        nonlocal is_full
        assert set(places.values()) == {ensemble.device.type}
        if ensemble.device.type != "cpu":
            raise torch.OutOfMemoryError("full")
        is_full = True
        return predict(ensemble, image)

    for member in members:
        monkeypatch.setattr(type(member.detector), "to", to)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(Ensemble, "predict", predict_there)
    tiling = Tiling(1 << 24, 2048, 1 << 30, on_cpu=Tiling(1 << 20, 512, 0))
    ensemble = Ensemble(members, SETTINGS, dtype=dtype, views_per_batch=3, tiling=tiling)
    ensemble.move_to("cuda:1")
    for _ in range(2):  # the next one is done there at once
        assert rows(finish_prediction(predict_image(ensemble, IMAGE), SETTINGS.thresholds)) == expected
        assert (ensemble.device, ensemble.dtype) == (torch.device("cpu"), torch.float32)
        assert (ensemble.views_per_batch, ensemble.tiling) == (1, tiling.on_cpu)
    assert caplog.text.count("the networks stay on the CPU: they cannot go back to cuda:1 (CUDA out of memory)") == 1


def test_an_ensemble_is_where_all_its_members_are(members: list[Member], monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = Ensemble(members, SETTINGS)

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    with pytest.raises(torch.OutOfMemoryError):
        ensemble.move_to("cuda")
    assert ensemble.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "means"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131'), True),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_other_errors_are_not_tried_again(
    members: list[Member], monkeypatch: pytest.MonkeyPatch, error: Exception, means: bool
) -> None:
    attempts = []

    def fail(ensemble: Ensemble, image: np.ndarray) -> Prediction:
        attempts.append(ensemble.feature_budget_bytes)
        raise error

    monkeypatch.setattr(Ensemble, "predict", fail)
    assert means_out_of_memory(error) == means
    with pytest.raises(type(error)):
        predict_image(Ensemble(members, SETTINGS), IMAGE)
    assert len(attempts) == (3 if means else 1)


class Overflowing(Ensemble):
    """The first member's features of the flipped views overflow in short dtypes, or always."""

    always = False

    def compute_features(self, member: Member, images: torch.Tensor) -> ViewFeatures:
        features = super().compute_features(member, images)
        if member is self.members[0] and (self.always or self.dtype != torch.float32):
            last = features.levels[-1].clone()
            last[0, 0, 0, 0] = torch.inf
            kernel.ensemble.networks.require_finite("features", [last])
        return features


def test_what_overflows_is_done_in_float32(members: list[Member], caplog: pytest.LogCaptureFixture) -> None:
    ensemble = Overflowing(members, SETTINGS, dtype=torch.bfloat16)
    found = predict_image(ensemble, IMAGE)
    expected = segment_image(Ensemble(members, SETTINGS), IMAGE)
    assert rows(finish_prediction(found, SETTINGS.thresholds)) == rows(expected)
    assert "not all numbers are finite" in caplog.text and "again in float32" in caplog.text
    assert ensemble.dtype == torch.bfloat16, "the next image is done as planned"
    ensemble.always = True
    with pytest.raises(NotFiniteError):
        predict_image(ensemble, IMAGE)


def test_an_image_that_fails_says_why(members: list[Member], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = Ensemble(members, SETTINGS)
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE)
    (tmp_path / "b.png").write_bytes(b"no image")
    outcome = attempt_prediction(ensemble, tmp_path / "a.png")
    assert not isinstance(outcome, FailedImage)
    np.testing.assert_array_equal(outcome[0], IMAGE)
    assert rows(finish_prediction(outcome[1], SETTINGS.thresholds)) == rows(segment_image(ensemble, IMAGE))
    broken = attempt_prediction(ensemble, tmp_path / "b.png")
    assert isinstance(broken, FailedImage) and broken.wrong_input and "no PNG" in broken.reason
    for error in (RuntimeError("x"), InputError("x"), cv2.error("x")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Ensemble, "predict", fail)
            failed = attempt_prediction(ensemble, tmp_path / "a.png")
        assert isinstance(failed, FailedImage) and not failed.wrong_input
        assert failed.reason.startswith(type(error).__name__)


#: What happens to images, by letter.
OUTCOMES = {
    "A": FailedImage("AttributeError: no such thing in a", wrong_input=False, error_type="AttributeError"),
    "a": FailedImage("AttributeError: no such thing in b", wrong_input=False, error_type="AttributeError"),
    "M": FailedImage("MemoryError: ", wrong_input=False, error_type="MemoryError"),
    "L": FailedImage("the time limit came first", wrong_input=False),
    "w": FailedImage("the PNG is truncated", wrong_input=True),
    "+": None,  # a result
}


@pytest.mark.parametrize(
    ("images", "logged_after", "parts"),
    [
        ("", None, []),
        ("+++", None, []),
        ("AaAAAA+", 3, ["FIRST 3 IMAGE(S)", "SAME REASON: AttributeError: no such thing in a. "]),
        ("AA+AAAA", None, []),  # the run works
        ("+AAAAAA", None, []),
        ("AA", 2, ["FIRST 2 IMAGE(S)", "SAME REASON: AttributeError: no such thing in a. "]),
        ("M", 1, ["FIRST 1 IMAGE(S), AND THE IMAGES ARE NOT AT FAULT: MemoryError: . "]),
        ("wwwww", None, []),  # nothing but wrong images
        ("wAwwAwA+", 7, ["FIRST 3 IMAGE(S)", "SAME REASON: AttributeError"]),
        ("wwA", 3, ["FIRST 1 IMAGE(S)", "FAULT: AttributeError"]),
        ("Aww", 3, ["FIRST 1 IMAGE(S)", "FAULT: AttributeError"]),
        ("Aw+", None, []),
        ("AMLLL", 3, ["FAULT: AttributeError: no such thing in a; MemoryError: ; the time limit came first. "]),
        ("LLLL", 3, ["SAME REASON: the time limit came first. "]),
    ],
)
def test_first_images_that_all_fail_are_logged_once(
    caplog: pytest.LogCaptureFixture, images: str, logged_after: int | None, parts: Sequence[str]
) -> None:
    first = FirstImages(len(images))
    logged = []
    for number, letter in enumerate(images, start=1):
        outcome = OUTCOMES[letter]
        if outcome is None:
            first.succeeded()
        else:
            first.failed(outcome)
        logged += [(number, record.getMessage()) for record in caplog.records if record.levelno == logging.CRITICAL]
        caplog.clear()
    assert [number for number, _ in logged] == ([] if logged_after is None else [logged_after])
    for part in parts:
        assert part in logged[0][1]


def test_the_type_of_what_was_raised_is_kept() -> None:
    def fail() -> None:
        raise ImportError("libGL.so.1 is missing")

    assert attempt("a", fail) == FailedImage("ImportError: libGL.so.1 is missing", False, "ImportError")
