"""Evaluation while training: scores in the log, curves, pictures, and the best weights kept apart."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_detectors import tiny_detector, tiny_spec

from kernel.data.annotated import AnnotatedImage, list_annotated
from kernel.data.learned import read_member_record
from kernel.data.synthetic.generate import write_dataset
from kernel.ensemble.ensemble import Ensemble
from kernel.errors import InputError, RunError
from kernel.models.checkpoints import load_detector
from kernel.training import evaluation
from kernel.training.manifests import new_manifest
from kernel.training.run import TrainingRun
from kernel.training.samples import read_training_images
from kernel.training.settings import TrainSettings
from kernel.training.state import read_state, save_weights
from kernel.training.trainer import Trainer, train_detector

pytestmark = pytest.mark.usefixtures("wheels_site")

TINY = TrainSettings(iterations=4, batch_size=2, crop_size=64, rpn_nms_pre=50, rois_per_image=16, evaluate_every=2)


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_a_run_is_evaluated_and_keeps_its_best_weights(tmp_path: Path, ema_decay: float) -> None:
    write_dataset(tmp_path / "data", {"cort": 2}, seed=1, shape=(96, 128))
    settings = replace(TINY, ema_decay=ema_decay)
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


def test_a_run_that_replaces_another_leaves_nothing_of_its_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`init` takes all weights of a folder: the earlier run's best would be among them. Until then it is all there."""
    write_dataset(tmp_path / "data", {"cort": 2}, seed=1, shape=(96, 128))
    out, images = tmp_path / "run" / "member.safetensors", read_training_images(tmp_path / "data")
    earlier = TrainingRun(
        tiny_spec("maskrcnn"), TINY, images, out, validation=list_annotated(tmp_path / "data"), replace=True
    )
    train_detector(earlier)
    own = [earlier.best_path, *out.with_suffix("").glob("step_*/*.png")]
    kept = out.with_suffix("") / "step_2" / "notes.txt"
    kept.write_text("mine", encoding="utf-8")
    assert len(own) == 5 and all(path.is_file() for path in own)

    run = replace(earlier, settings=replace(TINY, evaluate_every=0), replace=True)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", lambda *given: (_ for _ in ()).throw(RunError("no number")))
        with pytest.raises(RunError, match="no number"):
            train_detector(run)
    assert all(path.is_file() for path in own)
    train_detector(run)
    assert not any(path.exists() for path in own)
    assert list(out.with_suffix("").glob("step_*")) == [kept.parent] and kept.is_file()

    train_detector(replace(earlier, replace=True))
    before = earlier.best_path.read_bytes()
    train_detector(replace(earlier, replace=False, resume=True))
    assert earlier.best_path.read_bytes() == before, "a run keeps its own"


@pytest.mark.parametrize("goes_on_without", [False, True])
def test_a_run_stopped_in_an_evaluation_has_its_state_and_evaluates_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes_on_without: bool
) -> None:
    """The state is on disk before the first image is scored; the signal is heard between two images.

    Evaluations that are not asked for any more are not made either: one may be what ends the run, for memory.
    """
    write_dataset(tmp_path / "data", {"cort": 3}, seed=1, shape=(96, 128))
    out, images = tmp_path / "run" / "member.safetensors", list_annotated(tmp_path / "data")
    run = TrainingRun(
        tiny_spec("maskrcnn"), TINY, read_training_images(tmp_path / "data"), out, validation=images, resume=True
    )
    validate, scored = evaluation.validate_ensemble, []

    def stop_in_the_first(
        ensemble: Ensemble, entries: list[AnnotatedImage], draw: object, is_stopped: Callable[[], bool]
    ) -> object:
        state = read_state(run.state_path, run.fingerprint)
        assert ensemble.tiling is not None, "large images are cut, as in validate"
        assert state.step == 2 and not state.is_evaluated and read_member_record(out) == run.record(2)

        def is_stopped_then() -> bool:
            scored.append(is_stopped())
            if len(scored) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return scored[-1]

        return validate(ensemble, entries, draw, is_stopped_then)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "validate_ensemble", stop_in_the_first)
        with pytest.raises(RunError, match="stopped after step 2 of 4; the same command goes on from there"):
            train_detector(run)
    assert scored == [False, True]  # asked before the first image, and before the second, which is not begun
    log = out.with_suffix(".jsonl")
    assert "score" not in log.read_text(encoding="utf-8") and not run.best_path.exists()
    if goes_on_without:
        train_detector(replace(run, settings=replace(TINY, evaluate_every=0)))
    else:
        train_detector(run)
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "score" in line] == ([] if goes_on_without else [2, 4])
    state = read_state(run.state_path, run.fingerprint)
    assert (state.step, state.is_evaluated) == (4, True)


