"""Images are known by their files' names, in whatever form tables and systems have these."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from kernel.data.image_names import images_by_name, known_name, present_form
from kernel.errors import InputError

NFC, NFD = (unicodedata.normalize(form, "Zellé_Å") for form in ("NFC", "NFD"))


def test_images_are_known_by_either_unicode_form(tmp_path: Path) -> None:
    for form, other in ((NFC, NFD), (NFD, NFC)):
        folder = tmp_path / form.encode("ascii", "namereplace").decode("ascii").replace("\\", "")
        folder.mkdir()
        path = folder / f"{form}.png"
        path.touch()
        paths = images_by_name([path])
        assert paths == {NFC: path}
        assert present_form(folder / f"{other}.png") == path == present_form(path)
    assert present_form(tmp_path / f"{NFC}.tif") == tmp_path / f"{NFC}.tif"
    with pytest.raises(InputError, match="two images have the same name"):
        images_by_name([tmp_path / f"{NFC}.png", tmp_path / f"{NFD}.png"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("abc", "abc"),
        ("abc.png", "abc"),
        ("train/abc.TIF", "abc"),
        ("C:\\data\\train\\abc.png", "abc"),
        ("..\\abc", "abc"),
        ("x.tif", "x.tif"),  # as it is, for there is such a name: of x.tif.png
        ("x.tif.png", "x.tif"),
        ("x.1", "x.1"),
        ("abc.1", "abc.1"),  # no image's ending: another image
        ("other.png", "other.png"),
        ("7.0", "7"),
        ("7.00", "7.00"),
        ("", ""),
        ("'-DOX 1", "-DOX 1"),
        ("'=DOX 2.tif", "=DOX 2"),
        ("'+a", "'+a"),  # as it is, for there is such a name
        ("'@b", "'@b"),  # another image
        ("ctrl/y", "ctrl_y"),
        ("all\\ctrl\\images\\y.tif", "ctrl_y"),
        ("'-ctrl/y", "-ctrl_y"),
        ("drug/y", "y"),
        ("drug/z", "drug/z"),  # another plate's
    ],
)
def test_an_id_is_matched_with_the_names_there_are(text: str, name: str) -> None:
    assert (
        known_name(
            text, {"abc", "x.tif", "x.1", "7", "-DOX 1", "=DOX 2", "+a", "'+a", "ctrl_y", "-ctrl_y", "y", "ctrl_z"}
        )
        == name
    )
