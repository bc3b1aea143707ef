"""Stored predictions come back bit for bit, and neither damaged ones nor those of something else are taken for good."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from oracles import random_instances
from same_predictions import assert_same

from kernel.data.annotated import AnnotatedImage
from kernel.data.annotations import ImageAnnotations
from kernel.errors import InputError
from kernel.manifest.types import KernelIdentity, Manifest, MemberEntry
from kernel.masks.instances import Instances
from kernel.scoring.predictions import (
    POSTPROCESSING_THRESHOLDS,
    Fingerprint,
    SoftPrediction,
    ensemble_fingerprint,
    fingerprint_differences,
    image_fingerprint,
    load_fingerprint,
    load_prediction,
    prediction_path,
    read_predictions,
    store_prediction,
)
from kernel.settings import CELL_TYPES, DEFAULT_THRESHOLDS, CellTypeRule, EnsembleSettings, StageWeights, Thresholds

SHAPE = (40, 52)
MANIFEST = Manifest(
    KernelIdentity("me/some-kernel", "Some kernel", "cells"),
    "me/wheels",
    tuple(MemberEntry(name, name, "resnet50", CELL_TYPES, sha256=name[0] * 64) for name in ("cascade", "htc")),
)
#: The same, without a word of the weights' content.
UNPINNED = replace(MANIFEST, members=tuple(replace(member, sha256=None) for member in MANIFEST.members))
FINGERPRINT = ensemble_fingerprint(MANIFEST, "float32")


def prediction_of(instances: Instances) -> SoftPrediction:
    return SoftPrediction(instances, "astro", (5, 4, 3, 2, 1), {"features": 0.1 + 0.2, "boxes": 1 / 3})


def random_prediction(seed: int, count: int = 12) -> SoftPrediction:
    return prediction_of(random_instances(np.random.default_rng(seed), count, SHAPE))


@st.composite
def any_instances(draw: st.DrawFn) -> Instances:
    """Crops of any shape, empty ones too, anywhere; boxes and scores of any bits that are allowed."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    crops, offsets = [], []
    for _ in range(draw(st.integers(0, 4))):
        y, x = draw(st.integers(0, height)), draw(st.integers(0, width))
        shape = draw(st.integers(0, height - y)), draw(st.integers(0, width - x))
        crops.append(draw(npst.arrays(np.uint8, shape)))
        offsets.append((y, x))
    count = len(crops)
    return Instances(
        tuple(crops),
        np.array(offsets, np.int64).reshape(-1, 2),
        draw(npst.arrays(np.float32, (count, 4))),
        draw(npst.arrays(np.float32, (count,), elements=st.floats(width=32, allow_nan=False))),
        draw(npst.arrays(np.int64, (count,), elements=st.integers(0, 2**62))),
        (height, width),
    )


@settings(max_examples=40)
@given(any_instances())
def test_what_is_stored_comes_back(tmp_path_factory: pytest.TempPathFactory, instances: Instances) -> None:
    path = tmp_path_factory.mktemp("stored") / "image.npz"
    store_prediction(path, prediction_of(instances), {"image": "a"})
    assert_same(load_prediction(path), prediction_of(instances))


def test_no_cells(tmp_path: Path) -> None:
    nothing = SoftPrediction(Instances.empty(SHAPE), "cort", (), {})
    store_prediction(tmp_path / "image.npz", nothing, FINGERPRINT)
    assert_same(load_prediction(tmp_path / "image.npz"), nothing)
    assert fingerprint_differences(load_fingerprint(tmp_path / "image.npz"), FINGERPRINT) == []


def test_files_are_small_and_the_same_for_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:36j, -1:1:36j]
    soft = (np.clip(1.2 - y**2 - x**2, 0, 1) * 255).astype(np.uint8)
    crops = tuple(soft - np.minimum(soft, rng.integers(0, 9, soft.shape).astype(np.uint8)) for _ in range(800))
    places = rng.integers(0, 400, (800, 2))
    instances = Instances(crops, places, np.zeros((800, 4)), rng.random(800), np.zeros(800), (520, 704))
    for name in ("a", "b"):
        store_prediction(tmp_path / f"{name}.npz", prediction_of(instances), FINGERPRINT)
    content = (tmp_path / "a.npz").read_bytes()
    assert content == (tmp_path / "b.npz").read_bytes()
    assert len(content) < 800 * 36 * 36 < 2e6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_any_damage_is_told(tmp_path: Path) -> None:
    """Bytes changed and the file cut off anywhere: refused by its name, or nothing that matters was hit."""
    path, expected = tmp_path / "image.npz", random_prediction(1, count=2)
    store_prediction(path, expected, {"image": "a"})
    content, refused = path.read_bytes(), 0
    damaged = [content[:end] for end in range(0, len(content), 29)]
    damaged += [content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :] for at in range(0, len(content), 3)]
    for data in damaged:
        path.write_bytes(data)
        try:
            assert_same(load_prediction(path), expected)
        except InputError as error:
            assert str(error).startswith(f"{path} is no stored prediction, or a damaged one")
            refused += 1
    assert refused > 0.7 * len(damaged)


