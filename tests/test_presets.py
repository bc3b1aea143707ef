"""Presets of the members that come with the program: what they choose, what they say of themselves, runs by them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import kernel.manifest.presets
from kernel.__main__ import main
from kernel.api import load
from kernel.commands.model_card import card_of, describe_card
from kernel.data.synthetic.generate import generate_image, write_dataset
from kernel.errors import InputError
from kernel.manifest.presets import (
    MEMBERS_FOLDER,
    ShippedMembers,
    choose_preset,
    describe_presets,
    read_presets,
    shipped_members,
)
from kernel.manifest.reader import parse_manifest, read_manifest
from kernel.scoring.scores import ImageResult
from kernel.segment import segment_image

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "bundle" / "synthetic"

CARD = {
    "presets": {
        "best": {"score": 0.3214, "low": 0.29, "high": 0.35, "images": 47, "seconds": 21.46,
                 "types": {"astro": {"score": 0.18, "low": 0.15, "high": 0.21, "images": 14}}},
        "fast": {"score": 0.3, "seconds": None},
    }
}  # fmt: skip


PRESETS = """
[best]
dtype = "float32"
ensemble = { use_tta = true, use_tta_masks = true }

[balanced]
dtype = "bfloat16"
ensemble = { use_tta = false, use_tta_masks = false }

[fast]
members = ["maskrcnn"]
dtype = "bfloat16"
ensemble = { use_tta = false, use_tta_masks = false }
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShippedMembers:
    """Members that come with the program, to be changed: weights beside the manifest, with a model card."""
    folder = tmp_path / "bundle" / "members"
    shutil.copytree(DEMO / "weights", folder)
    shutil.copyfile(DEMO / "manifest.json", folder / "manifest.json")
    (folder / "presets.toml").write_text(PRESETS, encoding="utf-8")
    (folder / "model_card.json").write_text(json.dumps(CARD), encoding="utf-8")
    monkeypatch.setattr(kernel.manifest.presets, "__file__", str(tmp_path / "kernel" / "manifest" / "presets.py"))
    return shipped_members()


def test_the_shipped_members_have_three_presets() -> None:
    shipped = shipped_members()
    assert shipped.folder == ROOT / MEMBERS_FOLDER
    presets = read_presets(shipped)
    assert list(presets) == ["best", "balanced", "fast"]
    whole = read_manifest(shipped.manifest_path)
    for preset in presets.values():
        assert preset.manifest.ensemble.thresholds == whole.ensemble.thresholds
        assert set(preset.manifest.members) <= set(whole.members)
    best, fast = presets["best"].manifest, presets["fast"].manifest
    assert best.ensemble.use_tta and not fast.ensemble.use_tta and (best.dtype, fast.dtype) == ("float32", "bfloat16")


def test_presets_tell_what_they_are_and_what_was_measured(own: ShippedMembers) -> None:
    assert own.weights == own.folder
    presets = read_presets(own)
    assert presets["best"].describe() == "maskrcnn, cascade, htc; 4 views; float32"
    assert presets["best"].describe_measured() == "score 0.321, 21.5 s an image"
    assert presets["fast"].describe_measured() == "score 0.300, time not measured"
    assert presets["balanced"].describe_measured() == "score not measured, time not measured"
    lines = describe_presets()
    assert lines[0] == "presets of the members that come with the program, bundle/members (default: balanced):"
    assert lines[1] == "  best      maskrcnn, cascade, htc; 4 views; float32; score 0.321, 21.5 s an image"
    assert choose_preset(own, None).name == "balanced"
    with pytest.raises(InputError, match="no preset 'fats'; did you mean 'fast'"):
        choose_preset(own, "fats")


