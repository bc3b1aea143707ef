"""The vendored wheels: which lock, which folder and which interpreter they are taken with, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kernel.runtime.wheels as wheels_module
from bundle.repack import write_wheel
from kernel.errors import InputError, RunError
from kernel.files import file_sha256
from kernel.runtime.wheels import (
    VENDORED_MODULES,
    LockedWheel,
    find_wheels,
    install_wheels,
    installed_wheels,
    parse_locked_wheels,
    verify_wheels,
)

ENTRY = {
    "name": "tiny",
    "version": "1.0",
    "source": "tiny-1.0.tar.gz",
    "source_sha256": "0" * 64,
    "wheel": "tiny-1.0-py3-none-any.whl",
    "wheel_sha256": "9af" + "1" * 61,
}
OTHER = {**ENTRY, "name": "other", "wheel": "other-1.0-py3-none-any.whl"}

# --- the lock ----------------------------------------------------------------------------------------------------


def test_a_lock_is_read_in_its_order() -> None:
    locked = parse_locked_wheels({"packages": [OTHER, ENTRY], "comment": "ignored"}, "here")
    assert locked == (LockedWheel(**OTHER), LockedWheel(**ENTRY))


@pytest.mark.parametrize("data", [None, [], [ENTRY], "packages", {}, {"packages": []}, {"packages": {"tiny": ENTRY}}])
def test_what_is_no_lock_is_refused(data: object) -> None:
    with pytest.raises(InputError, match=r'^some/file: expected an object with a non-empty list "packages"'):
        parse_locked_wheels(data, "some/file")


@pytest.mark.parametrize("entry", ["tiny", None, [], {}, {**ENTRY, "url": "x"}, {"name": "tiny"}])
def test_an_entry_has_exactly_the_fields(entry: object) -> None:
    with pytest.raises(InputError, match=r"^here: packages\[1\] must have exactly the fields \['name', 'version', "):
        parse_locked_wheels({"packages": [OTHER, entry]}, "here")


@pytest.mark.parametrize("field", ENTRY)
def test_each_field_may_be_missing_or_no_text(field: str) -> None:
    with pytest.raises(InputError, match=r"must have exactly the fields"):
        parse_locked_wheels({"packages": [{name: value for name, value in ENTRY.items() if name != field}]}, "here")
    for value in ("", None, 1, ["x"]):
        with pytest.raises(InputError, match=rf"^here: packages\[0\]\.{field} must be a non-empty string, and is "):
            parse_locked_wheels({"packages": [{**ENTRY, field: value}]}, "here")


@pytest.mark.parametrize("field", ["source_sha256", "wheel_sha256"])
@pytest.mark.parametrize("value", ["0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", " " + "0" * 63, "٣" * 64])
def test_a_hash_has_64_small_hexadecimal_digits(field: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"^here: packages\[0\]\.{field} must be 64 lowercase hexadecimal digits"):
        parse_locked_wheels({"packages": [{**ENTRY, field: value}]}, "here")


@pytest.mark.parametrize("field", ["source", "wheel"])
@pytest.mark.parametrize(
    "value",
    [
        "../a.whl",
        "a/b.whl",
        "/a.whl",
        "C:\\a.whl",
        ".a.whl",
        "-a.whl",
        "a b.whl",
        "a.whl\n",
        "ä.whl",
        "--pre.whl",
        "..",
    ],
)
def test_a_file_name_leads_nowhere_else(field: str, value: str) -> None:
    """Nor is it taken for an option by pip."""
    with pytest.raises(InputError, match=rf"^here: packages\[0\]\.{field} must be a plain file name"):
        parse_locked_wheels({"packages": [{**ENTRY, field: value}]}, "here")


@pytest.mark.parametrize("wheel", ["tiny-1.0.tar.gz", "tiny.whl.zip", "tiny.WHL"])
def test_a_wheel_is_called_one(wheel: str) -> None:
    with pytest.raises(InputError, match=r"^here: packages\[0\]\.wheel must end in \.whl"):
        parse_locked_wheels({"packages": [{**ENTRY, "wheel": wheel}]}, "here")


@pytest.mark.parametrize("field", ["name", "wheel"])
def test_none_is_named_twice(field: str) -> None:
    third = {**ENTRY, "name": "third", "wheel": "third.whl"}
    with pytest.raises(InputError, match=rf"^here: more than one entry with {field} {ENTRY[field]}; keep one of each"):
        parse_locked_wheels({"packages": [ENTRY, third, {**OTHER, field: ENTRY[field]}]}, "here")
    # One source may well give two wheels.
    assert len(parse_locked_wheels({"packages": [ENTRY, OTHER, third]}, "here")) == 3


# --- the folder --------------------------------------------------------------------------------------------------


def make_wheel(folder: Path, name: str, body: str = "HERE = __file__\n") -> Path:
    """A pure wheel of one module."""
    info = f"{name}-1.0.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    return write_wheel(
        folder / f"{name}-1.0-py3-none-any.whl",
        {
            f"{name}.py": body.encode(),
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        },
    )


def locked(wheel: Path) -> LockedWheel:
    """The lock's entry of a wheel."""
    name, version, _ = wheel.name.split("-", 2)
    return LockedWheel(name, version, wheel.name, file_sha256(wheel), wheel.name, file_sha256(wheel))


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_whole_wheels_are_found_in_the_locks_order(tmp_path: Path) -> None:
    wheels = [make_wheel(tmp_path, name) for name in ("zebra", "ant")]
    (tmp_path / "unknown.whl").write_bytes(b"not asked for")
    assert verify_wheels(tmp_path, [locked(wheel) for wheel in wheels]) == wheels
    assert verify_wheels(tmp_path, []) == []


