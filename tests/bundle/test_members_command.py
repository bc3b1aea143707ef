"""The members as a command, and a manifest of one's own: what is edited, what stays, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
from safetensors.torch import load_file, save_file

import build_kernel
from bundle.commands import common
from bundle.member_table import parameter_count
from kernel.data.synthetic.generate import generate_image
from kernel.files import file_sha256
from kernel.manifest.reader import read_manifest
from kernel.models.checkpoints import read_state_dict

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "bundle" / "demo" / "weights"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """The demo's, under a user's name, with Windows' line ends and a byte order mark."""
    text = (ROOT / "bundle" / "demo" / "manifest.json").read_text(encoding="utf-8")
    path = tmp_path / "mine.json"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("your-kaggle-name", "ada").replace("\n", "\r\n").encode())
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another HTC than the demo's."""
    state = load_file(WEIGHTS / "htc.safetensors")
    save_file(state, tmp_path / "htc v2 (best).safetensors", {"trained": "again"})
    return tmp_path / "htc v2 (best).safetensors"


def members(manifest: Path, *words: str) -> int:
    return build_kernel.main(["members", "--manifest", str(manifest), *words])


def test_listing(manifest: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    (tmp_path / "weights" / "cascade.safetensors").unlink()
    assert members(manifest, "--out", str(tmp_path)) == 0
    told = capsys.readouterr().out
    (row,) = (line for line in told.splitlines() if line.startswith("htc "))
    assert "7.5 MB  -  " in row
    assert row.split()[:6] == ["htc", "htc", "resnet18_narrow", "3.72", "M", "7.5"]
    assert "1/1/1" in row and "ada/in-network-ensemble-demo-weights" in row and "3e0ae5ee41af" in row
    (missing,) = (line for line in told.splitlines() if line.startswith("cascade "))
    assert missing.split()[3:5] == ["-", "-"]
    assert "not measured yet" in told

    images = {"a": {"seconds": {"features": 2.0, "masks": 1.0}}, "b": {"seconds": {"features": 5.0}}}
    (tmp_path / "dry-run").mkdir()
    summary = tmp_path / "dry-run" / "summary.json"
    summary.write_text(json.dumps({"members": ["maskrcnn", "cascade", "htc"], "images": images}), encoding="utf-8")
    assert members(manifest, "--out", str(tmp_path)) == 0
    assert "4.00 of all 3 members together" in capsys.readouterr().out
    summary.write_text(json.dumps({"members": ["others"], "images": images}), encoding="utf-8")
    assert members(manifest, "--out", str(tmp_path)) == 0
    assert "is of other members" in capsys.readouterr().out
    text = json.loads(manifest.read_bytes())
    del text["members"][2]["sha256"]
    manifest.write_text(json.dumps(text), encoding="utf-8")
    for content in (b"", b'\x05\0\0\0\0\0\0\0{"a":', b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]"):
        (tmp_path / "weights" / "htc.safetensors").write_bytes(content)
        assert members(manifest, "--out", str(tmp_path)) == 0
        assert "damaged" in capsys.readouterr().out


def test_each_members_seconds(
    manifest: Path, tmp_path: Path, wheels_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps(data | {"members": data["members"][:1]}), encoding="utf-8")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "wheels").symlink_to(wheels_dir)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "cells.png"), generate_image("cort", 1, (96, 128)).image)
    words = ["--weights-dir", str(WEIGHTS), "--out", str(tmp_path / "dist")]
    assert members(manifest, "time", *words, "--images", str(tmp_path / "images"), "--device", "cpu") == 0
    assert "maskrcnn: " in capfd.readouterr().out
    ((sha256, spent),) = json.loads((tmp_path / "dist" / "member-seconds.json").read_text(encoding="utf-8")).items()
    assert sha256 == file_sha256(WEIGHTS / "maskrcnn.safetensors") and spent > 0
    assert members(manifest, *words) == 0
    assert f"4.8 MB  {spent:.2f} " in " ".join(capfd.readouterr().out.split(" "))
    (tmp_path / "dist" / "member-seconds.json").write_text("[]", encoding="utf-8")
    assert members(manifest, *words) == 2 and "is damaged" in capfd.readouterr().err


