"""The members as a command, and a manifest of one's own: what is edited, what stays, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
from safetensors.torch import load_file, save_file

import build_kernel
from bundle.commands import common
from bundle.commands.members import file_problem
from bundle.kaggle import dataset_metadata, kernel_metadata
from bundle.member_table import parameter_count
from kernel.data.synthetic.generate import generate_image
from kernel.files import file_sha256
from kernel.locks import sole_writer
from kernel.manifest.reader import read_manifest
from kernel.models.checkpoints import read_state_dict
from kernel.training.evaluation import EVALUATION_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "bundle" / "synthetic" / "weights"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """The demo's, under a user's name, with Windows' line ends and a byte order mark."""
    text = (ROOT / "bundle" / "synthetic" / "manifest.json").read_text(encoding="utf-8")
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
    assert "1/1/1" in row and "ada/in-network-ensemble-demo-weights" in row and "5177ad71bd96" in row
    (missing,) = (line for line in told.splitlines() if line.startswith("cascade "))
    assert missing.split()[3:5] == ["-", "-"]
    assert "not measured yet" in told

    images = {"a": {"seconds": {"features": 2.0, "masks": 1.0}}, "b": {"seconds": {"features": 5.0}}}
    (tmp_path / "dry-run").mkdir()
    summary = tmp_path / "dry-run" / "summary.json"
    summary.write_text(json.dumps({"members": ["maskrcnn", "cascade", "htc"], "images": images}), encoding="utf-8")
    assert members(manifest, "--out", str(tmp_path)) == 0
    assert "4.00 of all 3 members together" in capsys.readouterr().out
    for odd in (["a"], {"a": 3}, {"a": {"seconds": {"masks": "long"}}}):
        summary.write_text(json.dumps({"members": ["maskrcnn", "cascade", "htc"], "images": odd}), encoding="utf-8")
        assert members(manifest, "--out", str(tmp_path)) == 0
        assert "summary.json is damaged; a dry run writes it anew" in capsys.readouterr().out
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


