"""The ensemble on a device that is not the host, without a GPU: the same answer, sides not mixed, features stay."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda, fake_cuda
from golden_ensemble import assert_same_boxes, to_rows
from tiny_detectors import tiny_detector

from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.members import Member
from kernel.segment import segment_image
from kernel.settings import CELL_TYPES, CLS_USE, EnsembleSettings, Thresholds

pytestmark = pytest.mark.usefixtures("wheels_site")

LIMITS = Thresholds(rpn_max_per_img=40, rcnn_iou_threshold=0.5, rcnn_score_threshold=0.1, mask_box_scale=1.2)
SETTINGS = EnsembleSettings(thresholds=dict.fromkeys(CELL_TYPES, LIMITS))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    with fake_cuda() as device:
        yield device


def test_the_fake_tells_sides_apart(cuda: FakeCuda) -> None:
    there = torch.ones(3, 4, device="cuda")
    assert there.is_cuda and (there + 1).is_cuda and not there.cpu().is_cuda
    assert cuda.bytes_to_host == [48]
    assert torch.equal((there * torch.tensor(2.0)).cpu(), torch.full((3, 4), 2.0))
    assert there[torch.tensor([0, 2])].shape == (2, 4)
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3, 4)
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3)[torch.tensor([0], device="cuda")]
    with pytest.raises(RuntimeError):
        there.numpy()


@pytest.mark.parametrize("kinds", [("maskrcnn",), ("maskrcnn", "cascade", "htc")])
def test_the_answer_is_the_hosts_and_features_stay(kinds: tuple[str, ...], cuda: FakeCuda) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3)).astype(np.uint8)

    def ensemble_on(device: str) -> Ensemble:
        members = [Member(kind, kind, tiny_detector(kind), frozenset({*CELL_TYPES, CLS_USE})) for kind in kinds]
        return Ensemble(members, SETTINGS, device=device)

    host = ensemble_on("cpu").predict(image)
    ensemble = ensemble_on("cuda")
    assert all(value.is_cuda for member in ensemble.members for value in member.detector.state_dict().values())
    cuda.bytes_to_host.clear()
    there = ensemble.predict(image)
    found, expected = (to_rows(each.boxes_xyxy, each.scores, each.labels) for each in (there, host))
    assert len(found) > 5
    assert_same_boxes(found, expected, "boxes", labelled=True)
    # What comes back: counts, boxes and masks of the answer. One level of one member's features takes 240 KB here.
    assert max(cuda.bytes_to_host) < 200_000 and sum(cuda.bytes_to_host) < 500_000
    assert segment_image(ensemble, image).prediction.cell_type == host.cell_type