def test_each_wheel_that_is_missing_or_altered_is_told(tmp_path: Path) -> None:
    whole, altered, missing, folder = (make_wheel(tmp_path, name) for name in ("whole", "altered", "missing", "folder"))
    lock = [locked(wheel) for wheel in (whole, altered, missing, folder)]
    altered.write_bytes(altered.read_bytes()[:-1] + b"\x01")
    missing.unlink()
    folder.unlink()
    folder.mkdir()
    with pytest.raises(InputError) as caught:
        verify_wheels(tmp_path, lock)
    told = str(caught.value).splitlines()
    assert told[0] == f"the wheels in {tmp_path} are not those of the lock:"
    assert told[1:-1] == [
        f"  {altered.name}: expected sha256 {lock[1].wheel_sha256}, found {file_sha256(altered)}",
        f"  {missing.name}: missing",
        f"  {folder.name}: missing",
    ]
    assert "python -m bundle.vendor" in told[-1]


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_without_a_folder_it_is_told_how_to_make_one(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "wheels"
    if kind == "file":
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no folder of wheels at .*wheels: write it with `python -m bundle\.vendor`"):
        verify_wheels(path, [])


def test_wheels_are_found_folders_down_and_by_their_sums(tmp_path: Path) -> None:
    """As a dataset of one archive is mounted, and as a browser or an upload renames: each at its own place."""
    first, second, third = (make_wheel(tmp_path / "made", name) for name in ("first", "second", "third"))
    lock = [locked(wheel) for wheel in (first, second, third)]
    places = [tmp_path / "in" / place for place in (f"wheels/{first.name}", "dist/second (1).whl", "third.zip")]
    for wheel, place in zip((first, second, third), places, strict=True):
        place.parent.mkdir(parents=True, exist_ok=True)
        wheel.rename(place)
    assert find_wheels([tmp_path / "in"], lock) == places
    altered = tmp_path / "in" / second.name  # beside the right one, which has another name
    altered.write_bytes(b"altered")
    assert find_wheels([tmp_path / "in"], lock) == places
    assert find_wheels([tmp_path / "in" / "dist", tmp_path / "in"], lock) == places
    places[1].unlink()
    places[2].write_bytes(places[2].read_bytes() + b"x")
    with pytest.raises(InputError) as caught:
        find_wheels([tmp_path / "in"], lock)
    assert f"{second.name}: expected sha256 {lock[1].wheel_sha256}, found {file_sha256(altered)}" in str(caught.value)
    assert f"{third.name}: missing" in str(caught.value)


def test_a_wheel_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path, "tiny")
    lock = [locked(wheel)]

    def refuse(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("kernel.runtime.wheels.file_sha256", refuse)
    with pytest.raises(InputError, match=r"found nothing \(Input/output error\)"):
        find_wheels([tmp_path], lock)


# --- places -----------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, str]:
    """A folder of one wheel, and its lock."""
    wheel = make_wheel(tmp_path / "dataset", "tiny")
    return wheel.parent, json.dumps({"packages": [asdict(locked(wheel))]})


def full_place(packages: Path, wheels: Sequence[Path]) -> None:
    """As `unpack_wheels` where a small file system is full."""
    (packages / "tiny.py").write_text("half of i", encoding="utf-8")
    raise RunError(f"{wheels[0]} could not be unpacked into {packages}: No space left on device")


@pytest.mark.parametrize("how", ["none", "closed", "full"])
def test_without_a_temporary_folder_the_working_folder_takes_the_wheels(
    tmp_path: Path,
    dataset: tuple[Path, str],
    stub_pip: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    folder, lock = dataset
    working, small = tmp_path / "working", tmp_path / "small"
    working.mkdir()
    small.mkdir()
    say(stub_pip, "raise SystemExit(1)")
    if how == "none":

        def no_place() -> str:
            raise FileNotFoundError(2, "No usable temporary directory found")

        monkeypatch.setattr(tempfile, "_gettempdir", no_place)
    else:
        monkeypatch.setattr(tempfile, "tempdir", str(small if how == "full" else tmp_path / "gone"))
    unpack = wheels_module.unpack_wheels

    def unpack_if_there_is_room(wheels: Sequence[Path], target: Path) -> None:
        if target.is_relative_to(small):
            full_place(target, wheels)
        unpack(wheels, target)

    monkeypatch.setattr(wheels_module, "unpack_wheels", unpack_if_there_is_room)
    with caplog.at_level("WARNING", "kernel"), installed_wheels([folder], lock, working) as packages:
        assert packages.parent == working and sys.path[0] == str(packages)
        assert (packages / "tiny.py").read_text(encoding="utf-8") == "HERE = __file__\n"
        assert list(small.iterdir()) == []
    assert "there is no place for temporary files: " in caplog.text and "the working folder is tried" in caplog.text
    assert list(working.iterdir()) == []


def test_where_nothing_can_be_written_both_reasons_are_told(
    tmp_path: Path, dataset: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with (
        pytest.raises(RunError, match=r"(?s)installed nowhere:.*/gone/kernel-wheels.*/away/kernel-wheels"),
        installed_wheels([dataset[0]], dataset[1], tmp_path / "away"),
    ):
        pass


def test_packages_that_cannot_be_deleted_are_no_failure(
    tmp_path: Path, dataset: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run's rows are not lost to that."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fail(*arguments: Any, **options: Any) -> None:
        assert options == {"ignore_errors": True}

    monkeypatch.setattr("shutil.rmtree", fail)
    with installed_wheels([dataset[0]], dataset[1], tmp_path) as packages:
        pass
    assert f"{packages} could not be deleted" in caplog.messages


# --- installation ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a fresh process: mmcv and mmdet were not imported, and what a test adds to the path goes again."""
    for name in VENDORED_MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def stub_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose __main__.py `python -m pip` runs: it stands in the working directory."""
    folder = tmp_path / "cwd" / "pip"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.chdir(folder.parent)
    return folder


def say(pip: Path, code: str) -> None:
    """Have the stub of pip run some code."""
    (pip / "__main__.py").write_text(textwrap.dedent(code), encoding="utf-8")


@pytest.fixture(scope="module")
def without_pip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has no pip."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")


def run_python(code: str, *folders: Path) -> str:
    """What code prints in a fresh Python with some folders in front on its path."""
    path = "".join(f"sys.path.insert(0, {str(folder)!r})\n" for folder in folders)
    command = [sys.executable, "-I", "-B", "-c", f"import sys\n{path}{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_pip_installs_whatever_it_is_configured_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables and a file that would each make it fail, or do nothing, or write elsewhere."""
    config, home = tmp_path / "pip.conf", tmp_path / "home"
    config.write_text(f"[global]\nprefix = {tmp_path / 'config'}\n", encoding="utf-8")
    (home / "pip").mkdir(parents=True)
    (home / "pip" / "pip.conf").write_text("[install]\nrequire-hashes = true\n", encoding="utf-8")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    for name, value in {"PREFIX": str(tmp_path / "prefix"), "DRY_RUN": "1", "REQUIRE_HASHES": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    target = tmp_path / "deep" / "target"
    wheels = [make_wheel(tmp_path / "wheels", name) for name in ("tiny_one", "tiny_two")]
    install_wheels(wheels, target)
    assert sys.path[0] == str(target)
    printed = run_python("import tiny_one, tiny_two; print(tiny_one.HERE); print(tiny_two.HERE)", target)
    assert printed.splitlines() == [str(target / "tiny_one.py"), str(target / "tiny_two.py")]
    assert (target / "tiny_one-1.0.dist-info" / "METADATA").is_file()
    assert not list(target.rglob("*.pyc")) and not (tmp_path / "prefix").exists()


def test_how_pip_is_called(tmp_path: Path, stub_pip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "said.py"
    say(stub_pip, f"import os, sys\nopen({str(said)!r}, 'w').write(repr((sys.argv[1:], dict(os.environ))))")
    monkeypatch.setenv("PIP_INDEX_URL", "somewhere")
    monkeypatch.setenv("PIP_CONFIG_FILE", "some file")
    monkeypatch.setenv("KEPT", "1")
    wheels = [tmp_path / "b.whl", tmp_path / "a.whl"]
    install_wheels(wheels, tmp_path / "target")
    arguments, environment = eval(said.read_text(encoding="utf-8"))
    assert arguments[0] == "install" and arguments[-2:] == [str(wheel) for wheel in wheels]
    assert {"--isolated", "--no-index", "--no-deps", "--no-compile", "--no-input"} <= set(arguments)
    assert arguments[arguments.index("--target") + 1] == str(tmp_path / "target")
    assert {name: value for name, value in environment.items() if name.startswith("PIP_")} == {
        "PIP_CONFIG_FILE": os.devnull
    }
    assert environment["KEPT"] == "1"


#: Ways in which a pip that is there does not work, and what is said of each.
BROKEN_PIPS = {
    "says why": (
        r"""
        import sys
        sys.stdout.buffer.write(b"to one \xff\n")
        sys.stdout.flush()
        sys.stderr.write("to the other\nNo module named pip, nearly\n")
        sys.exit(7)
        """,
        "pip failed (exit code 7): No module named pip, nearly; the wheels are unpacked instead",
    ),
    "a part is missing": (
        "import a_part_of_pip_that_is_missing",
        "pip failed (exit code 1): ModuleNotFoundError: No module named 'a_part_of_pip_that_is_missing'; the wheels",
    ),
    "says nothing": ("import os; os._exit(3)", "pip failed (exit code 3): it said nothing; the wheels are unpacked"),
    "is killed": ("import os; os.kill(os.getpid(), 9)", "pip failed (exit code -9): it said nothing; the wheels"),
    "leaves a part": (
        """
        import pathlib, sys
        target = pathlib.Path(sys.argv[sys.argv.index("--target") + 1])
        (target / "tiny.py").write_text("half of i")
        raise OSError(28, "No space left on device")
        """,
        "pip failed (exit code 1): OSError: [Errno 28] No space left on device; the wheels are unpacked instead",
    ),
}


@pytest.mark.parametrize("how", BROKEN_PIPS)
def test_where_pip_does_not_work_wheels_are_unpacked_and_that_is_told(
    tmp_path: Path, stub_pip: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    code, told = BROKEN_PIPS[how]
    say(stub_pip, code)
    target = tmp_path / "target"
    with caplog.at_level("WARNING", "kernel"):
        install_wheels([make_wheel(tmp_path, "tiny")], target)
    (message,) = caplog.messages
    assert message.startswith(told) and "Traceback" not in message
    assert run_python("import tiny; print(tiny.HERE)", target) == str(target / "tiny.py")


@pytest.mark.parametrize("executable", [None, "", "/nowhere/python"])
def test_an_interpreter_that_cannot_be_started_installs_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, executable: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with caplog.at_level("WARNING", "kernel"):
        install_wheels([make_wheel(tmp_path, "tiny")], tmp_path / "target")
    assert "pip cannot be run: " in caplog.text and (tmp_path / "target" / "tiny.py").is_file()


def test_a_pip_that_waits_is_not_waited_for(
    tmp_path: Path, stub_pip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kernel.runtime.wheels.PIP_SECONDS", 0.5)
    say(stub_pip, "import time; time.sleep(600)")
    install_wheels([make_wheel(tmp_path, "tiny")], tmp_path / "target")
    assert "timed out" in caplog.text and (tmp_path / "target" / "tiny.py").is_file()


def test_without_pip_wheels_are_unpacked(tmp_path: Path, without_pip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", without_pip)
    wheels = [make_wheel(tmp_path / "wheels", name) for name in ("tiny_one", "tiny_two")]
    target = tmp_path / "target"
    install_wheels(wheels, target)
    unpacked = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert unpacked == {name for wheel in wheels for name in zipfile.ZipFile(wheel).namelist()}
    assert sys.path[0] == str(target)


def broken_stream(wheel: Path) -> bytes:
    """A zip file that lists its entries well, one of which cannot be inflated."""
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.py", bytes(range(256)) * 40)
        start = len(archive.infolist()[0].FileHeader())
    data = bytearray(wheel.read_bytes())
    data[start : start + 8] = b"\xff" * 8
    return bytes(data)


def flipped_byte(wheel: Path) -> bytes:
    """A stored entry that differs from its checksum."""
    data = wheel.read_bytes()
    return data.replace(b"HERE", b"HeRE", 1)


@pytest.mark.parametrize("how", ["no zip", "empty", "cut", "missing", "stream", "checksum"])
def test_without_pip_a_broken_wheel_is_named(
    tmp_path: Path, without_pip: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(sys, "executable", without_pip)
    wheel = make_wheel(tmp_path, "tiny")
    data = wheel.read_bytes()
    broken = {"no zip": b"plain text", "empty": b"", "cut": data[: len(data) // 2]}
    if how == "missing":
        wheel.unlink()
    else:
        special = {"stream": broken_stream, "checksum": flipped_byte}
        wheel.write_bytes(special[how](wheel) if how in special else broken[how])
    before = list(sys.path)
    with pytest.raises(RunError, match=r"tiny-1\.0-py3-none-any\.whl could not be unpacked into .*target: "):
        install_wheels([wheel], tmp_path / "target")
    assert sys.path == before


def test_the_target_is_once_on_the_path_and_in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, other = tmp_path / "target", str(tmp_path / "other")
    sys.path[:] = [other, str(target), *sys.path, str(target)]
    rest = [path for path in sys.path if path != str(target)]
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        install_wheels([], Path("target"))  # relative: a later change of folder must not matter
        assert sys.path == [str(target), *rest]
    assert target.is_dir() and not list(target.iterdir())


def test_what_is_installed_can_be_imported_at_once(tmp_path: Path, stub_pip: Path) -> None:
    """Also from a folder that Python has looked into before, and whose time does not tell that it has changed."""
    target, name = tmp_path / "target", "tiny_late_module"
    install_wheels([], target)
    os.utime(target, (0, 0))
    with pytest.raises(ModuleNotFoundError):
        __import__(name)
    say(
        stub_pip,
        f"""
        import os, pathlib
        pathlib.Path({str(target / name)!r} + ".py").write_text("HERE = __file__")
        os.utime({str(target)!r}, (0, 0))
        """,
    )
    install_wheels([make_wheel(tmp_path, name)], target)
    try:
        found = __import__(name).__file__
    finally:
        sys.modules.pop(name, None)
    assert found == str(target / f"{name}.py")


def module(name: str, file: Any) -> ModuleType:
    made = ModuleType(name)
    if file is not None:
        made.__file__ = str(file)
    return made


@pytest.mark.parametrize("name", VENDORED_MODULES)
@pytest.mark.parametrize("origin", ["site-packages/{}/__init__.py", "target-of-another/{}.py", None])
def test_another_copy_that_was_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub_pip: Path, name: str, origin: str | None
) -> None:
    """It would go on being used; a namespace package, which has no file, as well. Nothing is installed then."""
    say(stub_pip, "raise SystemExit('pip was run')")
    file = tmp_path / origin.format(name) if origin else None
    monkeypatch.setitem(sys.modules, name, module(name, file))
    before = list(sys.path)
    with pytest.raises(InputError, match=rf"^{name} was already imported from (.*{name}|elsewhere)") as caught:
        install_wheels([make_wheel(tmp_path, "tiny")], tmp_path / "target")
    assert "start a fresh Python" in str(caught.value) and (file is None or str(file) in str(caught.value))
    assert sys.path == before and not (tmp_path / "target").exists()


def test_a_copy_that_was_imported_from_the_target_may_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VENDORED_MODULES:
        monkeypatch.setitem(sys.modules, name, module(name, tmp_path / "target" / name / "__init__.py"))
    install_wheels([], tmp_path / "target")
    assert sys.path[0] == str(tmp_path / "target")