def test_seconds_are_measured_after_a_build(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--weights-dir", str(WEIGHTS), "--out", str(tmp_path / "dist"), "--images", str(WEIGHTS)]
    assert members(manifest, "time", *words) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path / 'dist' / 'wheels'} holds not the wheels that a run needs: build first, by `python b" in told


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


def test_what_was_known_of_a_swapped_member_goes(tmp_path: Path, other: Path) -> None:
    path = tmp_path / "published.json"
    text = (ROOT / "weights_manifest.json").read_text(encoding="utf-8").replace("your-kaggle-name", "ada")
    name = '"name": "htc_resnet50"'
    path.write_text(text.replace(name, f'{name}, "stem_stride": 2', 1), encoding="utf-8")
    assert members(path, "swap", "htc_resnet50", str(other), "--dataset", "ada/mine-all") == 0
    (swapped,) = (member for member in read_manifest(path).members if member.name == "htc_resnet50")
    assert swapped.notes == "" and swapped.worth is None and swapped.stem_stride is None
    assert swapped.use_for == ("shsy5y", "astro", "cls")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["remove", "htd"], "has no member 'htd': did you mean 'htc'?"),
        (["use", "htc", "--for", "cort"], "the cell types use different members"),
        (["add", str(WEIGHTS / "htc.safetensors")], "is the file of htc already: the same detector counted twice"),
        (["add", "OTHER", "--name", "htc"], "has a member 'htc' already: give another --name, or `python "),
        (["add", "OTHER", "--dataset", "nobody"], "expected a dataset as owner/slug"),
        (["add", "gone.safetensors"], "no weight file gone.safetensors: . has no weight file"),
        (["add", "NEAR"], "htd.safetensors: did you mean 'htc.safetensors'?"),
        (["add", "FOLDER"], "is a folder: give one of its files, cascade.safetensors, htc.safetensors, maskrcnn"),
        (["add", "DANGLING"], "it is a link to nowhere.pt, which is not there"),
        (["add", "BRACES"], "braces stand for folds in a manifest: rename the file"),
        (["add", "OTHER", "--dataset", "ada/cells-1-"], "'ada/cells-1-' is no Kaggle dataset"),
        (["add", "OTHER", "--dataset", "ada/mmdet-pure-python-wheels"], "is to hold the wheels and weights as well"),
        (["swap", "htc", "OTHER", "--dataset", "cells-1"], "expected a dataset as owner/slug, ada/in-network-ensemble"),
        (["swap", "htc", "OTHER", "--name", ""], 'name: found "", expected letters'),
        (["add", "MANIFEST"], "not a weight file"),
        (["add", "A&B"], "Kaggle takes no & or @ in a file's name"),
        (["add", "TWO"], "tells 2 classes apart, the ensemble 3"),
        (["swap", "nobody", "OTHER"], "has no member 'nobody'"),
    ],
)
def test_refused_with_the_reason(
    manifest: Path,
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    shutil.copy(other, tmp_path / "a&b.safetensors")
    if "TWO" in words:
        state = dict(load_file(other))
        for key in [key for key in state if ".fc_cls." in key]:
            state[key] = state[key][:1].repeat(3, *[1] * (state[key].dim() - 1)).contiguous()
        save_file(state, tmp_path / "two.safetensors")
    files = {
        "OTHER": other, "MANIFEST": manifest, "A&B": tmp_path / "a&b.safetensors",
        "TWO": tmp_path / "two.safetensors", "NEAR": WEIGHTS / "htd.safetensors", "FOLDER": WEIGHTS,
        "DANGLING": tmp_path / "dangling.pt", "BRACES": tmp_path / "a{1}.safetensors",
    }  # fmt: skip
    (tmp_path / "dangling.pt").symlink_to("nowhere.pt")
    shutil.copy(other, tmp_path / "a{1}.safetensors")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    before = manifest.read_bytes()
    assert members(manifest, *(str(files.get(word, word)) for word in words)) == 2
    assert told in capsys.readouterr().err
    assert manifest.read_bytes() == before


def test_the_dashes_of_the_table_are_explained(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(manifest.read_bytes())
    data["members"][0] |= {"file": None, "sha256": None}
    data["members"][1] |= {"sha256": None}
    manifest.write_text(json.dumps(data), encoding="utf-8")
    assert members(manifest, "--out", str(tmp_path)) == 0
    told = capsys.readouterr().out
    assert "- no `file` yet, found by its content when you build with --weights-dir: maskrcnn\n" in told
    assert f"- not in {tmp_path}, so that parameters and size are unknown: cascade, htc; name the folder" in told
    assert "- no `sha256` yet, which a build with --weights-dir fills in: cascade\n" in told
    assert "- no seconds an image: `members time --images DIR` measures them" in told
    manifest.write_text(json.dumps(data | {"members": data["members"][2:]}), encoding="utf-8")
    sha256 = data["members"][2]["sha256"]
    (tmp_path / "member-seconds.json").write_text(json.dumps({sha256: 1.5}), encoding="utf-8")
    assert members(manifest, "--out", str(tmp_path), "--weights-dir", str(WEIGHTS)) == 0
    assert "\n- " not in capsys.readouterr().out


def test_pytorch_files_are_listed_without_torch(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(manifest.read_bytes())
    data["members"] = [data["members"][0] | {"file": "a.pt", "sha256": None}]
    manifest.write_text(json.dumps(data), encoding="utf-8")
    (tmp_path / "a.pt").write_bytes(b"whatever")
    monkeypatch.setattr("bundle.member_table.can_read_weights", lambda: False)
    assert members(manifest, "--out", str(tmp_path)) == 0
    assert "- parameters of PyTorch files, which take the environment to read: maskrcnn" in capsys.readouterr().out


def test_a_renamed_file_is_found_by_its_checksum(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "files" / "in-network-ensemble-demo-weights")
    home = tmp_path / "files" / "in-network-ensemble-demo-weights"
    (home / "htc.safetensors").rename(home / "htc_best.safetensors")
    assert members(manifest, "verify", "--weights-dir", str(tmp_path / "files")) == 2
    assert f"{home / 'htc_best.safetensors'} is that file under another name: rename it" in capsys.readouterr().err
    (home / "htc.safetensors").symlink_to("htc_best.safetensors")
    assert members(manifest, "verify", "--weights-dir", str(tmp_path / "files")) == 0
    (home / "htc.safetensors").unlink()
    (home / "htc_best.safetensors").unlink()
    assert members(manifest, "verify", "--weights-dir", str(tmp_path / "files")) == 2
    assert "under another name" not in capsys.readouterr().err


def test_the_swap_that_is_offered_can_be_pasted(
    manifest: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert members(manifest, "add", str(other), "--name", "htc") == 2
    assert f"`python build_kernel.py members swap htc '{other}' --manifest {manifest}`" in capsys.readouterr().err


def test_where_to_build_with_a_new_file(manifest: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(WEIGHTS, manifest.parent / "weights")
    assert members(manifest, "add", str(other), "--use-for", "cort", "cort") == 2
    assert "the cell types use different members" in capsys.readouterr().err
    assert members(manifest, "add", str(other), "--use-for", "cort", "cls", "cort") == 0
    assert f"next: put {other} into {manifest.parent / 'weights'}, where the other" in capsys.readouterr().out
    assert read_manifest(manifest).members[-1].use_for == ("cort", "cls")
    assert members(manifest, "remove", "htc_v2_best_") == 0
    shutil.copytree(WEIGHTS, other.parent, dirs_exist_ok=True)
    assert members(manifest, "add", str(other), "--weights-dir", str(other.parent)) == 0
    next_step = f"next: `python build_kernel.py --manifest {manifest} --weights-dir {other.parent}`\n"
    assert next_step in capsys.readouterr().out


@pytest.mark.parametrize("is_there", [False, True])
def test_where_to_build_while_others_files_are_elsewhere(
    manifest: Path, other: Path, capsys: pytest.CaptureFixture[str], is_there: bool
) -> None:
    folder = manifest.parent / "weights"
    folder.mkdir()
    shutil.copy(WEIGHTS / "cascade.safetensors", folder)
    if is_there:
        shutil.copy(other, folder)
    assert members(manifest, "add", str(other)) == 0
    assert (
        f"next: the files of maskrcnn, htc are not in {folder}: put all members' files, {other} among them, into one "
        f"folder, and name that: `python build_kernel.py --manifest {manifest} --weights-dir DIR`\n"
    ) in capsys.readouterr().out


def test_a_file_for_nobodys_dataset(manifest: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = manifest.read_bytes().replace(b"ada/", b"your-kaggle-name/")
    manifest.write_bytes(text)
    assert members(manifest, "add", str(other)) == 2
    assert (
        "the manifest names no user yet, but your-kaggle-name: `python build_kernel.py init" in capsys.readouterr().err
    )
    assert manifest.read_bytes() == text


def test_a_linked_manifest_stays_a_link_and_keeps_its_rights(manifest: Path, tmp_path: Path) -> None:
    manifest.chmod(0o664)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.json"
    link.symlink_to(manifest)
    assert members(link, "remove", "htc") == 0
    assert link.is_symlink() and [member.name for member in read_manifest(manifest).members] == ["maskrcnn", "cascade"]
    assert manifest.stat().st_mode & 0o777 == 0o664


def test_a_manifest_that_is_read_only_or_in_use_stays(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = manifest.read_bytes()
    manifest.chmod(0o444)
    assert members(manifest, "remove", "htc") == 2
    assert "is read-only and stays as it is: allow writing it" in capsys.readouterr().err
    manifest.chmod(0o644)
    with sole_writer(manifest):
        assert members(manifest, "remove", "htc") == 2
    assert f"another run (its process is {os.getpid()}) writes {manifest}: wait" in capsys.readouterr().err
    assert manifest.read_bytes() == before
    assert members(manifest, "remove", "htc") == 0 and not list(manifest.parent.glob(".*"))


def test_a_folder_that_cannot_be_written_is_told(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = manifest.read_bytes()

    def refuse(*_given: Any, **_named: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    assert members(manifest, "remove", "htc") == 2
    assert f"cannot write {manifest} (Permission denied)" in capsys.readouterr().err
    assert manifest.read_bytes() == before


def test_commands_at_once_lose_nothing(manifest: Path) -> None:
    """Each is whole: done, or refused because another one writes."""
    words = [
        sys.executable,
        str(ROOT / "build_kernel.py"),
        "members",
        "use",
        "htc",
        "--manifest",
        str(manifest),
        "--for",
    ]
    uses = [["shsy5y", "astro", "cort"], ["shsy5y", "astro", "cort", "cls"]] * 2
    running = [subprocess.Popen([*words, *use], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for use in uses]
    told = [process.communicate()[1].decode() for process in running]
    for process, line in zip(running, told, strict=True):
        assert process.returncode == 0 or (process.returncode == 2 and "another run" in line), line
    assert any(process.returncode == 0 for process in running)
    assert read_manifest(manifest).members[2].use_for[:3] == ("shsy5y", "astro", "cort")
    assert [path.name for path in manifest.parent.iterdir()] == [manifest.name]


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


def test_members_of_livecells_classes_are_taken(manifest: Path, tmp_path: Path) -> None:
    """Those that every recipe here trains: of the eight classes the first three count. Mask networks have none."""
    shipped = ROOT / "bundle" / "members" / "weights"
    assert init(tmp_path / "shipped.json", "--user", "ada", "--from", str(shipped)) == 0
    kinds = {member.name: member.kind for member in read_manifest(tmp_path / "shipped.json").members}
    assert kinds == {"cascade": "cascade", "htc": "htc", "maskrcnn": "maskrcnn", "unet": "unet"}
    given = ["swap", "htc", str(shipped / "htc.safetensors"), "--dataset", "ada/my-weights", "--name", "real"]
    assert members(manifest, *given) == 0
    assert members(manifest, "add", str(shipped / "unet.safetensors"), "--dataset", "ada/my-weights") == 0
    assert [member.name for member in read_manifest(manifest).members] == ["maskrcnn", "cascade", "real", "unet"]


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
    assert mine.ensemble == EVALUATION_SETTINGS  # and not the published ones, which are of 13 members


@pytest.mark.parametrize("place", [".", "weights"])
def test_init_takes_a_folders_own_manifest_over(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    """As train-members leaves it: with thresholds, and with the files beside it or in `weights`."""
    shutil.copytree(WEIGHTS, tmp_path / "members" / place)
    shutil.copy(ROOT / "bundle" / "synthetic" / "manifest.json", tmp_path / "members" / "manifest.json")
    assert init(tmp_path / "mine.json", "--user", "ada", "--from", str(tmp_path / "members")) == 0
    mine, demo = read_manifest(tmp_path / "mine.json"), read_manifest(ROOT / "bundle" / "synthetic" / "manifest.json")
    assert mine.ensemble == demo.ensemble and mine.members == demo.members
    assert mine.weight_datasets == ("ada/in-network-ensemble-demo-weights",)
    told = capsys.readouterr().out
    assert f"--weights-dir {tmp_path / 'members' / place}`" in told and "needs these files" not in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--user", "you"], "--user 'you' stands for a name: give your Kaggle user name"),
        (["--user", "a b"], "--user 'a b' is no user name: give your Kaggle user name"),
        (["--user", ""], "give your Kaggle user name"),
        (["--user", "ada", "--from", "gone"], "--from gone: no such folder"),
        (["--user", "ada", "--from", "file.pt"], "--from file.pt: is a file: give its folder"),
        (["--user", "ada", "--from", "empty"], "no weight file of ours in it: no name ends in .safetensors, .pt"),
        (["--user", "ada", "--from", "."], "no weight file of ours in it:\n  - file.pt"),
        (["--user", "ada", "--from", "outer"], "in its folder(s) inner there are some: give one of these"),
        (["--user", "ada", "--title", "abc"], "'abc' has 3 characters, Kaggle takes 5 to 50"),
        (["--user", "ada", "--title", ""], "'' has 0 characters"),
        (["--user", "ada", "--title", "x" * 51], "has 51 characters, Kaggle takes 5 to 50"),
        (["--user", "ada", "--title", "!!! a b !!!"], "has the slug 'a-b', of which Kaggle takes 5 characters or more"),
        (
            ["--user", "ada", "--title", "Zellen f\u00fcr alle"],
            "holds '\u00fc', for which Kaggle's slug cannot",
        ),
        (["--user", "ada", "--title", "Cells &amp; more"], "holds '&amp;', which Kaggle reads as another character"),
        (["--user", "ada", "--competition", "A b"], "--competition 'A b' is no competition: give its slug"),
        (["--user", "ada", "--from", ".", "--dataset", "My W"], "no dataset's name: give 6 to 50 small letters"),
        (["--user", "ada", "--from", ".", "--dataset", "cells-1-"], "like cells-1"),
        (["--user", "ada", "--from", ".", "--dataset", "bob/cells-1"], "'bob/cells-1' is not ada's"),
        (["--user", "ada", "--dataset", "cells-1"], "--dataset belongs to --from, which is not given"),
    ],
)
def test_init_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for place in ("file.pt", "outer/inner/file.pt"):
        (tmp_path / place).write_bytes(b"no weights")
    assert init(tmp_path / "mine.json", *words) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "mine.json").exists()


def test_init_tells_all_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(tmp_path / "mine.json", "--user", "you", "--title", "abc", "--competition", "A b") == 2
    assert [line.split()[0] for line in capsys.readouterr().err.removeprefix("error: ").splitlines()] == [
        "--user", "--title", "--competition",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "title", ["x" * 5, "X" * 50, "A title that has forty-six letters and some more", "1,000 cells!"]
)
def test_what_init_takes_the_build_takes(tmp_path: Path, title: str) -> None:
    words = ["--user", "ada", "--from", str(WEIGHTS), "--title", title]
    assert init(tmp_path / "mine.json", *words) == 0
    mine = read_manifest(tmp_path / "mine.json")
    assert kernel_metadata(mine)["title"] == title
    assert [dataset_metadata(name)["id"] for name in mine.all_weight_datasets] == [mine.weight_datasets[0]]


@pytest.mark.parametrize("dataset", ["cells-1", "ada/cells-1", "ADA/cells-1"])
def test_init_gives_all_weights_the_dataset_that_is_named(tmp_path: Path, dataset: str) -> None:
    """Also members that name another one."""
    folder = tmp_path / "members"
    shutil.copytree(WEIGHTS, folder)
    data = json.loads((ROOT / "bundle" / "synthetic" / "manifest.json").read_text(encoding="utf-8"))
    data["members"][0]["dataset"] = "bob/other-cells"
    data["weight_datasets"] = ["your-kaggle-name/one-cells", "your-kaggle-name/two-cells"]
    (folder / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    assert init(tmp_path / "mine.json", "--user", "ada", "--from", str(folder), "--dataset", dataset) == 0
    assert read_manifest(tmp_path / "mine.json").all_weight_datasets == ("ada/cells-1",)


def test_init_refuses_a_manifest_that_would_not_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((ROOT / "bundle" / "synthetic" / "manifest.json").read_text(encoding="utf-8"))
    for change, told in (
        ({"kernel": data["kernel"] | {"title": "Other title"}}, "make them agree in the manifest"),
        ({"wheels_dataset": "your-kaggle-name/in-network-ensemble-demo-weights"}, "the wheels and weights as well"),
        ({"members": [data["members"][0] | {"file": "a_{fold}.pt", "sha256": None}]}, "here each needs one file"),
    ):  # fmt: skip
        (tmp_path / "manifest.json").write_text(json.dumps(data | change), encoding="utf-8")
        assert init(tmp_path / "mine.json", "--user", "ada", "--from", str(tmp_path)) == 2
        assert told in capsys.readouterr().err and not (tmp_path / "mine.json").exists()
    words = ["--user", "ada", "--from", str(tmp_path), "--title", "A title that agrees"]
    other = json.dumps(data | {"kernel": data["kernel"] | {"title": "Other title"}})
    (tmp_path / "manifest.json").write_text(other, encoding="utf-8")
    assert init(tmp_path / "mine.json", *words) == 0
    assert "the build needs these files in" in capsys.readouterr().out


def test_files_that_would_be_called_alike_become_two_members(
    tmp_path: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "members"
    folder.mkdir()
    for source, name in (("htc", "z\u00fcrich"), ("cascade", "z-rich"), ("maskrcnn", "z{1}")):
        shutil.copy(WEIGHTS / f"{source}.safetensors", folder / f"{name}.safetensors")
    shutil.copy(other, folder / "z_rich.safetensors")
    assert init(tmp_path / "mine.json", "--user", "ada", "--from", str(folder)) == 0
    assert "passed over: z{1}.safetensors: braces stand for folds" in capsys.readouterr().out
    mine = read_manifest(tmp_path / "mine.json").members
    assert [member.name for member in mine] == ["z-rich", "z_rich", "z_rich_2"]
    assert [member.file for member in mine] == [
        "z-rich.safetensors", "z_rich.safetensors", "z\u00fcrich.safetensors",
    ]  # fmt: skip


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


def test_a_name_that_is_no_text_is_refused() -> None:
    told = file_problem(Path(os.fsdecode(b"b\xff.safetensors")))
    assert told is not None and "a manifest takes no such name: rename the file" in told
    assert file_problem(Path("b\u00ff.safetensors")) is None