def test_an_installation_without_members_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel.manifest.presets, "__file__", str(tmp_path / "a" / "b" / "presets.py"))
    with pytest.raises(InputError, match="no members come with this installation"):
        shipped_members()
    with pytest.raises(SystemExit, match="0"):
        main(["predict", "--help"])
    assert "presets: no members come with this installation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[best]\n", "lacks the preset balanced"),
        ("balanced = 3\n", "found 3, expected a table"),
        ("[balanced]\nmember = ['htc']\n", "unknown key 'member'; did you mean 'members'"),
        ("[balanced]\nmembers = ['hct']\n", "no member 'hct'; did you mean 'htc'"),
        ("[balanced]\nmembers = []\n", "expected a list of names; there are maskrcnn, cascade, htc"),
        ("[balanced]\nmembers = 'htc'\n", "expected a list of names"),
        ("[balanced]\nmembers = [3]\n", "no member 3"),
        ("[balanced]\ndtype = 'int8'\n", 'dtype: found "int8"'),
        ("[balanced]\nensemble = { use_tta = 4 }\n", "ensemble.use_tta: found 4"),
        ("[balanced]\nensemble = 4\n", "ensemble: found 4"),
        ("[balanced]\n[balanced.ensemble.thresholds.cort]\nconfidence = 7\n", "thresholds.cort.confidence: found 7"),
        ("balanced", "cannot be read as a table of presets"),
    ],
)
def test_tables_that_are_no_presets(own: ShippedMembers, text: str, told: str) -> None:
    (own.folder / "presets.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_presets(own)
    assert told in str(error.value) and str(own.folder) in str(error.value)


def test_a_preset_may_change_a_threshold_alone(own: ShippedMembers) -> None:
    text = "[balanced]\n[balanced.ensemble.thresholds.cort]\nconfidence = 0.7\n"
    (own.folder / "presets.toml").write_text(text, encoding="utf-8")
    changed, whole = choose_preset(own, None).manifest.ensemble, read_manifest(own.manifest_path).ensemble
    assert changed.thresholds["cort"].confidence == 0.7 != whole.thresholds["cort"].confidence
    assert changed.thresholds["cort"].mask_threshold == whole.thresholds["cort"].mask_threshold
    assert changed.thresholds["astro"] == whole.thresholds["astro"]


@pytest.mark.parametrize(
    "card", [b"{", b"[]", b'{"presets": 3}', b'{"presets": {"best": 3}}', b'{"presets": {"best": {"score": "0.3"}}}',
             b'{"presets": {"best": {"types": {"astro": {"low": []}}}}}', b"\xff\xfe\x00"],
)  # fmt: skip
def test_a_damaged_model_card_is_refused(own: ShippedMembers, card: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (own.folder / "model_card.json").write_bytes(card)
    with pytest.raises(InputError, match=r"model_card\.json is no model card"):
        read_presets(own)
    with pytest.raises(SystemExit, match="0"):
        main(["validate", "--help"])
    assert "is no model card" in capsys.readouterr().out


def result_of(cell_type: str, score: float, seconds: float = 1.0) -> ImageResult:
    return ImageResult("a", cell_type, cell_type, cell_type, 3, 3, score, seconds, (1,))


def test_the_table_of_a_model_card() -> None:
    results = [result_of("cort", 0.4, 2.0), result_of("cort", 0.5), result_of("astro", 0.1)]
    card = card_of(results)
    assert card["score"] == pytest.approx(0.3333, abs=1e-4) and card["images"] == 3
    assert card["seconds"] == pytest.approx(1.33)
    assert 0.1 <= card["low"] < card["score"] < card["high"] <= 0.5
    assert card["types"]["astro"] == {"score": 0.1, "low": None, "high": None, "images": 1}
    assert (card["types"]["cort"]["low"], card["types"]["cort"]["high"]) == (0.4, 0.5)
    lines = describe_card(card, CARD["presets"]["best"])
    assert [line.split()[0] for line in lines] == ["images", "astro", "cort", "all", "seconds"]
    assert lines[1].split() == ["astro", "1", "0.1000", "0.1800", "[0.1500,", "0.2100]"]
    assert lines[2].endswith("not measured") and lines[3].endswith("0.3214 [0.2900, 0.3500]")
    assert lines[4].split() == ["seconds", "an", "image", "3", "1.33", "21.46"]
    nothing: dict[str, Any] = card_of([])
    unmeasured = {"score": None, "low": None, "high": None, "images": 0, "seconds": None}
    assert nothing == {**unmeasured, "seen": 0, "timed": 0, "untold": [], "left_out": 0, "types": {}}
    assert "not measured" in describe_card(nothing, {})[-1]


def test_the_time_of_a_card_is_of_what_was_predicted_now(own: ShippedMembers) -> None:
    """What is stored may have been predicted by a faster machine; its score counts all the same."""
    stored = [replace(result_of("cort", 0.5, 99.0), is_stored=True)] * 2
    card = card_of([result_of("cort", 0.2, 2.0), *stored])
    assert (card["score"], card["images"], card["seconds"], card["timed"]) == (0.4, 3, 2.0, 1)
    card = card_of(stored)
    assert (card["images"], card["seconds"], card["timed"]) == (2, None, 0)
    assert describe_card(card, {})[-1].split()[:6] == ["seconds", "an", "image", "0", "not", "measured"]
    (own.folder / "model_card.json").write_text(json.dumps({"presets": {"best": card}}), encoding="utf-8")
    assert read_presets(own)["best"].describe_measured() == "score 0.500, time not measured"


def test_the_intervals_of_a_card_are_over_wells_where_these_are_known() -> None:
    """Ten images of each of two wells tell no more than two; images of which no well is known are alone."""
    scores = [0.2 + 0.01 * place for place in range(10)] + [0.6 + 0.01 * place for place in range(10)]
    alone = [result_of("cort", score) for score in scores]
    wells = [replace(one, group=f"Vessel-1_A{place // 10}") for place, one in enumerate(alone)]
    by_image, by_well, mixed = (card_of(results) for results in (alone, wells, [*wells[:10], *alone[10:]]))
    assert by_image["score"] == by_well["score"] == mixed["score"] == 0.445
    assert (by_well["low"], by_well["high"]) == (0.245, 0.645)  # the means of the wells
    assert 0.3 < by_image["low"] < by_image["high"] < 0.6 and mixed["low"] < by_image["low"]
    one = card_of([replace(result, group="Vessel-1_A1") for result in alone])
    assert (one["score"], one["low"], one["high"], one["types"]["cort"]["low"]) == (0.445, None, None, None)


def test_a_card_is_of_unseen_images_where_there_are_any(own: ShippedMembers) -> None:
    unseen = [result_of("cort", 0.4, 2.0), result_of("cort", 0.5)]
    seen = [replace(result_of(kind, 0.9, 9.0), seen_by=("htc",)) for kind in ("cort", "astro", "astro")]
    card = card_of([*unseen, *seen])
    assert (card["score"], card["seconds"], list(card["types"])) == (0.45, 1.5, ["cort"])
    assert (card["images"], card["seen"], card["left_out"]) == (2, 0, 3)
    assert [line.split()[:2] for line in describe_card(card, {})[:2]] == [["unseen", "score"], ["cort", "2"]]
    (own.folder / "model_card.json").write_text(json.dumps({"presets": {"best": card}}), encoding="utf-8")
    assert read_presets(own)["best"].describe_measured() == "score 0.450, 1.5 s an image"

    card = card_of(seen)
    assert (card["score"], card["images"], card["seen"], card["left_out"]) == (0.9, 3, 3, 0)
    assert describe_card(card, {})[0].split()[0] == "seen"
    assert card["untold"] == [] and card_of(seen, untold=("cascade",))["untold"] == ["cascade"]


def test_images_are_predicted_by_a_preset(
    wheels_site: Path, one_thread: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    gray = generate_image("cort", 3, (96, 128)).image
    cv2.imwrite(str(images / "a.png"), gray)
    words = ["predict", str(images), "--device", "cpu", "--export", "labels", "--out"]
    assert main([*words, str(tmp_path / "fast"), "--preset", "fast"]) == 0
    shipped = shipped_members()
    expected = f"members: shipped, {MEMBERS_FOLDER}; preset fast: {read_presets(shipped)['fast'].describe()}\n"
    assert capsys.readouterr().out.startswith(expected)
    assert main([*words, str(tmp_path / "default"), "--dtype", "float32"]) == 0
    assert "preset balanced: " in (told := capsys.readouterr().out) and "here float32" in told

    segmenter = load(preset="fast", device="cpu")
    cells = segmenter.segment(gray)
    names = [member.name for member in read_presets(shipped)["fast"].manifest.members]
    assert [member.name for member in segmenter.ensemble.members] == names
    written = cv2.imread(str(next((tmp_path / "fast" / "labels").iterdir())), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(written, cells.labels)
    again = segment_image(segmenter.ensemble, np.repeat(gray[..., None], 3, axis=2)).masks
    assert len(again) == len(cells) > 0


def test_the_shipped_members_are_validated_beside_their_card(
    wheels_site: Path, one_thread: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, card = tmp_path / "data", tmp_path / "card.json"
    write_dataset(data, {"cort": 1, "shsy5y": 1}, seed=2, shape=(96, 128))
    words = ["validate", "--members", "shipped", "--preset", "fast", "--data", str(data), "--device", "cpu"]
    assert main([*words, "--card", str(card)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[next(number for number, line in enumerate(lines) if line.startswith("members: shipped")) :]
    figures = json.loads(card.read_text(encoding="utf-8"))
    assert set(figures["types"]) == {"cort", "shsy5y"} and figures["images"] == 2 and figures["seconds"] > 0
    assert [line.split()[0] for line in table[1:]] == ["images", "cort", "shsy5y", "all", "seconds"]
    told = read_presets(shipped_members())["fast"].measured
    assert f"{figures['score']:.4f}" in table[4] and f"{told['score']:.4f}" in table[4]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["validate", "--data", "data"], "which members? give --manifest with --weights-dir, or --members shipped"),
        (["validate", "--data", "data", "--manifest", "a.json"], "--manifest needs --weights-dir"),
        (["validate", "--data", "data", "--members", "shipped", "--manifest", "a"], "--members is of the members"),
        (["predict", "images", "--out", "out", "--preset", "fast", "--manifest", "a"], "--preset is of the members"),
        (["predict", "images", "--out", "out", "--weights-dir", "a"], "--weights-dir belongs to --manifest"),
        (["predict", "images", "--out", "out", "--preset", "quick"], "no preset 'quick'; there are best"),
        (["validate", "--data", "data", "--members", "shipped", "--out-of-fold"], "needs weights of each fold"),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], told: str, wheels_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((32, 32), np.uint8))
    write_dataset(tmp_path / "data", {"cort": 1}, seed=2, shape=(64, 64))
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_the_page_says_how_ones_own_manifest_runs_as_the_preset_fast() -> None:
    page = (ROOT / "docs" / "biologist.md").read_text(encoding="utf-8")
    shipped = shipped_members()
    data = json.loads(shipped.manifest_path.read_text(encoding="utf-8"))
    for words, place in (('"dtype": "bfloat16"', data), ('"use_tta": false', data["ensemble"]),
                         ('"use_tta_masks": false', data["ensemble"])):  # fmt: skip
        assert f"`{words}`" in page
        place.update(json.loads(f"{{{words}}}"))
    own, fast = parse_manifest(json.dumps(data), "own"), choose_preset(shipped, "fast").manifest
    assert (own.dtype, own.ensemble) == (fast.dtype, fast.ensemble)


def test_python_is_told_the_same(wheels_site: Path) -> None:
    with pytest.raises(InputError, match="no preset 'quick'"):
        load(preset="quick")
    with pytest.raises(InputError, match="preset 'fast' is of the members that come with the program"):
        load(DEMO / "manifest.json", preset="fast")
    with pytest.raises(InputError, match="without a manifest"):
        load(weights=DEMO / "weights")
