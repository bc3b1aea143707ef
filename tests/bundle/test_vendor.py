"""The wheels as they are written: fetched by pip or from the cache, checked, repacked, the same bytes everywhere.

The packages are tiny ones made here, under the names that are repacked; pip is a stub.
"""

from __future__ import annotations

import base64
import csv
import errno
import gzip
import hashlib
import io
import json
import os
import random
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import bundle.repack
from bundle.fetch import FetchError, cache_dir, fetch
from bundle.kaggle import dataset_metadata
from bundle.lock import load_lock, update_lock
from bundle.names import DEFAULT_DATASET_ID
from bundle.repack import BUNDLE_DIR, write_wheel
from bundle.vendor import build_wheels, main
from kernel.errors import InputError
from kernel.files import file_sha256
from kernel.runtime.wheels import LockedWheel, parse_locked_wheels

ROOT = Path(__file__).resolve().parents[2]
HEADS = "mmdet/models/roi_heads/mask_heads"
ARCHIVE, MMDET, PLAIN = "mmcv-full-1.7.2.tar.gz", "mmdet-2.28.2-py3-none-any.whl", "tiny-1.0-py3-none-any.whl"
TOP = "mmcv-full-1.7.2"  # the folder that all of the archive lies in
DATASET = "somebody/tiny-wheels"

MMCV_FILES = {
    "mmcv/__init__.py": b"import sys\n",
    "mmcv/ops/nms.py": b"# nms\n",
    'mmcv/a "strange", name.py': b"",
    "mmcv/ops/csrc/nms.cu": b"// CUDA\n",
    "LICENSE": b"Apache\n",
    "setup.py": b"raise SystemExit\n",
    "tests/test_mmcv.py": b"\n",
}
MMDET_INFO = "mmdet-2.28.2.dist-info"
MMDET_FILES = {
    "mmdet/__init__.py": b"",
    f"{HEADS}/fcn_mask_head.py": b"# their head\n",
    f"{HEADS}/htc_mask_head.py": b"# another\n",
    "mmdet/.mim/configs/a.py": b"# a copy\n",
    f"{MMDET_INFO}/METADATA": b"Metadata-Version: 2.1\nName: mmdet\nVersion: 2.28.2\n\nVersion: 2.28.2 and text\n",
    f"{MMDET_INFO}/WHEEL": b"Wheel-Version: 1.0\n",
    f"{MMDET_INFO}/RECORD": b"of another day\n",
}