def test_an_evaluation_is_exact_on_a_gpu_and_training_goes_on_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 has 10 bits of a fraction, and is torch's default for convolutions."""
    seen: list[bool] = []

    def fail(*given: object) -> None:
        seen.append(torch.backends.cudnn.allow_tf32)
        raise RunError("a fault")

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(evaluation, "validate_ensemble", fail)
    with pytest.raises(RunError, match="a fault"):
        evaluation.evaluate_detector(tiny_detector("maskrcnn"), "maskrcnn", [], torch.device("cpu"))
    assert seen == [False] and torch.backends.cudnn.allow_tf32


def test_evaluations_on_images_that_the_first_weights_have_learned_from_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_dataset(tmp_path / "data", {"cort": 3}, seed=1, shape=(96, 128))
    images, annotated = read_training_images(tmp_path / "data"), list_annotated(tmp_path / "data")
    before = TrainingRun(tiny_spec("maskrcnn"), TINY, images[:2], tmp_path / "before.safetensors")
    save_weights(tiny_detector("maskrcnn").state_dict(), before.out, False, before.record(4))
    run = TrainingRun(
        tiny_spec("maskrcnn"), TINY, images[2:], tmp_path / "after.safetensors", before.out, validation=annotated[:1]
    )
    run.check()
    assert "1 of the 1 images that evaluations score were learned from by" in caplog.text
    assert annotated[0].image_id in caplog.text and "after.best.safetensors" in caplog.text
    caplog.clear()
    replace(run, init=None).check()
    replace(run, init=None, images=images).check()  # what it learns itself is not what it starts from
    assert "learned from" not in caplog.text


def truncated(image: AnnotatedImage) -> AnnotatedImage:
    image.path.write_bytes(image.path.read_bytes()[:100])
    return image


def resized(image: AnnotatedImage) -> AnnotatedImage:
    cv2.imwrite(str(image.path), np.zeros((9, 9), np.uint8))
    return image


@pytest.mark.parametrize(
    ("change", "num_classes", "told"),
    [
        (truncated, 3, "the PNG is truncated"),
        (resized, 3, "has 9 rows and 9 columns"),
        (lambda image: with_annotations(image, rles=("0 1",)), 3, "annotation 1: a run leaves the image"),
        (lambda image: with_annotations(image, cell_type="a172"), 3, "of a172, .*, cort: .* or set evaluate_every 0"),
        (lambda image: image, 2, "num_classes is 2, .* set it to 3 or more"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_training(
    tmp_path: Path, change: Callable[[AnnotatedImage], AnnotatedImage], num_classes: int, told: str
) -> None:
    write_dataset(tmp_path / "data", {"shsy5y": 2}, seed=1, shape=(96, 128))
    first, second = list_annotated(tmp_path / "data")
    spec, images = tiny_spec("maskrcnn", num_classes), read_training_images(tmp_path / "data")
    run = TrainingRun(spec, TINY, images, tmp_path / "member.safetensors", validation=[first, change(second)])
    with pytest.raises(InputError, match=told):
        run.check()
    replace(run, settings=replace(TINY, evaluate_every=0)).check()


def with_annotations(image: AnnotatedImage, **changes: object) -> AnnotatedImage:
    return replace(image, annotations=replace(image.annotations, **changes))  # type: ignore[type-var]


def test_pictures_that_cannot_be_written_end_the_run(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", {"cort": 1}, seed=1, shape=(96, 128))
    images, out = list_annotated(tmp_path / "data"), tmp_path / "member.safetensors"
    (tmp_path / "member").touch()  # where the pictures' folder would be
    run = TrainingRun(tiny_spec("maskrcnn"), TINY, read_training_images(tmp_path / "data"), out, validation=images)
    with pytest.raises(RunError, match=r"cannot write .*step_2"):
        train_detector(run)


def test_astro_masks_are_deformed_for_the_competition_alone() -> None:
    """Its own annotations are: a stranger's branched cell, filled as if convex, would be another."""
    assert not any(limits.corrupt for limits in evaluation.EVALUATION_SETTINGS.thresholds.values())
    for of_competition in (False, True):
        thresholds = new_manifest([], of_competition=of_competition)["ensemble"]["thresholds"]
        corrupt = {cell_type: limits["corrupt"] for cell_type, limits in thresholds.items()}
        assert corrupt == {"shsy5y": False, "astro": of_competition, "cort": False}
    assert not new_manifest([])["ensemble"]["thresholds"]["astro"]["corrupt"]