def test_parameters_without_torch_are_those_with_it() -> None:
    state = read_state_dict(WEIGHTS / "maskrcnn.safetensors")
    buffers = (".running_mean", ".running_var", ".num_batches_tracked")
    expected = sum(value.numel() for key, value in state.items() if not key.endswith(buffers))
    assert parameter_count(WEIGHTS / "maskrcnn.safetensors") == expected > 1_000_000


def test_add_use_swap_remove_keep_the_rest(manifest: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = manifest.read_bytes()
    assert members(manifest, "add", str(other), "--use-for", "cort", "cls") == 0
    told = capsys.readouterr().out
    assert '+      "kind": "htc"' in told.replace("\r", "") and "added: htc_v2_best_" in told
    added = read_manifest(manifest).members[-1]
    assert (added.name, added.use_for, added.file) == ("htc_v2_best_", ("cort", "cls"), other.name)
    assert added.dataset == "ada/in-network-ensemble-demo-weights" and added.sha256 == file_sha256(other)
    assert members(manifest, "use", "maskrcnn", "--for", "astro", "shsy5y") == 0
    assert read_manifest(manifest).members[0].use_for == ("shsy5y", "astro")
    assert members(manifest, "use", "maskrcnn", "--for", "astro", "shsy5y", "cort") == 0
    assert members(manifest, "remove", "htc_v2_best_") == 0
    assert manifest.read_bytes() == before

    assert members(manifest, "swap", "cascade", str(other), "--dataset", "ada/new-weights", "--name", "better") == 0
    swapped = read_manifest(manifest).members
    assert [member.name for member in swapped] == ["maskrcnn", "better", "htc"]
    assert (swapped[1].kind, swapped[1].file, swapped[1].dataset) == ("htc", other.name, "ada/new-weights")
    after = manifest.read_bytes()
    assert after[: after.index(b"cascade.safetensors") if b"cascade.safetensors" in after else 300] == before[:300]
    assert after.startswith(b"\xef\xbb\xbf") and b"\n" not in after.replace(b"\r\n", b"")
    assert after[after.index(b'"ensemble"') :] == before[before.index(b'"ensemble"') :]


def test_what_was_measured_of_a_swapped_member_goes(tmp_path: Path, other: Path) -> None:
    path = tmp_path / "published.json"
    text = (ROOT / "weights_manifest.json").read_text(encoding="utf-8").replace("your-kaggle-name", "ada")
    path.write_text(text, encoding="utf-8")
    assert members(path, "swap", "htc_resnet50", str(other), "--dataset", "ada/mine-all") == 0
    (swapped,) = (member for member in read_manifest(path).members if member.name == "htc_resnet50")
    assert swapped.notes == "" and swapped.worth is None and swapped.use_for == ("shsy5y", "astro", "cls")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["remove", "htd"], "has no member 'htd': did you mean 'htc'?"),
        (["use", "htc", "--for", "cort"], "the cell types use different members"),
        (["add", str(WEIGHTS / "htc.safetensors")], "is the file of htc already: the same detector counted twice"),
        (["add", "OTHER", "--name", "htc"], "has a member 'htc' already: give another --name, or `members swap htc"),
        (["add", "OTHER", "--dataset", "nobody"], "expected a dataset as owner/slug"),
        (["add", "gone.safetensors"], "no weight file gone.safetensors"),
        (["add", "MANIFEST"], "not a weight file"),
        (["add", "A&B"], "Kaggle takes no & or @ in a file's name"),
        (["add", "EIGHT"], "tells 8 classes apart, the ensemble 3"),
        (["swap", "nobody", "OTHER"], "has no member 'nobody'"),
    ],
)
def test_refused_with_the_reason(
    manifest: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    shutil.copy(other, tmp_path / "a&b.safetensors")
    if "EIGHT" in words:
        state = dict(load_file(other))
        for key in [key for key in state if ".fc_cls." in key]:
            state[key] = state[key][:1].repeat(9, *[1] * (state[key].dim() - 1)).contiguous()
        save_file(state, tmp_path / "eight.safetensors")
    files = {
        "OTHER": other, "MANIFEST": manifest, "A&B": tmp_path / "a&b.safetensors",
        "EIGHT": tmp_path / "eight.safetensors",
    }  # fmt: skip
    before = manifest.read_bytes()
    assert members(manifest, *(str(files.get(word, word)) for word in words)) == 2
    assert told in capsys.readouterr().err
    assert manifest.read_bytes() == before


def test_the_last_member_of_a_type_stays(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("maskrcnn", "cascade"):
        assert members(manifest, "remove", name) == 0
    before = manifest.read_bytes()
    assert members(manifest, "remove", "htc") == 2
    assert "it would be wrong" in capsys.readouterr().err and manifest.read_bytes() == before


def test_verify(manifest: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "files")
    assert members(manifest, "verify", "--weights-dir", str(tmp_path / "files")) == 0
    assert "all 3 member(s) are as" in capsys.readouterr().out
    shutil.copy(other, tmp_path / "files" / "htc.safetensors")
    assert members(manifest, "verify", "--weights-dir", str(tmp_path / "files")) == 2
    assert "member htc: htc.safetensors was altered" in capsys.readouterr().err


# init


def init(path: Path, *words: str) -> int:
    return build_kernel.main(["init", "--manifest", str(path), *words])


def test_init_from_the_published_ensemble(tmp_path: Path) -> None:
    assert init(tmp_path / "mine.json", "--user", "ada") == 0
    mine, published = read_manifest(tmp_path / "mine.json"), read_manifest(ROOT / "weights_manifest.json")
    assert mine.kernel.id == "ada/sartorius-in-network-ensemble"
    assert mine.wheels_dataset == "ada/mmdet-pure-python-wheels"
    assert mine.members == published.members and mine.weight_datasets == published.weight_datasets
    schema = json.loads((tmp_path / "mine.json").read_text(encoding="utf-8"))["$schema"]
    assert (tmp_path / schema).resolve() == ROOT / "bundle" / "manifest.schema.json"


def test_init_from_weights_alone(tmp_path: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "members"
    shutil.copytree(WEIGHTS, folder)
    shutil.copy(other, folder)
    shutil.copy(WEIGHTS / "htc.safetensors", folder / "htc_copy.safetensors")
    (folder / "state.pt").write_bytes(b"no weights")
    (folder / "you@me.pt").write_bytes(b"no weights")
    words = ["--user", "Ada-L", "--from", str(folder), "--title", "My cells, 2nd try", "--competition", "other-cells"]
    assert init(tmp_path / "mine.json", *words) == 0
    told = capsys.readouterr().out
    assert told.count("passed over: ") == 3 and "htc_copy.safetensors is the same file as htc's" in told
    mine = read_manifest(tmp_path / "mine.json")
    assert mine.kernel.id == "Ada-L/my-cells-2nd-try" and mine.kernel.competition == "other-cells"
    assert [member.name for member in mine.members] == ["cascade", "htc_v2_best_", "htc", "maskrcnn"]
    assert mine.weight_datasets == ("Ada-L/my-cells-2nd-try-weights",)
    assert all(member.sha256 for member in mine.members)


def test_init_takes_a_folders_own_manifest_over(tmp_path: Path) -> None:
    """As train-members leaves it: with thresholds."""
    shutil.copytree(WEIGHTS, tmp_path / "members")
    shutil.copy(ROOT / "bundle" / "demo" / "manifest.json", tmp_path / "members" / "manifest.json")
    assert init(tmp_path / "mine.json", "--user", "ada", "--from", str(tmp_path / "members")) == 0
    mine, demo = read_manifest(tmp_path / "mine.json"), read_manifest(ROOT / "bundle" / "demo" / "manifest.json")
    assert mine.ensemble == demo.ensemble and mine.members == demo.members
    assert mine.weight_datasets == ("ada/in-network-ensemble-demo-weights",)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--user", "you"], "give your Kaggle user name"),
        (["--user", "a b"], "give your Kaggle user name"),
        (["--user", "ada", "--from", "gone"], "--from gone: no such folder"),
        (["--user", "ada", "--from", "."], "no weight file of ours in it"),
        (["--user", "ada", "--title", "abc"], "a title of at least 5"),
    ],
)
def test_init_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert init(tmp_path / "mine.json", *words) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "mine.json").exists()


def test_init_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.json").write_text("mine", encoding="utf-8")
    assert init(tmp_path / "mine.json", "--user", "ada") == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text(encoding="utf-8") == "mine"


def test_ones_own_manifest_is_taken_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own: Any = tmp_path / "mine.json"
    monkeypatch.setattr(common, "OWN_MANIFEST", own)
    assert common.usual_manifest() == ROOT / "weights_manifest.json"
    own.touch()
    assert common.usual_manifest() == own
