"""What a member has learned from is told where it is scored on that, with the score of the unseen images beside."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import cv2
import pytest
from cases import GRID, competition
from safetensors import safe_open
from safetensors.torch import save_file
from test_out_of_fold_commands import QUICK
from tiny_detectors import tiny_detector

from kernel.__main__ import main
from kernel.data.annotated import list_annotated
from kernel.data.learned import MemberRecord, read_member_record
from kernel.data.pictures import Picture, picture_of
from kernel.settings import CELL_TYPES

pytestmark = pytest.mark.usefixtures("wheels_site", "one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two images of each type."""
    return competition(tmp_path / "data", [(f"{kind}{n}", kind, GRID[:5]) for kind in CELL_TYPES for n in (0, 1)])


def ensemble(folder: Path, *records: MemberRecord | None) -> list[str]:
    """The options of an ensemble of tiny members whose files tell these histories."""
    (folder / "weights").mkdir()
    members = []
    for number, record in enumerate(records):
        state = {key: value.contiguous() for key, value in tiny_detector("maskrcnn", seed=number).state_dict().items()}
        save_file(state, folder / "weights" / f"m{number}.safetensors", record and record.metadata())
        members.append(
            {
                "name": f"m{number}",
                "kind": "maskrcnn",
                "encoder": "resnet18_narrow",
                "use_for": list(CELL_TYPES),
                "file": f"m{number}.safetensors",
            }
        )
    content = {
        "kernel": {"id": "me/some-kernel", "title": "Some kernel", "competition": "some-competition"},
        "wheels_dataset": "me/wheels",
        "weight_datasets": ["me/some-weights"],
        "members": members,
        "ensemble": {"use_tta": False, "use_tta_masks": False, "thresholds": dict.fromkeys(CELL_TYPES, QUICK)},
    }
    path = folder / "manifest.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return ["--manifest", str(path), "--weights-dir", str(folder / "weights")]


def history(*pictures: Picture) -> MemberRecord:
    return MemberRecord("0" * 16, 5, 5, pictures)


def pictures_of(data: Path) -> dict[str, Picture]:
    return {image.image_id: picture_of(image.image_id, image.read()) for image in list_annotated(data)}


def test_validate_says_what_half_was_learned_from(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = pictures_of(data)
    # One under another id, as a brighter copy.
    copy = cv2.add(cv2.imread(str(data / "train" / "astro0.png")), (9, 9, 9, 0))
    learned = [pictures["cort0"], pictures["shsy5y0"], picture_of("elsewhere", copy)]
    words = ensemble(tmp_path, history(*learned), history(pictures["cort0"]))
    assert main(["validate", *words, "--data", str(data), "--out", str(tmp_path / "report"), "--each-member"]) == 0
    told, of_m0, of_m1 = re.split(r"^m\d: ", capsys.readouterr().out, flags=re.MULTILINE)
    for of_member, seen in ((of_m0, 3), (of_m1, 1)):  # each by what it has seen itself
        told_members = [line.split(" (")[0].rsplit(", ", 1) for line in of_member.splitlines()[1:]]
        assert [count for _, count in told_members] == [f"of {seen}", f"of {6 - seen}"]
        mean = sum(int(c.split()[1]) * float(s.rsplit(" ", 1)[1]) for s, c in told_members) / 6
        assert mean == pytest.approx(float(of_member.split()[0]), abs=1e-4)
    assert "3 of 6 images were learned from by members that they are to judge" in told
    for line in ("  cort0: seen by m0, m1\n", "  shsy5y0: seen by m0\n", "  astro0: seen by m0 (as elsewhere)\n"):
        assert line in told
    assert "of these, seen in training: " in told and "of these, unseen: " in told
    with (tmp_path / "report" / "scores.csv").open(encoding="utf-8", newline="") as stream:
        rows = {row["id"]: row for row in csv.DictReader(stream)}
    assert {name for name, row in rows.items() if row["seen_by"]} == {"cort0", "shsy5y0", "astro0"}
    unseen = [float(row["score"]) for row in rows.values() if not row["seen_by"]]
    assert f"of these, unseen: {sum(unseen) / 3:.4f}, of 3 (" in told


def test_all_seen_none_seen_and_not_known(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = pictures_of(data)
    for name, records, present, absent in (
        ("all", [history(*pictures.values())], "of these, unseen: none", "not known"),
        ("none", [history(picture_of("x", cv2.imread(str(data / "train" / "cort0.png"))[::-1]))], "ensemble: ", "seen"),
        ("unknown", [None], "not known of m0: the files do not say", "of these"),
    ):
        (tmp_path / name).mkdir()
        card = tmp_path / name / "card.json"
        assert main(["validate", *ensemble(tmp_path / name, *records), "--data", str(data), "--card", str(card)]) == 0
        told, figures = capsys.readouterr().out, json.loads(card.read_text(encoding="utf-8"))
        assert present in told and absent not in told, name
        assert (figures["seen"], figures["untold"]) == (6 * (name == "all"), ["m0"] * (name == "unknown"))


def test_tune_and_select_tell_it_too(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = pictures_of(data)
    words = ensemble(tmp_path, history(pictures["cort0"]))
    (tmp_path / "grid.toml").write_text("confidence = [0.0, 0.5]\n", encoding="utf-8")
    stored = str(tmp_path / "stored")
    assert main(["validate", *words, "--data", str(data), "--predictions", stored]) == 0
    from_stored = [*words[:2], "--predictions", stored, "--grid", str(tmp_path / "grid.toml")]
    for command in (
        ["tune", *words, "--grid", str(tmp_path / "grid.toml")],
        ["tune", *from_stored],
        ["tune", *words, "--stages", "--stage-grid", "rpn_iou_threshold=0.5,0.6"],
        ["select", *words],
    ):
        capsys.readouterr()
        assert main([*command, "--data", str(data)]) == 0
        told = capsys.readouterr().out
        assert "1 of 6 images were learned from" in told and "  cort0: seen by m0\n" in told, command
        assert "unseen images alone: " in told, command


def test_the_history_comes_back_and_nothing_else_is_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    state = {"w": tiny_detector("maskrcnn").state_dict()["backbone.conv1.weight"].contiguous()}
    record = history(Picture('é, "x"', "ab", ""), Picture("b", "cd", "ef"))
    save_file(state, path, record.metadata())
    assert read_member_record(path) == record
    first = path.read_bytes()
    save_file(state, path, record.metadata())
    assert path.read_bytes() == first
    for metadata in (None, {"format": "pt"}, {"in_network_ensemble": "[]"}, {"in_network_ensemble": "{"}):
        save_file(state, path, metadata)
        assert read_member_record(path) is None
    told = json.loads(record.metadata()["in_network_ensemble"])
    odd: list[dict[str, object]] = [
        {"step": math.inf}, {"iterations": 1.5}, {"fingerprint": 7}, {"encoder": {"a": 1}}, {"stem_stride": "2"},
        {"pixel_size_um": "small"}, {"images": {"a": 1}}, {"images": [7]}, {"images": [["a"]]},
    ]  # fmt: skip
    for text in ("[" * 100_000, "1" * 5000, *(json.dumps(told | entry) for entry in odd)):
        save_file(state, path, {"in_network_ensemble": text})
        assert read_member_record(path) is None, text[:100]
    path.write_bytes(b"no weights")
    assert read_member_record(path) is None
    assert read_member_record(tmp_path / "b.pt") is None
    save_file(state, path, record.metadata())
    with safe_open(path, "np") as file:
        assert list(file.metadata()) == ["in_network_ensemble"]
