"""The folders that become datasets of weights, and what looks wrong before a push."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bundle import datasets
from bundle.checks import is_slip
from bundle.datasets import parse_sums, read_sums, sums_of, write_sums, write_weights_datasets
from kernel.__main__ import main
from kernel.data.learned import MemberRecord, read_member_record
from kernel.data.pictures import Picture
from kernel.errors import InputError
from kernel.files import file_sha256
from kernel.local_weights import FoundWeights
from kernel.manifest.reader import parse_manifest
from kernel.manifest.types import Manifest

ROOT = Path(__file__).resolve().parents[2]
DEMO = parse_manifest(
    (ROOT / "bundle" / "synthetic" / "manifest.json").read_text(encoding="utf-8").replace("your-kaggle-name", "Ada"),
    "demo",
)


def found(folder: Path, manifest: Manifest = DEMO) -> list[FoundWeights]:
    """A small file for each member."""
    folder.mkdir(exist_ok=True)
    weights = []
    for member in manifest.members:
        path = folder / Path(str(member.file)).name
        path.write_bytes(member.name.encode())
        weights.append(FoundWeights(member, path))
    return weights


def test_a_folder_for_each_dataset_of_ones_own(tmp_path: Path) -> None:
    """Owners are told apart as Kaggle does: not by capitals."""
    members = (DEMO.members[0], replace(DEMO.members[1], dataset="ada/others-of-mine"),
               replace(DEMO.members[2], dataset="bob/not-mine-at-all"))  # fmt: skip
    manifest = replace(DEMO, members=members)
    weights = found(tmp_path / "files", manifest)
    folders = write_weights_datasets(manifest, weights, tmp_path / "dist")
    assert {name: path.name for name, path in folders.items()} == {
        "Ada/in-network-ensemble-demo-weights": "weights-in-network-ensemble-demo-weights",
        "ada/others-of-mine": "weights-others-of-mine",
    }
    folder = folders["ada/others-of-mine"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "cascade.safetensors", "dataset-metadata.json", "sha256sums.txt",
    ]  # fmt: skip
    metadata = json.loads((folder / "dataset-metadata.json").read_text(encoding="utf-8"))
    assert metadata == {"id": "ada/others-of-mine", "title": "Others of mine", "licenses": [{"name": "other"}]}
    assert read_sums(folder) == sums_of(folder) == {"cascade.safetensors": file_sha256(weights[1].path)}
    assert (folder / "cascade.safetensors").samefile(weights[1].path)
    assert write_weights_datasets(manifest, [], tmp_path / "dist") == {}


def test_copies_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(self: Path, target: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    (folder,) = write_weights_datasets(DEMO, found(tmp_path / "files"), tmp_path / "dist").values()
    assert (folder / "htc.safetensors").read_bytes() == b"htc"


def test_the_license_stays_and_what_is_unchanged_too(tmp_path: Path) -> None:
    weights = found(tmp_path / "files")
    (folder,) = write_weights_datasets(DEMO, weights, tmp_path / "dist", "CC0-1.0").values()
    before = folder.stat().st_ino
    assert write_weights_datasets(DEMO, weights, tmp_path / "dist") and folder.stat().st_ino == before
    assert datasets.license_of(folder) == "CC0-1.0"
    weights[0].path.unlink()
    weights[0].path.write_bytes(b"another")
    write_weights_datasets(DEMO, weights, tmp_path / "dist")
    assert (folder / weights[0].path.name).read_bytes() == b"another" and datasets.license_of(folder) == "CC0-1.0"


def test_the_license_is_asked_for_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def __init__(self, *lines: str) -> None:
            self.lines, self.written = list(lines), ""

        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return self.lines.pop(0)

        def write(self, text: str) -> None:
            self.written += text

        def flush(self) -> None:
            """Nothing waits."""

    screen = Terminal()
    monkeypatch.setattr(datasets.sys, "stdin", Terminal("mine\n", "CC0-1.0\n", "\n"))
    monkeypatch.setattr(datasets.sys, "stdout", screen)
    answers = [datasets.ask_license("ada/my-weights"), datasets.ask_license("ada/my-weights")]
    monkeypatch.undo()
    assert answers == ["CC0-1.0", "other"] and screen.written.count("license of ada/my-weights, one of") == 3


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "dist" / "weights-in-network-ensemble-demo-weights"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex\)"):
        write_weights_datasets(DEMO, found(tmp_path / "files"), tmp_path / "dist")
    (folder / "thesis.tex").rename(folder / "mine.pt")
    with pytest.raises(InputError, match=r"holds other files \(mine.pt\)"):
        write_weights_datasets(DEMO, found(tmp_path / "files"), tmp_path / "dist")


def test_weights_that_no_build_has_put_there_are_not_lost(tmp_path: Path) -> None:
    weights = found(tmp_path / "files")
    (folder,) = write_weights_datasets(DEMO, weights[:1], tmp_path / "dist").values()
    (folder / "fold1.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"holds other files \(fold1\.safetensors\)"):
        write_weights_datasets(DEMO, weights, tmp_path / "dist")
    (folder / "fold1.safetensors").unlink()
    write_weights_datasets(DEMO, weights, tmp_path / "dist")
    write_weights_datasets(DEMO, weights[:1], tmp_path / "dist")  # an earlier build's may go
    assert not (folder / weights[1].path.name).exists()


def test_weights_of_which_the_dataset_folder_has_the_only_copy_are_not_lost(tmp_path: Path) -> None:
    """Built from the folder that an earlier build has written, after a member was removed."""
    weights = found(tmp_path / "files")
    (folder,) = write_weights_datasets(DEMO, weights, tmp_path / "dist").values()
    kept = [replace(each, path=folder / each.path.name) for each in weights]
    removed = weights[1].path.name
    write_weights_datasets(DEMO, kept, tmp_path / "dist")
    shutil.rmtree(tmp_path / "files")
    with pytest.raises(InputError, match=rf"holds the only copy of {re.escape(removed)}, .*: move that to another"):
        write_weights_datasets(DEMO, [kept[0], *kept[2:]], tmp_path / "dist")
    assert (folder / removed).read_bytes() == b"cascade"
    (folder / removed).rename(tmp_path / removed)
    write_weights_datasets(DEMO, [kept[0], *kept[2:]], tmp_path / "dist")
    assert removed not in read_sums(folder)


def test_weights_with_another_copy_may_go_from_the_dataset_folder(tmp_path: Path) -> None:
    weights = found(tmp_path / "files")
    (folder,) = write_weights_datasets(DEMO, weights, tmp_path / "dist").values()
    write_weights_datasets(DEMO, [replace(weights[0], path=folder / weights[0].path.name)], tmp_path / "dist")
    assert list(read_sums(folder)) == [weights[0].path.name] and weights[1].path.exists()


def test_what_a_system_puts_into_folders_is_no_content(tmp_path: Path) -> None:
    weights = found(tmp_path / "files")
    (folder,) = write_weights_datasets(DEMO, weights, tmp_path / "dist").values()
    for name in (".DS_Store", "._htc.safetensors", "Thumbs.db", "Desktop.ini"):
        (folder / name).write_bytes(b"Finder's")
    assert sums_of(folder).keys() == read_sums(folder).keys() and len(sums_of(folder)) == len(weights)
    write_weights_datasets(DEMO, weights[:1], tmp_path / "dist")
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset-metadata.json", weights[0].path.name, "sha256sums.txt",
    ]  # fmt: skip


def test_what_members_have_learned_from_goes_with_them(wheels_site: Path, tmp_path: Path) -> None:
    """The learned ids and pixel hashes lie in the files' metadata; `convert` keeps them too."""
    weights = found(tmp_path / "files")
    pictures = (Picture("0030fd0e6378", "0123456789abcdef", "f" * 256), Picture("cellule é", "fedcba9876543210", ""))
    record = MemberRecord("a run", 7, 9, pictures)
    save_file({"weight": np.zeros(3, np.float32)}, weights[0].path, record.metadata())
    (folder,) = write_weights_datasets(DEMO, weights, tmp_path / "dist").values()
    built = folder / Path(str(weights[0].member.file)).name
    assert read_member_record(built) == record
    write_weights_datasets(DEMO, [replace(weights[0], path=built), *weights[1:]], tmp_path / "dist")  # from itself
    assert read_member_record(built) == record
    assert main(["convert", str(built), str(tmp_path / "converted.safetensors")]) == 0
    assert read_member_record(tmp_path / "converted.safetensors") == record


