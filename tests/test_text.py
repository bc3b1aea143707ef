"""Text in the encodings that editors give it, by every reader of text that people write."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from kernel.data.json_files import read_json
from kernel.data.tables import read_table
from kernel.data.toml_files import read_toml
from kernel.errors import InputError
from kernel.manifest.edit import add_to_manifest, edited_manifest, read_text, replaced_manifest
from kernel.manifest.reader import read_manifest
from kernel.text import read_any_text

MANIFEST = Path(__file__).resolve().parents[1] / "weights_manifest.json"

#: How Notepad, PowerShell, Excel and iconv write a text.
WRITTEN = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16, big end first": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-16 without a mark": lambda text: text.encode("utf-16-le"),
    "utf-32": lambda text: text.encode("utf-32"),
}


@pytest.fixture(params=WRITTEN)
def encoding(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_reader_takes_every_encoding(tmp_path: Path, encoding: str) -> None:
    path, encode = tmp_path / "text", WRITTEN[encoding]
    for text in ('{"é": "µm"}', '{"é":\r\n"µm"}\r\n'):
        path.write_bytes(encode(text))
        assert read_any_text(path) == text
        assert read_json(path, "anything") == {"é": "µm"}
    path.write_bytes(encode('name = "µm"\r\n'))
    assert read_toml(path, "recipe") == {"name": "µm"}
    path.write_bytes(encode("id,unit\r\né,µm\r\n"))
    (row,) = read_table(path, ("id", "unit"), "units", "a table")
    assert (row.number, row.values) == (2, {"id": "é", "unit": "µm"})


def test_a_manifest_is_read_and_changed_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    path, text = tmp_path / "manifest.json", MANIFEST.read_text(encoding="utf-8")
    path.write_bytes(WRITTEN[encoding](text))
    manifest = read_manifest(path)
    assert manifest == read_manifest(MANIFEST)
    changed, difference = edited_manifest(path, switches={"bbox_nms": not manifest.ensemble.bbox_nms})
    assert sum(line.startswith(("+ ", "- ")) for line in difference.splitlines()) == 2
    with replaced_manifest(path, changed):
        pass
    assert read_text(path) == changed
    assert read_manifest(path).ensemble.bbox_nms is not manifest.ensemble.bbox_nms
    path.write_bytes(WRITTEN[encoding](text))
    add_to_manifest(path, json.loads(text)["members"][0])
    assert read_manifest(path) == manifest


def test_text_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "text"
    for content in (b'{"a": "\xe9"}', b"\xff\xfe{\0}", b"\x89PNG\r\n\x1a\n\0\0"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not JSON"):
            read_json(path, "anything")
        with pytest.raises(InputError, match="is a TOML file"):
            read_toml(path, "recipe")
        with pytest.raises(InputError, match=r"is no manifest|not JSON"):
            read_manifest(path)
        with pytest.raises(InputError, match=r"not a CSV file in UTF-8|lacks the columns id"):
            list(read_table(path, ["id"], "ids", "a table"))