def tar_bytes(files: Mapping[str, bytes], others: Sequence[tarfile.TarInfo] = ()) -> bytes:
    """A source archive: everything lies below one folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo(TOP)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            member = tarfile.TarInfo(f"{TOP}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in others:
            archive.addfile(member)
    return gzip.compress(buffer.getvalue(), mtime=0)


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mmdet/", b"")
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


SOURCES = {
    ("tiny", "1.0"): (PLAIN, zip_bytes({"tiny.py": b""})),
    ("mmdet", "2.28.2"): (MMDET, zip_bytes(MMDET_FILES)),
    ("mmcv-full", "1.7.2"): (ARCHIVE, tar_bytes(MMCV_FILES)),
}


def keep(cache: Path, file: str, data: bytes) -> Path:
    """Put a fetched file into a cache."""
    path = cache / hashlib.sha256(data).hexdigest() / file
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


@dataclass(frozen=True)
class Shop:
    """A lock, and a cache that holds all of it."""

    lock: Path
    cache: Path

    def build(self, out: Path) -> list[Path]:
        return build_wheels(out, DATASET, self.lock, self.cache)

    def edit(self, number: int, **changes: Any) -> None:
        """Change an entry of the lock."""
        data = json.loads(self.lock.read_text(encoding="utf-8"))
        data["packages"][number].update(changes)
        self.lock.write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    made = Shop(tmp_path / "wheels.lock.json", tmp_path / "xdg" / "inside-ensemble" / "packages")
    packages = []
    for (name, version), (file, data) in SOURCES.items():
        kept = keep(made.cache, file, data)
        packages.append({"name": name, "version": version, "source": file, "source_sha256": kept.parent.name})
    made.lock.write_text(json.dumps({"packages": packages}), encoding="utf-8")
    update_lock(made.lock, made.cache)
    return made


def no_pip(*_: object, **__: object) -> None:
    raise AssertionError("pip was run")


# --- the lock ----------------------------------------------------------------------------------------------------


def test_the_projects_lock_is_whole() -> None:
    locked = load_lock()
    assert {"mmcv-full", "mmdet"} < {wheel.name for wheel in locked}
    assert all(wheel.wheel == wheel.source for wheel in locked if wheel.name not in ("mmcv-full", "mmdet"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file"),
        (b'{"packages": [', "is no valid JSON"),
        (b"\xff\xfe", "is no valid JSON"),
        (b"[]", 'expected an object with a non-empty list "packages"'),
        (b'{"packages": []}', 'expected an object with a non-empty list "packages"'),
        (b'{"packages": [{"name": "tiny"}]}', r"packages\[0\] must have exactly the fields"),
    ],
)
def test_a_lock_that_is_missing_or_malformed_is_named(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "some.lock.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"some\.lock\.json.*{told}"):
        load_lock(path)
    with pytest.raises(InputError, match=r"some\.lock\.json"):
        build_wheels(tmp_path / "out", DATASET, path, tmp_path / "cache")
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


def test_update_lock_writes_what_the_sources_give(shop: Shop, tmp_path: Path) -> None:
    locked = load_lock(shop.lock)
    assert [wheel.wheel for wheel in locked] == [
        PLAIN,
        "mmdet-2.28.2+ensemble-py3-none-any.whl",
        "mmcv_full-1.7.2+torchvision-py3-none-any.whl",
    ]
    built = shop.build(tmp_path / "out")
    assert [(path.name, file_sha256(path)) for path in built] == [(each.wheel, each.wheel_sha256) for each in locked]
    # Wrong hashes of wheels are put right, and the same lock gives the same text.
    text = shop.lock.read_text(encoding="utf-8")
    shop.edit(1, wheel="old.whl", wheel_sha256="old")
    assert update_lock(shop.lock, shop.cache) == locked and shop.lock.read_text(encoding="utf-8") == text
    assert text.endswith("}\n") and json.loads(text) == {"packages": [asdict(wheel) for wheel in locked]}


@pytest.mark.parametrize(
    "data",
    [
        *([], "packages", {}, {"packages": {}}, {"packages": []}),
        *({"packages": [package]} for package in ("tiny", None, ["tiny"], {}, {"name": "tiny"}, {"version": "1"})),
        *(
            {"packages": [{"name": "tiny", "version": "1.0"} | wrong]}
            for wrong in ({"name": ""}, {"name": 3}, {"version": None}, {"source": None}, {"source_sha256": 0})
        ),
    ],
)
def test_a_lock_that_cannot_be_updated_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: object) -> None:
    monkeypatch.setattr(subprocess, "run", no_pip)
    path = tmp_path / "some.lock.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError, match=r"some\.lock\.json: (expected an object|each package needs a name and a )"):
        update_lock(path, tmp_path / "cache")
    assert json.loads(path.read_text(encoding="utf-8")) == data
    assert [each.name for each in tmp_path.iterdir()] == ["some.lock.json"]


def test_two_packages_of_one_name_are_refused_before_the_lock_is_written(shop: Shop) -> None:
    shop.edit(1, **json.loads(shop.lock.read_text(encoding="utf-8"))["packages"][0])
    before = shop.lock.read_bytes()
    with pytest.raises(InputError, match="more than one entry with name tiny"):
        update_lock(shop.lock, shop.cache)
    assert shop.lock.read_bytes() == before


# --- the cache and pip -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StubPip:
    """A stand-in for pip that `python -m pip` finds in the working directory."""

    folder: Path

    def will(self, files: Mapping[str, bytes], says: str = "", code: int = 0) -> None:
        """Have it put files into the folder that it is given, say something, and end."""
        (self.folder / "next.json").write_text(
            json.dumps({"files": {name: data.hex() for name, data in files.items()}, "says": says, "code": code}),
            encoding="utf-8",
        )

    def calls(self) -> list[dict[str, Any]]:
        """Its arguments, its environment and the texts of the files that it was given, for each call."""
        lines = (self.folder / "calls").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubPip:
    folder = tmp_path / "cwd" / "pip"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "calls").touch()
    (folder / "__main__.py").write_text(
        """