def test_a_file_in_a_folder_is_told(tmp_path: Path) -> None:
    manifest = replace(DEMO, members=(replace(DEMO.members[0], file="fold0/maskrcnn.safetensors"),))
    with pytest.raises(InputError, match=r"Kaggle's client skips folders: .*name it maskrcnn.safetensors"):
        write_weights_datasets(manifest, found(tmp_path / "files", manifest), tmp_path / "dist")


@pytest.mark.parametrize(
    ("content", "sums"),
    [
        (b"", {}),
        (b"12ab  a b.pt\n\nword\n34cd  *c.pt\r\n56ef *d.pt\n", {"a b.pt": "12ab", "*c.pt": "34cd"}),
        (b"\xff\xfe", {}),
    ],
)
def test_sums_are_read_whatever_they_are(content: bytes, sums: dict[str, str]) -> None:
    assert parse_sums(content) == sums


def test_sums_of_odd_names_are_read_as_they_were_written(tmp_path: Path) -> None:
    for name in (" a.pth", "a\u2028b.pth", "a\x85b.pth", "a  b.pth ", "a\u00a0.pth"):
        (tmp_path / name).write_bytes(name.encode())
    write_sums(tmp_path)
    assert len(read_sums(tmp_path)) == 5 and read_sums(tmp_path) == sums_of(tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "slip"),
    [
        ("ada/cell-weights", "ada/cell-weigths", True),  # swapped
        ("ada/cell-weights", "ada/cell-weight", True),  # left out
        ("ada/cell-weights", "ada/cell-wweights", True),  # twice
        ("ada/cell-weights", "ada/cell-weighta", True),  # another one
        ("ada/cell-weights", "Ada/cell-weights", False),  # the same to Kaggle
        ("ada/cell-weights", "ada/cell-weights", False),
        ("theo/ens10", "theo/ens11", False),  # numbers tell names apart
        ("ada/weights-1", "ada/weights", False),  # two letters
        ("ada/weights1", "ada/weights", False),
        ("ada/wheels", "ada/weights", False),
        ("", "", False),
    ],
)
def test_slips(one: str, other: str, slip: bool) -> None:
    assert is_slip(one, other) is is_slip(other, one) is slip
