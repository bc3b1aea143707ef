"""What people hand to a build, hostile or by accident: one line each, exit code 2, and what was there stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_weights import load_demo

import build_kernel
from bundle.inline import inline_package
from kernel.__main__ import main
from kernel.data.json_files import read_json
from kernel.data.toml_files import read_toml
from kernel.errors import InputError
from kernel.manifest.reader import parse_manifest
from kernel.text import spreadsheet_cell

DEMO = build_kernel.ROOT / "bundle" / "synthetic"
MANIFEST: dict[str, Any] = json.loads((DEMO / "manifest.json").read_text(encoding="utf-8"))


def with_text(name: str, text: str) -> str:
    """The demo's manifest with a text in the place of a value."""
    return json.dumps({**MANIFEST, name: "PLACE"}).replace('"PLACE"', text)


HOSTILE_MANIFESTS = {
    "deep": ("[" * 100_000, "nested too deeply"),
    "deep, shown": (with_text("dtype", "[" * 990 + "]" * 990), "nested too deeply"),
    "deep schema": (with_text("$schema", "[" * 900 + "]" * 900), r"\$schema: found"),
    "digits": (with_text("time_limit_hours", "1" * 5000), "more digits than Python reads"),
    "many digits": (with_text("time_limit_hours", "1" * 4000), "time_limit_hours: found 1111"),
    "infinite": (with_text("time_limit_hours", "1e999"), "time_limit_hours: found Infinity"),
    "unknown keys": (json.dumps({**MANIFEST, **dict.fromkeys(map(str, range(100_000)), 1)}), "100000 problem"),
    "repeated keys": ("{" + ",".join(['"notes":""'] * 100_000) + "}", "'notes' is given twice"),
    "repeated uses": (with_text("members", json.dumps([{**MANIFEST["members"][0], "use_for": ["cort"] * 100_000}])),
                      "99999 problem"),
    "repeated members": (with_text("members", json.dumps(MANIFEST["members"][:1] * 20_000)), "19999 problem"),
    "half a character": (with_text("notes", r'"\ud83d"'), r"it holds \\ud83d, half a character"),
    "null": (with_text("members", json.dumps([{**MANIFEST["members"][0], "file": "a\0.pt"}])), r"members\[0\].file"),
    "long name": (with_text("members", json.dumps([{**MANIFEST["members"][0], "file": f"{'a' * 300}.pt"}])),
                  r"members\[0\].file"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_MANIFESTS)
def test_a_hostile_manifest_is_told_and_nothing_replaced(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, told = HOSTILE_MANIFESTS[name]
    with pytest.raises(InputError, match=told) as caught:
        parse_manifest(text, "mine.json")
    assert len(str(caught.value)) < 20_000
    (tmp_path / "mine.json").write_text(text, encoding="utf-8", newline="\n")
    (tmp_path / "kernel").mkdir()
    before = tmp_path / "kernel" / "kernel-metadata.json"
    before.write_text("{}", encoding="utf-8", newline="\n")
    assert build_kernel.main(["--manifest", str(tmp_path / "mine.json"), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'mine.json'}")
    assert before.read_text(encoding="utf-8") == "{}"


def test_whole_characters_of_two_escapes_are_right() -> None:
    assert parse_manifest(with_text("notes", r'"\ud83d\ude00 \\ud83d"'), "mine.json").notes == "\U0001f600 \\ud83d"


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a": ' * 100_000, '{"images": ' + "1" * 5000 + "}", r'{"a": "\udc00"}'],
    ids=["lists", "objects", "digits", "half a character"],
)
def test_hostile_annotations_are_told(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(text, encoding="utf-8", newline="\n")
    with pytest.raises(InputError, match=r"annotations\.json is not JSON: it "):
        read_json(path, "annotations")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    livecell = ["--livecell-annotations", str(path), "--livecell-images", str(tmp_path / "images")]
    assert main(["prepare", *livecell, "--out", str(tmp_path / "out")]) == 2
    assert "annotations.json is not JSON: it " in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 50_000, ".".join(["a"] * 50_000) + " = 1", "a = " + "{a=" * 5000, "a = " + "1" * 5000,
     ". ".join(['"a"'] * 50_000) + " = 1", '"' * 200_000, "[" + ".".join(["a"] * 50_000) + "]"],
    ids=["lists", "key", "tables", "digits", "quoted key", "quotes", "header"],
)  # fmt: skip
def test_hostile_recipes_are_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text, encoding="utf-8", newline="\n")
    with pytest.raises(InputError, match=r"r\.toml is no recipe, which is a TOML file: "):
        read_toml(tmp_path / "r.toml", "recipe")


