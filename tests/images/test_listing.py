"""Folders as people keep them: what is passed over is told, hidden things are not looked at, nothing hangs."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from bundle.dry_run import choose_images
from kernel.errors import InputError
from kernel.images.listing import is_hidden, search_images
from kernel.images.reading import list_images


def put_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.arange(60, dtype=np.uint8).reshape(6, 10))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One image to use, and something of every kind that is not."""
    folder = tmp_path / "in"
    put_image(folder / "a.png")
    for name in ("b.bmp", "c.webp", "d.czi", "notes"):
        (folder / name).write_bytes(b"x")
    put_image(folder / "plate2" / "e.png")
    put_image(folder / "g.png" / "h.png")
    (folder / "f.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "circle").symlink_to(folder)
    (folder / "self.png").symlink_to("self.png")
    for name in (".AppleDouble", ".snapshot", ".thumbs", "__MACOSX", "@eaDir", "plate2/.thumbs"):
        put_image(folder / name / "a.png")
    for name in ("._a.png", ".hidden.png", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"x")
    return folder


def told_of(caplog: pytest.LogCaptureFixture) -> str:
    (line,) = caplog.messages
    return line


@pytest.mark.parametrize("listing", [list_images, choose_images])
def test_what_is_passed_over_is_told_in_one_line(
    folder: Path, listing: object, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "kernel"):
        assert listing(folder) == [folder / "a.png"]  # type: ignore[operator]
    line = told_of(caplog)
    assert f"{folder}: 10 entries are passed over" in line and "\n" not in line
    for told in (
        "4 of other formats (b.bmp, c.webp, d.czi, notes)",
        "3 sub-folders (circle/, g.png/, plate2/)",
        "2 broken links (f.png, self.png)",
        "1 that is no plain file (pipe.png)",
    ):
        assert told in line
    for hidden in ("AppleDouble", "Thumbs", "MACOSX", "._a", "eaDir", "desktop"):
        assert hidden not in line


def test_a_search_below_follows_no_link_and_sees_nothing_hidden(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = search_images(folder, below=True)
    assert content.images == [folder / name for name in ("a.png", "g.png/h.png", "plate2/e.png")]
    with caplog.at_level(logging.WARNING, "kernel"):
        content.warn_of_passed_over(folder)
    assert "1 link to a folder (circle/)" in told_of(caplog) and "sub-folder" not in told_of(caplog)


def test_nothing_is_said_where_all_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_image(tmp_path / "one" / "a.png")
    (tmp_path / "one" / "b.TIF").symlink_to(put_image(tmp_path / "b.tif"))
    put_image(tmp_path / "one" / ".thumbs" / "a.png")
    with caplog.at_level(logging.WARNING, "kernel"):
        assert [path.name for path in list_images(tmp_path / "one")] == ["a.png", "b.TIF"]
    assert not caplog.messages


def test_long_lists_and_odd_names_are_cut_and_escaped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_image(tmp_path / "a.png")
    for number in range(8):
        (tmp_path / f"{number}.bmp").write_bytes(b"x")
    (tmp_path / os.fsdecode(b"0\xff.bmp")).write_bytes(b"x")
    (tmp_path / "0\n\u00e9.bmp").write_bytes(b"x")
    with caplog.at_level(logging.WARNING, "kernel"):
        list_images(tmp_path)
    line = told_of(caplog)
    assert "10 of other formats (0\\n\u00e9.bmp, 0.bmp, 0\\udcff.bmp, 1.bmp, 2.bmp, ...)" in line
    assert line.encode()  # prints


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no image in .*: it holds 1 hidden"):
        list_images(tmp_path)
    put_image(tmp_path / "plate1" / "a.png")
    (tmp_path / "a.czi").write_bytes(b"x")
    with pytest.raises(InputError, match=r"it holds 1 sub-folder \(plate1/\), 1 of another format \(a.czi\) and 1 hid"):
        list_images(tmp_path)


def test_a_folder_below_a_hidden_one_is_a_folder(tmp_path: Path) -> None:
    path = put_image(tmp_path / ".cache" / "in" / "a.png")
    assert list_images(path.parent) == [path]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_closed_folder_is_told(tmp_path: Path) -> None:
    put_image(tmp_path / "a.png")
    put_image(tmp_path / "closed" / "b.png").parent.chmod(0)
    assert search_images(tmp_path, below=True).passed_over
    tmp_path.chmod(0o300)
    with pytest.raises(InputError, match="cannot read the folder"):
        search_images(tmp_path)
    tmp_path.chmod(0o700)
    (tmp_path / "closed").chmod(0o700)


def test_names_that_are_hidden() -> None:
    hidden = (".a", "._a.png", "__MACOSX", "Thumbs.db", "@eaDir", "$RECYCLE.BIN", "DESKTOP.INI")
    assert all(map(is_hidden, hidden))
    assert not any(map(is_hidden, ("a.png", "a.", "_a.png", "MACOSX", "thumbs.png", "~a.png")))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_in_another_encoding_is_passed_over_and_told(tmp_path: Path) -> None:
    for name in (b"M\xfcller.png", b"a.png"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"")
    found = search_images(tmp_path)
    assert [path.name for path in found.images] == ["a.png"]
    told = str(found.passed_over)
    assert "no text in UTF-8" in told and "ller.png" in told