import json, os, pathlib, sys
here, arguments = pathlib.Path(__file__).parent, sys.argv[1:]
texts = {name: pathlib.Path(name).read_text() for name in arguments if name.endswith(".txt")}
if "PYTHONPATH" in os.environ:
    texts["backend"] = pathlib.Path(os.environ["PYTHONPATH"], "setuptools", "build_meta.py").read_text()
with (here / "calls").open("a") as calls:
    calls.write(json.dumps({"arguments": arguments, "environment": dict(os.environ), "texts": texts}) + "\\n")
told = json.loads((here / "next.json").read_text())
for name, data in told["files"].items():
    (pathlib.Path(arguments[arguments.index("--dest") + 1]) / name).write_bytes(bytes.fromhex(data))
sys.stderr.write(told["says"])
sys.exit(told["code"])
""",
        encoding="utf-8",
    )
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.chdir(folder.parent)
    return StubPip(folder)


DATA = b"a wheel, as far as fetching goes"
ENTRY = LockedWheel("tiny", "1.0", PLAIN, hashlib.sha256(DATA).hexdigest(), PLAIN, "0" * 64)


def test_what_is_in_the_cache_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", no_pip)
    kept = keep(tmp_path, PLAIN, DATA)
    assert fetch(ENTRY, tmp_path) == kept and kept.read_bytes() == DATA


def test_what_is_fetched_is_kept(tmp_path: Path, pip: StubPip, monkeypatch: pytest.MonkeyPatch) -> None:
    pip.will({PLAIN: DATA})
    cache = tmp_path / "deep" / "cache"
    kept = fetch(ENTRY, cache)
    assert kept == cache / ENTRY.source_sha256 / PLAIN and kept.read_bytes() == DATA
    assert [path.name for path in cache.iterdir()] == [ENTRY.source_sha256]
    monkeypatch.setattr(subprocess, "run", no_pip)
    assert fetch(ENTRY, cache) == kept


@pytest.mark.parametrize("damage", [b"", DATA[:-1], DATA + b"\n", DATA.upper()])
def test_a_damaged_cache_is_told_and_mended(
    tmp_path: Path, pip: StubPip, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    kept = keep(tmp_path / "cache", PLAIN, DATA)
    kept.write_bytes(damage)
    pip.will({PLAIN: DATA})
    assert fetch(ENTRY, tmp_path / "cache") == kept and kept.read_bytes() == DATA
    assert f"{kept} is damaged and is fetched again" in caplog.text and len(pip.calls()) == 1


def test_a_source_without_hash_is_believed(tmp_path: Path, pip: StubPip) -> None:
    """As `--update-lock` needs it for another version; pip is asked even if the cache holds an earlier answer."""
    pip.will({PLAIN: DATA})
    free = replace(ENTRY, source="", source_sha256="")
    for _ in range(2):
        assert fetch(free, tmp_path / "cache") == tmp_path / "cache" / ENTRY.source_sha256 / PLAIN
    assert len(pip.calls()) == 2 and "tiny==1.0\n" in pip.calls()[0]["texts"].values()


def test_how_pip_is_asked_for_a_wheel(tmp_path: Path, pip: StubPip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "an index of one's own")
    pip.will({PLAIN: DATA})
    fetch(ENTRY, tmp_path / "cache")
    (call,) = pip.calls()
    arguments, environment = call["arguments"], call["environment"]
    assert arguments[0] == "download" and {"--no-deps", "--no-input"} <= set(arguments)
    assert arguments[arguments.index("--only-binary") + 1] == ":all:" and "--no-binary" not in arguments
    # A wheel for every Python and platform, whichever this is.
    assert [arguments[arguments.index(name) + 1] for name in ("--platform", "--implementation", "--abi")] == [
        "any",
        "py",
        "none",
    ]
    requirements = call["texts"][arguments[arguments.index("--requirement") + 1]]
    assert requirements == f"tiny==1.0 --hash=sha256:{ENTRY.source_sha256}\n"
    assert "PYTHONPATH" not in environment and environment["PIP_INDEX_URL"] == "an index of one's own"


def test_how_pip_is_asked_for_the_source_archive(tmp_path: Path, pip: StubPip, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it wants to know of the archive, a backend of ours tells, in the place of the archive's own code."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pip.will({ARCHIVE: DATA})
    fetch(replace(ENTRY, name="mmcv-full", version="1.7.2", source=ARCHIVE), tmp_path / "cache")
    (call,) = pip.calls()
    arguments = call["arguments"]
    assert arguments[arguments.index("--no-binary") + 1] == "mmcv-full" and "--only-binary" not in arguments
    assert {"--no-build-isolation", "--use-pep517"} <= set(arguments)
    backend: dict[str, Any] = {}
    exec(call["texts"]["backend"], backend)
    folder = backend["__legacy__"].prepare_metadata_for_build_wheel(str(tmp_path), None)
    assert folder == "mmcv_full-1.7.2.dist-info"
    assert (tmp_path / folder / "METADATA").read_text(encoding="utf-8").splitlines() == [
        "Metadata-Version: 2.1",
        "Name: mmcv-full",
        "Version: 1.7.2",
    ]


def test_a_pip_that_fails_is_not_taken_for_none(tmp_path: Path, pip: StubPip) -> None:
    pip.will({}, "No module named pip, nearly", 1)
    with pytest.raises(FetchError, match="pip said:\nNo module named pip, nearly"):
        fetch(ENTRY, tmp_path / "cache")


def test_where_pip_cannot_fetch_it_is_told_what_to_do(tmp_path: Path, pip: StubPip) -> None:
    pip.will({}, "no route to host", 1)
    with pytest.raises(FetchError) as caught:
        fetch(ENTRY, tmp_path / "cache")
    told = str(caught.value)
    assert told.startswith("pip could not fetch tiny 1.0, and it is not in the cache: connect to the network")
    assert told.endswith("pip said:\nno route to host")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("files", [{}, {PLAIN: DATA, "another.whl": DATA}])
def test_pip_brings_one_file(tmp_path: Path, pip: StubPip, files: dict[str, bytes]) -> None:
    pip.will(files)
    with pytest.raises(FetchError, match=r"^pip fetched \[.*\] for tiny 1\.0: one file was expected"):
        fetch(ENTRY, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "says", "code"),
    [
        ({PLAIN: DATA + b"!"}, "", 0),
        ({"tiny-1.0.tar.gz": DATA}, "", 0),
        ({}, "THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", 1),
    ],
    ids=["other bytes", "another name", "refused by pip"],
)
def test_another_file_than_the_locks_is_refused(
    tmp_path: Path, pip: StubPip, files: dict[str, bytes], says: str, code: int
) -> None:
    pip.will(files, says, code)
    with pytest.raises(InputError, match=r"^tiny 1\.0 from the package index is not what the lock says") as caught:
        fetch(ENTRY, tmp_path / "cache")
    told = str(caught.value)
    assert ENTRY.source_sha256 in told and "do not use it, and check which index pip is configured for" in told
    assert says in told
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, pip: StubPip) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write into .*file.cache"):
        fetch(ENTRY, tmp_path / "file" / "cache")
    assert pip.calls() == []


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "inside-ensemble" / "packages"
    for unset in ("", None):
        monkeypatch.setenv("XDG_CACHE_HOME", "") if unset == "" else monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
        assert cache_dir() == tmp_path / "home" / ".cache" / "inside-ensemble" / "packages"


# --- repacking ---------------------------------------------------------------------------------------------------


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert len(names) == len(set(names))
        return {name: archive.read(name) for name in names}


def check_record(wheel: Path) -> None:
    """RECORD tells hash and size of each file, of no other, and of itself neither; it comes last."""
    files = contents(wheel)
    record = list(files)[-1]
    assert record.endswith(".dist-info/RECORD")
    rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(files[record].decode()))}
    assert rows.pop(record) == ["", ""]
    del files[record]
    digests = {name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()) for name, data in files.items()}
    assert rows == {name: [f"sha256={digests[name].decode().rstrip('=')}", str(len(files[name]))] for name in files}


def check_form(wheel: Path) -> None:
    """Nothing in the zip file tells when, where and by whom it was written."""
    with zipfile.ZipFile(wheel) as archive:
        members = archive.infolist()
        assert archive.comment == b""
    names = [member.filename for member in members]
    assert names[:-1] == sorted(names[:-1])
    for member in members:
        assert member.date_time == (1980, 1, 1, 0, 0, 0)
        assert member.compress_type == zipfile.ZIP_STORED and member.create_system == 3
        mode = member.external_attr >> 16
        assert stat.S_ISREG(mode) and stat.S_IMODE(mode) == 0o644 and not member.extra and not member.comment


def test_mmcv_is_a_pure_wheel_with_our_operators(shop: Shop, tmp_path: Path) -> None:
    wheel = shop.build(tmp_path / "out")[2]
    check_record(wheel)
    check_form(wheel)
    files, info = contents(wheel), "mmcv_full-1.7.2+torchvision.dist-info"
    theirs = {"mmcv/__init__.py", "mmcv/ops/nms.py", 'mmcv/a "strange", name.py'}
    told = {f"{info}/{name}" for name in ("LICENSE", "METADATA", "WHEEL", "RECORD")}
    assert set(files) == {"mmcv/_ext.py"} | theirs | told
    assert all(files[name] == MMCV_FILES[name] for name in theirs)
    assert files["mmcv/_ext.py"] == (BUNDLE_DIR / "mmcv_ops.py").read_bytes()
    assert files[f"{info}/LICENSE"] == MMCV_FILES["LICENSE"]
    assert b"\nName: mmcv-full\nVersion: 1.7.2+torchvision\n" in files[f"{info}/METADATA"]
    assert b"Root-Is-Purelib: true\nTag: py3-none-any\n" in files[f"{info}/WHEEL"]


def test_mmdet_has_our_mask_head_in_front_of_its_own(shop: Shop, tmp_path: Path) -> None:
    wheel = shop.build(tmp_path / "out")[1]
    check_record(wheel)
    check_form(wheel)
    files, info = contents(wheel), "mmdet-2.28.2+ensemble.dist-info"
    kept = {"mmdet/__init__.py", f"{HEADS}/htc_mask_head.py"}
    heads = {f"{HEADS}/fcn_mask_head.py", f"{HEADS}/mmdet_fcn_mask_head.py"}
    assert set(files) == kept | heads | {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD")}
    assert all(files[name] == MMDET_FILES[name] for name in kept)
    assert files[f"{HEADS}/mmdet_fcn_mask_head.py"] == MMDET_FILES[f"{HEADS}/fcn_mask_head.py"]
    assert files[f"{HEADS}/fcn_mask_head.py"] == (BUNDLE_DIR / "fcn_mask_head.py").read_bytes()
    expected = MMDET_FILES[f"{MMDET_INFO}/METADATA"].replace(b"Version: 2.28.2\n", b"Version: 2.28.2+ensemble\n")
    assert files[f"{info}/METADATA"] == expected


def test_other_wheels_are_carried_as_they_came(shop: Shop, tmp_path: Path) -> None:
    assert shop.build(tmp_path / "out")[0].read_bytes() == SOURCES["tiny", "1.0"][1]


def test_the_projects_own_wheels_have_a_right_record(wheels_dir: Path) -> None:
    repacked = [wheel for wheel in load_lock() if wheel.wheel != wheel.source]
    assert len(repacked) == 2
    for wheel in repacked:
        check_record(wheels_dir / wheel.wheel)
        check_form(wheels_dir / wheel.wheel)


def test_a_wheel_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    files = {f"a/{name}.py": name.encode() for name in "zax"} | {
        "a-1.dist-info/WHEEL": b"w",
        "a-1.dist-info/RECORD": b"?",
    }
    one = write_wheel(tmp_path / "one.whl", files)
    two = write_wheel(tmp_path / "two.whl", dict(reversed(files.items())))
    assert one.read_bytes() == two.read_bytes()
    check_record(one)
    check_form(one)
    assert b"?" not in contents(one)["a-1.dist-info/RECORD"]


def link(name: str, to: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def device() -> tarfile.TarInfo:
    member = tarfile.TarInfo(f"{TOP}/mmcv/device")
    member.type = tarfile.CHRTYPE
    return member


NOISE = random.Random(0).randbytes(4000)
LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
CUT = gzip.compress(gzip.decompress(tar_bytes(MMCV_FILES))[:1030])  # amid the first file
BAD_ARCHIVES: dict[str, tuple[bytes, str]] = {
    "no archive": (b"plain text", "is no readable source archive"),
    "empty": (b"", "is no readable source archive"),
    "cut": (
        tar_bytes({**MMCV_FILES, "mmcv/data": random.Random(0).randbytes(4000)})[:2000],
        "is no readable source archive",
    ),
    "cut inside": (CUT, "is no readable source archive"),
    "no mmcv": (tar_bytes({"setup.py": b""}), "holds no package mmcv"),
    "nothing": (tar_bytes({}), "holds no package mmcv"),
    "leads out": (tar_bytes({**MMCV_FILES, "mmcv/../../../evil.py": b""}), "evil.py, which leads out of the archive"),
    "absolute": (
        tar_bytes(MMCV_FILES, [tarfile.TarInfo("/mmcv/evil.py")]),
        "/mmcv/evil.py, which leads out of the archive",
    ),
    "link": (
        tar_bytes(MMCV_FILES, [link(f"{TOP}/mmcv/link.py", "/etc/passwd", LINK)]),
        "mmcv/link.py, which is no plain file",
    ),
    "link inside": (
        tar_bytes(MMCV_FILES, [link(f"{TOP}/mmcv/link.py", "__init__.py", LINK)]),
        "mmcv/link.py, which is no plain file",
    ),
    "hard link": (
        tar_bytes(MMCV_FILES, [link(f"{TOP}/mmcv/link.py", f"{TOP}/setup.py", HARD)]),
        "mmcv/link.py, which is no plain file",
    ),
    "device": (tar_bytes(MMCV_FILES, [device()]), "mmcv/device, which is no plain file"),
}


def damaged_zip() -> bytes:
    """A wheel that lists its files well, one of which cannot be inflated."""
    data = zip_bytes({"aaa.py": bytes(range(256)) * 40, **MMDET_FILES})
    at = data.index(b"aaa.py") + len("aaa.py")
    return data[:at] + b"\xff" * 8 + data[at + 8 :]


def without(name: str) -> bytes:
    return zip_bytes({other: data for other, data in MMDET_FILES.items() if other != name})


BAD_WHEELS: dict[str, tuple[bytes, str]] = {
    "no zip": (b"plain text", "is no readable wheel"),
    "cut": (zip_bytes(MMDET_FILES)[:300], "is no readable wheel"),
    "damaged": (damaged_zip(), "is no readable wheel"),
    "no head": (without(f"{HEADS}/fcn_mask_head.py"), "is not the wheel of mmdet 2.28.2"),
    "no metadata": (without(f"{MMDET_INFO}/METADATA"), "is not the wheel of mmdet 2.28.2"),
    "another version": (
        zip_bytes({**MMDET_FILES, f"{MMDET_INFO}/METADATA": b"Name: mmdet\nVersion: 2.28.20\n"}),
        "is not the wheel of mmdet 2.28.2",
    ),
    "leads out": (zip_bytes({**MMDET_FILES, "mmdet/../../evil.py": b""}), "evil.py, which leads out of the archive"),
    "absolute": (zip_bytes({**MMDET_FILES, "/evil.py": b""}), "/evil.py, which leads out of the archive"),
}


@pytest.mark.parametrize(
    ("number", "file", "data", "told"),
    [
        *(pytest.param(2, ARCHIVE, *bad, id=f"archive: {name}") for name, bad in BAD_ARCHIVES.items()),
        *(pytest.param(1, MMDET, *bad, id=f"wheel: {name}") for name, bad in BAD_WHEELS.items()),
    ],
)
def test_a_source_that_cannot_be_repacked_is_named(
    shop: Shop, tmp_path: Path, number: int, file: str, data: bytes, told: str
) -> None:
    """Even one that the lock knows; nothing is written, and the lock can not be made to take it either."""
    kept = keep(shop.cache, file, data)
    shop.edit(number, source_sha256=kept.parent.name)
    before = shop.lock.read_bytes()
    for write in (lambda: shop.build(tmp_path / "out"), lambda: update_lock(shop.lock, shop.cache)):
        with pytest.raises(InputError) as caught:
            write()
        assert str(kept) in str(caught.value) and told in str(caught.value)
    assert shop.lock.read_bytes() == before and not (tmp_path / "out").exists()


# --- the dataset -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "title"),
    [
        ("me/some-wheels", "Some wheels"),
        ("A_b-9/abcdef", "Abcdef"),
        (f"me/{'a' * 50}", "A" + "a" * 49),
        (DEFAULT_DATASET_ID, "Mmdet pure python wheels"),
    ],
)
def test_metadata_of_a_dataset(dataset: str, title: str) -> None:
    assert dataset_metadata(dataset) == {"id": dataset, "title": title, "licenses": [{"name": "other"}]}
    assert 6 <= len(title) <= 50


@pytest.mark.parametrize(
    "dataset",
    [
        *("", "wheels", "/some-wheels", "me/", "me/short", f"me/{'a' * 51}", "me/Some-Wheels", "me/some_wheels"),
        *("me/some wheels", "me/-wheels", "me/wheels-", "-me/some-wheels", "a/b/some-wheels", "me/some-wheels\n"),
    ],
)
def test_what_is_no_dataset_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    monkeypatch.setattr(subprocess, "run", no_pip)
    with pytest.raises(InputError, match=r"is no Kaggle dataset: allowed is owner/slug"):
        build_wheels(tmp_path / "out", dataset, tmp_path / "no.lock.json", tmp_path / "cache")
    assert not list(tmp_path.iterdir())


# --- the folder --------------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_the_wheels_and_what_kaggle_wants(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "wheels"
    built = shop.build(out)
    assert built == [out / wheel.wheel for wheel in load_lock(shop.lock)]
    assert set(tree(out)) == {*(path.name for path in built), "dataset-metadata.json"}
    assert json.loads((out / "dataset-metadata.json").read_text(encoding="utf-8")) == dataset_metadata(DATASET)
    assert stat.S_IMODE(out.stat().st_mode) == 0o755 and [path.name for path in out.parent.iterdir()] == ["wheels"]


def test_an_earlier_bundle_is_replaced_as_a_whole(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "wheels"
    out.mkdir()
    (out / "old-1.0-py3-none-any.whl").touch()
    (out / "dataset-metadata.json").touch()
    shop.build(out)
    assert "old-1.0-py3-none-any.whl" not in tree(out) and len(tree(out)) == 4
    assert shop.build(out) and len(tree(out)) == 4


@pytest.mark.parametrize("foreign", ["notes.txt", ".hidden", "folder/file", "wheel.whl.part"])
def test_other_files_are_never_replaced(shop: Shop, tmp_path: Path, foreign: str) -> None:
    out = tmp_path / "wheels"
    (out / foreign).parent.mkdir(parents=True)
    (out / foreign).write_text("mine", encoding="utf-8")
    (out / "old.whl").touch()
    with pytest.raises(InputError, match=rf"holds other files \({foreign.split('/')[0]}\)"):
        shop.build(out)
    assert tree(out) == {foreign: b"mine", "old.whl": b""}


def test_wheels_of_somebody_else_are_never_replaced(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "wheels"
    out.mkdir()
    (out / "numpy-2.0-cp311-none-any.whl").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"holds other files \(numpy-2\.0-cp311-none-any\.whl\)"):
        shop.build(out)
    assert tree(out) == {"numpy-2.0-cp311-none-any.whl": b"mine"}


def test_a_file_is_no_folder(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "wheels"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is a file, and a folder is to be written there"):
        shop.build(out)
    assert out.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("changes", [{"wheel_sha256": "0" * 64}, {"wheel": "another-1.0-py3-none-any.whl"}])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_wheel_that_comes_out_otherwise_is_refused(
    shop: Shop, tmp_path: Path, number: int, changes: dict[str, str]
) -> None:
    """The earlier bundle stays as it was, and nothing is left beside it."""
    out = tmp_path / "dist" / "wheels"
    shop.build(out)
    before, right = tree(out), load_lock(shop.lock)[number]
    shop.edit(number, **changes)
    with pytest.raises(InputError, match=r"comes out otherwise than .*wheels\.lock\.json says") as caught:
        shop.build(out)
    told = str(caught.value)
    assert f"found {right.wheel} with {right.wheel_sha256}" in told and "--update-lock" in told
    assert tree(out) == before and [path.name for path in out.parent.iterdir()] == ["wheels"]


def test_a_change_of_ours_shows_in_the_hash(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tmp_path / "bundle"
    ours.mkdir()
    for name in ("mmcv_ops.py", "fcn_mask_head.py"):
        # Other line ends are no change: a checkout may have them.
        text = (BUNDLE_DIR / name).read_text(encoding="utf-8")
        (ours / name).write_bytes(text.replace("\n", "\r\n").encode())
    monkeypatch.setattr(bundle.repack, "BUNDLE_DIR", ours)
    shop.build(tmp_path / "out")
    with (ours / "mmcv_ops.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    with pytest.raises(InputError, match=r"mmcv_full-.* comes out otherwise"):
        shop.build(tmp_path / "out")


def run_vendor(shop: Shop, out: Path, umask: int, environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "bundle.vendor", "--lock", str(shop.lock), "--out", str(out)]
    subprocess.run(
        [*command, "--dataset-id", DATASET],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(shop.cache.parents[1]), **environment},
        umask=umask,
        check=True,
        capture_output=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_the_same_bytes_whoever_builds(shop: Shop, tmp_path: Path) -> None:
    run_vendor(shop, tmp_path / "one", 0o022, {"TZ": "UTC", "PYTHONHASHSEED": "1"})
    other = {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "2", "SOURCE_DATE_EPOCH": "1", "LC_ALL": "C", "PYTHONUTF8": "0"}
    run_vendor(shop, tmp_path / "two", 0o077, other)
    assert tree(tmp_path / "one") == tree(tmp_path / "two") and len(tree(tmp_path / "one")) == 4


# --- the command -------------------------------------------------------------------------------------------------


def run_main(shop: Shop, out: Path, *more: str) -> int:
    return main(["--lock", str(shop.lock), "--out", str(out), "--dataset-id", DATASET, *more])


@pytest.fixture
def own_cache(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(shop.cache.parents[1]))


@pytest.mark.usefixtures("own_cache")
def test_the_command_tells_what_it_wrote(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run_main(shop, out) == 0
    names = [*(wheel.wheel for wheel in load_lock(shop.lock)), "dataset-metadata.json"]
    assert capsys.readouterr().out == "".join(f"{out / name}\n" for name in names)


@pytest.mark.usefixtures("own_cache")
def test_the_command_updates_the_lock_only_when_asked(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = shop.lock.read_bytes()
    shop.edit(0, wheel_sha256="0" * 64)
    assert run_main(shop, tmp_path / "out") == 2
    assert "comes out otherwise" in capsys.readouterr().err and shop.lock.read_bytes() != right
    assert run_main(shop, tmp_path / "out", "--update-lock") == 0
    assert shop.lock.read_bytes() == right


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("break_it", [lambda shop: shop.lock.unlink(), lambda shop: shop.lock.write_text("{}")])
def test_wrong_input_is_exit_code_2(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], break_it: Callable[[Shop], object]
) -> None:
    break_it(shop)
    for more in ((), ("--update-lock",)):
        assert run_main(shop, tmp_path / "out", *more) == 2
        told = capsys.readouterr()
        assert told.err.startswith("error: ") and str(shop.lock) in told.err and told.out == ""


def test_no_network_is_exit_code_1(
    shop: Shop, tmp_path: Path, pip: StubPip, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    pip.will({}, "no route to host", 1)
    assert run_main(shop, tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert told.startswith("failed: ") and "connect to the network" in told and not (tmp_path / "out").exists()


def test_a_full_disk_is_exit_code_1(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bundle.vendor.make_wheel", fill)
    monkeypatch.setattr("bundle.vendor.fetch", lambda *given: b"")
    assert run_main(shop, tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert told.startswith("failed: ") and "No space left on device: mend that, and run the same again" in told


def test_a_lock_of_fetched_packages_from_nothing(shop: Shop, tmp_path: Path, pip: StubPip) -> None:
    """For another version: the source's name and hash are taken from what pip fetches."""
    file, data = SOURCES["mmdet", "2.28.2"]
    pip.will({file: data})
    path = tmp_path / "new.lock.json"
    path.write_text(json.dumps({"packages": [{"name": "mmdet", "version": "2.28.2"}]}), encoding="utf-8")
    made = update_lock(path, tmp_path / "cache")
    assert made == (load_lock(shop.lock)[1],)
    assert parse_locked_wheels(json.loads(path.read_text(encoding="utf-8")), "new") == made