@pytest.mark.parametrize("content", [b"", b"PK", b"no prediction at all"])
def test_what_is_no_prediction_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.npz"
    path.write_bytes(content)
    for read in (load_prediction, load_fingerprint):
        with pytest.raises(InputError, match=r"image\.npz is no stored prediction, or a damaged one .* delete it"):
            read(path)


def test_predictions_packed_otherwise_are_told(tmp_path: Path) -> None:
    """Of bzip2 and LZMA more may be unpacked than an entry says it has."""
    path = tmp_path / "image.npz"
    store_prediction(path, random_prediction(1, count=2), FINGERPRINT)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=r"image\.npz is no stored prediction, or a damaged one .*another method"):
        load_prediction(path)


def test_archives_of_something_else_are_told(tmp_path: Path) -> None:
    path = tmp_path / "image.npz"
    good = {name: np.zeros(0, np.int64) for name in ("pixels", "offsets_yx", "boxes_xyxy", "scores", "labels")}
    told = np.frombuffer(json.dumps({"image_shape": [4, 4], "cell_type": "cort"}).encode(), np.uint8)
    for arrays in (
        {"weights": np.zeros(3)},
        {**good, "told": np.frombuffer(b"[]", np.uint8), "crop_shapes": np.zeros((0, 2), np.int64)},
        {**good, "told": told, "crop_shapes": np.zeros((0, 2), np.int64)},
        {**good, "told": told, "crop_shapes": np.array([[2, 2]])},
        {**good, "told": told, "crop_shapes": np.array([[-1, 0]])},
        {**good, "told": np.array([{"a": "pickle"}], dtype=object), "crop_shapes": np.zeros((0, 2), np.int64)},
    ):
        np.savez_compressed(path, **arrays)
        with pytest.raises(InputError, match=r"image\.npz is no stored prediction"):
            load_prediction(path)
    with pytest.raises(InputError, match=r"no stored prediction .*other\.npz"):
        load_prediction(tmp_path / "other.npz")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write the prediction"):
        store_prediction(tmp_path / "gone" / "image.npz", random_prediction(0), FINGERPRINT)


def changed_settings(**given: object) -> Fingerprint:
    return ensemble_fingerprint(replace(MANIFEST, ensemble=replace(MANIFEST.ensemble, **given)), "float32")


def changed_threshold(name: str, value: float) -> Fingerprint:
    cort = replace(DEFAULT_THRESHOLDS["cort"], **{name: value})
    return changed_settings(thresholds={**DEFAULT_THRESHOLDS, "cort": cort})


def changed_member(**given: object) -> Fingerprint:
    first, second = MANIFEST.members
    return ensemble_fingerprint(replace(MANIFEST, members=(first, replace(second, **given))), "float32")


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (FINGERPRINT, []),
        (changed_settings(use_tta=False), ["settings.use_tta: stored true, wanted false"]),
        (
            changed_settings(cell_type_rule=CellTypeRule(astro_above=11)),
            ["settings.cell_type_rule.astro_above: stored 10, wanted 11"],
        ),
        (changed_threshold("rpn_nms_pre", 7), ["settings.thresholds.cort.rpn_nms_pre: stored 1000, wanted 7"]),
        (changed_member(sha256="0" * 64), ['weights.htc: stored "hhhhhhhh...", wanted "00000000..."']),
        (changed_member(stem_stride=2), ["detectors.htc.stem_stride: stored null, wanted 2"]),
        (
            changed_member(encoder="resnet18_narrow"),
            ['detectors.htc.encoder: stored "resnet50", wanted "resnet18_narrow"'],
        ),
        (changed_member(weights=StageWeights(masks=2.0)), ["averaging.htc.masks: stored 1.0, wanted 2.0"]),
        (changed_member(use_for=("cort",)), ['use_for.htc: stored ["astro", "cort", "shsy5y"], wanted ["cort"]']),
        (
            ensemble_fingerprint(replace(MANIFEST, members=MANIFEST.members[::-1]), "float32"),
            ['members: stored ["cascade", "htc"], wanted ["htc", "cascade"]'],
        ),
        ({**FINGERPRINT, "dtype": "float16"}, ['dtype: stored "float32", wanted "float16"']),
        ({"image": "a"}, ['image: stored nothing, wanted "a"']),
        ({}, []),
        (
            ensemble_fingerprint(replace(MANIFEST, members=MANIFEST.members[:1]), "float32"),
            [
                'members: stored ["cascade", "htc"], wanted ["cascade"]',
                'detectors.htc.kind: stored "htc", wanted nothing',
                'detectors.htc.encoder: stored "resnet50", wanted nothing',
                "detectors.htc.stem_stride: stored null, wanted nothing",
                'use_for.htc: stored ["astro", "cort", "shsy5y"], wanted nothing',
                *(f"averaging.htc.{stage}: stored 1.0, wanted nothing" for stage in ("proposals", "boxes", "masks")),
                'weights.htc: stored "hhhhhhhh...", wanted nothing',
            ],
        ),
    ],
)
def test_what_differs_is_told(wanted: Fingerprint, told: list[str]) -> None:
    assert fingerprint_differences(FINGERPRINT, wanted) == told


