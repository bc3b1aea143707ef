"""Evaluation while training: scores in the log, curves, pictures, and the best weights kept apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_detectors import tiny_spec

from kernel.data.annotated import list_annotated
from kernel.data.synthetic import write_dataset
from kernel.models.checkpoints import load_detector
from kernel.training.samples import read_training_images
from kernel.training.settings import TrainSettings
from kernel.training.trainer import TrainingRun, train_detector

pytestmark = pytest.mark.usefixtures("wheels_site")


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_a_run_is_evaluated_and_keeps_its_best_weights(tmp_path: Path, ema_decay: float) -> None:
    write_dataset(tmp_path / "data", {"cort": 2}, seed=1, shape=(96, 128))
    settings = TrainSettings(
        iterations=4,
        batch_size=2,
        crop_size=64,
        rpn_nms_pre=50,
        rois_per_image=16,
        evaluate_every=2,
        ema_decay=ema_decay,
    )
    out = tmp_path / "run" / "member.safetensors"
    images = list_annotated(tmp_path / "data")
    run = TrainingRun(tiny_spec("maskrcnn"), settings, read_training_images(tmp_path / "data"), out, validation=images)
    trained = train_detector(run)

    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    scores = [line for line in lines if "score" in line]
    assert [line["step"] for line in scores] == [2, 4]
    assert all(0 <= line["score"] <= 1 and line["score"] == line["score_cort"] for line in scores)
    for step in (2, 4):
        pictures = sorted(path.name for path in (out.with_suffix("") / f"step_{step}").iterdir())
        assert pictures == sorted(f"cort_{image.image_id}.png" for image in images)
    best = load_detector(run.best_path, "maskrcnn", "resnet18_narrow").state_dict()
    written = load_detector(out, "maskrcnn", "resnet18_narrow").state_dict()
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(written[key], value, rtol=0, atol=0)
    # Detectors that have learnt nothing score equally, so the first evaluation stays the best.
    if scores[0]["score"] >= scores[1]["score"]:
        assert any(not torch.equal(best[key], written[key]) for key in best)