@pytest.mark.parametrize(
    "line",
    ["+".join(["1"] * 3000), "+".join(["1"] * 900), "-" * 2000 + "1", "lambda: " * 300 + "1"],
    ids=["sum", "shorter sum", "signs", "lambdas"],
)
def test_modules_nested_too_deeply_are_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    main_text = '"""A kernel."""\n\nfrom kernel.deep import X\n\n\ndef main(text: str) -> int:\n    return X\n'
    (tmp_path / "kernel" / "main.py").write_text(main_text, encoding="utf-8", newline="\n")
    (tmp_path / "kernel" / "deep.py").write_text(f"X = {line}\n", encoding="utf-8", newline="\n")
    with pytest.raises(InputError, match=r"deep\.py.*nested too deeply"):
        inline_package(tmp_path / "kernel" / "main.py", {"TEXT": ""})


@pytest.mark.parametrize(
    ("value", "cell"),
    [("=1+1", "'=1+1"), ("+a", "'+a"), ("-cmd|x", "'-cmd|x"), ("@SUM(A1)", "'@SUM(A1)"), ("\tx", "'\tx"),
     ("a=1", "a=1"), ("-0.25", "-0.25"), ("-1e-05", "-1e-05"), ("", ""), (-3, -3), (None, None)],
)  # fmt: skip
def test_a_cell_for_a_spreadsheet_is_no_formula(value: Any, cell: Any) -> None:
    assert spreadsheet_cell(value) == cell


# What the script refuses


def agnostic(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As of reg_class_agnostic=True."""
    return {key: value[:4] if ".fc_reg." in key else value for key, value in state.items()}


def one_class(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rows = {".fc_cls.": 2, ".fc_reg.": 4, ".conv_logits.": 1}
    return {
        key: next((value[:count].clone() for part, count in rows.items() if part in key), value)
        for key, value in state.items()
    }


def usual_stem(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"state_dict": state, "meta": {"config": "a = dict(strides=[4, 8, 16, 32, 64])"}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (agnostic, "does not fit the detector: of another shape: roi_head.bbox_head.fc_reg.weight"),
        (one_class, "member maskrcnn knows 1 classes, the ensemble needs 3"),
        (usual_stem, "cannot be averaged: their strides differ"),
        (lambda state: {**state, "extra": torch.ones(1)}, "unknown: extra"),
    ],
)
def test_what_the_script_refuses_the_build_refuses(
    change: Callable[[dict[str, torch.Tensor]], Any],
    told: str,
    wheels_site: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("cascade", "htc"):
        (weights / f"{name}.safetensors").symlink_to(DEMO / "weights" / f"{name}.safetensors")
    torch.save(change(load_demo(DEMO / "weights" / "maskrcnn.safetensors")), weights / "maskrcnn.pth")
    first, *others = MANIFEST["members"]
    members = [{key: value for key, value in first.items() if key != "sha256"} | {"file": "maskrcnn.pth"}, *others]
    text = json.dumps({**MANIFEST, "members": members})
    (tmp_path / "mine.json").write_text(text, encoding="utf-8", newline="\n")
    arguments = [
        "--manifest",
        str(tmp_path / "mine.json"),
        "--weights-dir",
        str(weights),
        "--out",
        str(tmp_path / "out"),
    ]
    assert build_kernel.main(arguments) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()