def test_every_threshold_is_either_predicted_with_or_for_the_post_processing() -> None:
    for name, value in vars(Thresholds()).items():
        other = not value if isinstance(value, bool) else 0.123
        differences = fingerprint_differences(FINGERPRINT, changed_threshold(name, other))
        assert bool(differences) == name.startswith(("rpn_", "rcnn_", "mask_box_"))
        assert bool(differences) != (name in POSTPROCESSING_THRESHOLDS)
    assert set(EnsembleSettings().__dict__) == set(FINGERPRINT["settings"])


def stored_images(folder: Path, count: int) -> tuple[list[AnnotatedImage], list[SoftPrediction]]:
    """Images in `folder`, and their predictions in `folder`/stored."""
    images, predictions = [], [random_prediction(seed) for seed in range(count)]
    (folder / "stored").mkdir()
    for number, prediction in enumerate(predictions):
        path = folder / f"image{number}.png"
        assert cv2.imwrite(str(path), np.full(SHAPE, number, np.uint8))
        images.append(AnnotatedImage(path, ImageAnnotations(path.stem, "cort", SHAPE, ())))
        sums = {"weights": {"cascade": f"{number % 2}" * 64, "htc": "h" * 64}}  # as of two folds
        made_of = {**FINGERPRINT, **sums, **image_fingerprint(path)}
        store_prediction(prediction_path(folder / "stored", path.stem), prediction, made_of)
    return images, predictions


def test_reading_goes_image_by_image(tmp_path: Path) -> None:
    images, predictions = stored_images(tmp_path, 3)
    read = list(read_predictions(tmp_path / "stored", images[::-1], UNPINNED))
    assert [entry for entry, _ in read] == images[::-1]
    for (_, found), expected in zip(read, predictions[::-1], strict=True):
        assert_same(found, expected)
    assert list(read_predictions(tmp_path / "stored", [])) == []
    assert len(list(read_predictions(tmp_path / "stored", images[:1]))) == 1


def test_weights_that_the_manifest_states_are_the_only_ones(tmp_path: Path) -> None:
    """Those of members that it states no sum of may be any."""
    images, _ = stored_images(tmp_path, 3)
    cascade, htc = UNPINNED.members
    of_htc = replace(UNPINNED, members=(cascade, replace(htc, sha256="h" * 64)))
    assert len(list(read_predictions(tmp_path / "stored", images, of_htc))) == 3
    of_one_fold = replace(UNPINNED, members=(replace(cascade, sha256="0" * 64), htc))
    assert len(list(read_predictions(tmp_path / "stored", images[::2], of_one_fold))) == 2
    told = r'image1\.npz was .*\(weights\.cascade: stored "1{8}\.\.\.", wanted "0{8}\.\.\."\): .*the manifest that'
    with pytest.raises(InputError, match=told):
        read_predictions(tmp_path / "stored", images, of_one_fold)


def test_reading_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    folder = tmp_path / "stored"
    images, predictions = stored_images(tmp_path, 3)
    lone = replace(UNPINNED, members=UNPINNED.members[1:])
    with pytest.raises(InputError, match=r"image0\.npz was made of something else.*members: stored"):
        read_predictions(folder, images, lone)
    with pytest.raises(InputError, match="'image1' is several images"):
        read_predictions(folder, [*images, images[1]])

    other = {**changed_threshold("rpn_nms_pre", 7), **image_fingerprint(images[2].path)}
    store_prediction(prediction_path(folder, "image2"), predictions[2], other)
    with pytest.raises(InputError, match=r"image2\.npz.*as the files before it \(settings\.\S+rpn_nms_pre: stored 7"):
        read_predictions(folder, images)
    prediction_path(folder, "image2").unlink()
    with pytest.raises(InputError, match=r"1 of 3 images have no stored prediction in .*, 'image2' first: `python -m"):
        read_predictions(folder, images)

    assert cv2.imwrite(str(images[0].path), np.full(SHAPE, 99, np.uint8))
    with pytest.raises(InputError, match=r"image0\.npz was made of something else.*image: stored"):
        read_predictions(folder, images[:2])
