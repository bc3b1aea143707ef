"""The manifest's reader: what it accepts, and that what is wrong is told with its place; the schema says the same."""

from __future__ import annotations

import copy
import gzip
import json
import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kernel.errors import InputError
from kernel.manifest.reader import parse_manifest
from kernel.manifest.types import (
    ACCELERATOR_NAMES,
    ENCODER_NAMES,
    KIND_NAMES,
    MEMBER_KINDS,
    PLAIN_ENCODER,
    KernelIdentity,
    Manifest,
    MemberEntry,
    manifest_to_json,
)
from kernel.settings import (
    CELL_TYPES,
    CLS_USE,
    DEFAULT_THRESHOLDS,
    CellTypeRule,
    EnsembleSettings,
    StageWeights,
    Thresholds,
    types_differ,
)

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "bundle" / "manifest.schema.json").read_text(encoding="utf-8"))
PUBLISHED = (ROOT / "weights_manifest.json").read_text(encoding="utf-8")

MINIMAL: dict[str, Any] = {
    "kernel": {"id": "me/some-kernel", "title": "Some kernel", "competition": "some-competition"},
    "wheels_dataset": "me/wheels",
    "members": [
        {
            "name": "one",
            "kind": "htc",
            "encoder": "resnet50",
            "use_for": ["shsy5y", "astro", "cort"],
            "dataset": "me/weights",
        },
        {
            "name": "two",
            "kind": "cascade",
            "encoder": "resnet50",
            "use_for": ["astro", "cort", "shsy5y"],
            "dataset": "me/weights",
        },
    ],
}


def changed(path: str, value: Any = None, remove: bool = False) -> dict[str, Any]:
    """MINIMAL with one place changed: `members.0.kind`."""
    data = copy.deepcopy(MINIMAL)
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = data
    for part in above:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    if remove:
        del place[last]
    else:
        place[last] = value
    return data


def test_published_ensemble() -> None:
    manifest = parse_manifest(PUBLISHED, "weights_manifest.json")
    assert len(manifest.members) == 13
    assert [len(manifest.members_for(cell_type)) for cell_type in CELL_TYPES] == [6, 6, 6]
    assert types_differ(member.use_for for member in manifest.members) and len(manifest.members_for(CLS_USE)) == 3
    assert manifest.ensemble == EnsembleSettings()
    assert manifest.all_weight_datasets == (
        "theoviel/sartorius-cps-ens11",
        "theoviel/sartorius-cps-ens10",
        "theoviel/sartorius-cps-last",
    )
    kinds = {cell_type: [(m.kind, m.encoder) for m in manifest.members_for(cell_type)] for cell_type in CELL_TYPES}
    assert sorted(kinds["cort"]) == [
        ("cascade", "efficientnet_b5"),
        ("cascade", "efficientnet_b6"),
        ("cascade", "resnext101"),
        ("htc", "efficientnet_b4"),
        ("maskrcnn", "efficientnet_b5"),
        ("maskrcnn", "resnext101"),
    ]


def test_minimal_manifest_takes_defaults() -> None:
    manifest = parse_manifest(json.dumps(MINIMAL), "minimal")
    assert manifest.kernel == KernelIdentity("me/some-kernel", "Some kernel", "some-competition")
    assert manifest.ensemble.thresholds == DEFAULT_THRESHOLDS
    assert not types_differ(member.use_for for member in manifest.members)
    assert manifest.members == manifest.members_for("astro")
    assert manifest.all_weight_datasets == ("me/weights",)


def test_thresholds_not_given_are_those_of_their_type() -> None:
    data = changed("ensemble.thresholds", {"astro": {"confidence": 0.6}})
    thresholds = parse_manifest(json.dumps(data), "m").ensemble.thresholds
    assert thresholds["astro"].confidence == 0.6
    assert thresholds["astro"].corrupt and thresholds["astro"].rpn_nms_pre == 2000
    assert thresholds["cort"] == DEFAULT_THRESHOLDS["cort"]


@pytest.mark.parametrize(
    "text",
    [PUBLISHED, json.dumps(MINIMAL), json.dumps(changed("members.0.weights", {"boxes": 2}))],
    ids=["published", "minimal", "weighted"],
)
def test_round_trip(text: str) -> None:
    manifest = parse_manifest(text, "m")
    assert parse_manifest(manifest_to_json(manifest), "again") == manifest


NETWORK = {"name": "masks", "kind": "unet", "encoder": "plain", "use_for": list(CELL_TYPES), "dataset": "me/weights"}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, StageWeights(0, 0, 1)),
        ({"weights": {"masks": 3}}, StageWeights(0, 0, 3)),
        ({"weights": {"proposals": 0, "boxes": 0}}, StageWeights(0, 0, 1)),
    ],
)
def test_a_mask_network_counts_for_masks_alone(weights: dict[str, Any], expected: StageWeights) -> None:
    manifest = parse_manifest(json.dumps(MINIMAL | {"members": [NETWORK | weights, *MINIMAL["members"]]}), "m")
    assert [member.weights for member in manifest.members] == [expected, StageWeights(), StageWeights()]
    assert parse_manifest(manifest_to_json(manifest), "again") == manifest


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([NETWORK], "members[0].weights.proposals: all members used for 'shsy5y' have 0 here"),
        ([NETWORK | {"weights": {"boxes": 1}}], "members[0].weights: a unet makes masks alone: give 0 for proposals"),
        ([NETWORK | {"encoder": "resnet50"}], "members[0].encoder: found \"resnet50\" for a unet; 'plain' is that"),
        ([MINIMAL["members"][0] | {"encoder": "plain"}], "members[0].encoder: found \"plain\" for a htc; 'plain' is"),
    ],
)
def test_what_a_mask_network_cannot_be_is_told(members: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(InputError) as error:
        parse_manifest(json.dumps(MINIMAL | {"members": members}), "m")
    assert problem in str(error.value)


PER_FOLD = MINIMAL["members"][0] | {"file": "one_{fold}.pt"}
WRONG = [
    (changed("membres", []), "membres: unknown key; did you mean 'members'?"),
    (changed("kernel.titel", ""), "kernel.titel: unknown key; did you mean 'title'?"),
    (changed("members.1.qqq", 1), "members[1].qqq: unknown key; known are name, kind"),
    (changed("_comment", "mine"), "_comment: unknown key; words for people go into `notes`"),
    (changed("members.1.//", "mine"), "members[1].//: unknown key; words for people go into `notes`"),
    (changed("kernel.remark", "mine"), "kernel.remark: unknown key; known are id"),
    (changed("members", remove=True), "members: missing"),
    (changed("members", []), "members: found [], expected a list of at least one member"),
    (changed("members", None), "members: found null"),
    (changed("members.0", 3), "members[0]: found 3, expected an object"),
    (changed("members.0.kind", remove=True), "members[0].kind: missing: give one of maskrcnn, cascade, htc"),
    (changed("members.0.kind", "mask_rcnn"), "members[0].kind: found \"mask_rcnn\", expected one of maskrcnn"),
    (changed("members.0.encoder", "resnext101_64x5"), "did you mean 'resnext101_64x4'?"),
    (changed("members.0.encoder", 50), "members[0].encoder: found 50"),
    (changed("members.0.name", "a b"), "members[0].name: found"),
    (changed("members.1.name", "one"), "members[1].name: 'one' is the name of members[0] as well"),
    (changed("members.0.use_for", []), "members[0].use_for: found []"),
    (changed("members.0.use_for", "cort"), "members[0].use_for: found \"cort\", expected a list"),
    (changed("members.0.use_for", ["cort", "corti"]), "members[0].use_for[1]: found \"corti\""),
    (changed("members.0.use_for", ["cort", "cort"]), "members[0].use_for[1]: 'cort' is listed twice"),
    (changed("members.0.use_for", ["cort"]), "add 'cls' to the `use_for` of at least one"),
    (changed("members.0.dataset", "no slug"), "members[0].dataset: found \"no slug\", expected a dataset as"),
    (changed("members.0.dataset", "https://kaggle.com/datasets/me/weights"), "members[0].dataset: found"),
    (changed("members.0.dataset", None), "members[0].dataset: 'one' names no dataset"),
    (changed("members.0.file", "a/../b.pt"), "members[0].file: found"),
    (changed("members.0.file", "weights.zip"), "ending in .safetensors, .pt, .pth, .bin"),
    (changed("members.0.file", "a_{folds}.pt"), "members[0].file: 'a_{folds}.pt' holds braces"),
    (changed("members.0.file", "a_{fold.pt"), "members[0].file: 'a_{fold.pt' holds braces"),
    (changed("members.0", PER_FOLD | {"sha256": "0" * 64}), "members[0].sha256: 'one_{fold}.pt' stands for a file per"),
    (changed("members.0.sha256", "abc"), "members[0].sha256: found \"abc\", expected the file's SHA-256"),
    (changed("members.0.sha256", "0" * 64), "members[0].sha256: given without `file`"),
    (changed("members.0.weights", 2), "members[0].weights: found 2, expected an object"),
    (changed("members.1.weights", {"masks": -1}), "members[1].weights.masks: found -1, expected a number from 0"),
    (changed("members.1.weights", {"boxes": "2"}), "members[1].weights.boxes: found \"2\", expected a number"),
    (changed("members.0.weights", {"mask": 1}), "members[0].weights.mask: unknown key; did you mean 'masks'?"),
    (changed("wheels_dataset", "me/abc"), "wheels_dataset: found"),
    (changed("weight_datasets", "me/weights"), "weight_datasets: found \"me/weights\", expected a list"),
    (changed("weight_datasets", ["me/weights", 3]), "weight_datasets[1]: found 3"),
    (changed("kernel", []), "kernel: found [], expected an object"),
    (changed("kernel.id", "kernel"), "kernel.id: found \"kernel\", expected the kernel as owner/slug"),
    (changed("kernel.title", "abc"), "kernel.title: found \"abc\", expected a title of at least 5"),
    (changed("kernel.title", "Größen"), "kernel.title: found"),
    (changed("kernel.title", "abc\tdefgh"), "kernel.title: found"),
    (changed("kernel.title", "    abc    "), "kernel.title: found"),
    (changed("members.0.encoder", "plain"), "members[0].encoder: found"),
    (changed("members.0.kind", "unet"), "members[0].encoder: found"),
    (changed("kernel.accelerator", "NvidiaTeslaP100"), "expected one of NvidiaTeslaT4"),
    (changed("kernel.private", "yes"), "kernel.private: found \"yes\", expected true or false"),
    (changed("time_limit_hours", True), "time_limit_hours: found true"),
    (changed("dtype", "half"), 'dtype: found "half", expected one of float32'),
    (changed("time_margin_hours", 9), "time_margin_hours: 9 leaves nothing of time_limit_hours 9"),
    (changed("ensemble", 1), "ensemble: found 1, expected an object"),
    (changed("ensemble.num_classes", 8), "ensemble.num_classes: found 8, expected 3"),
    (changed("ensemble.thresholds", []), "ensemble.thresholds: found []"),
    (changed("ensemble.thresholds.cortex", {}), "ensemble.thresholds.cortex: unknown cell type; known are shsy5y"),
    (changed("ensemble.thresholds.cort", {"confidense": 1}), "unknown key; did you mean 'confidence'?"),
    (changed("ensemble.thresholds.cort", {"confidence": 1.5}), "found 1.5, expected a number from 0 to 1"),
    (changed("ensemble.thresholds.cort", {"rpn_nms_pre": 10.5}), "found 10.5, expected an integer from 1"),
    (changed("ensemble.cell_type_rule", {"score": "high"}), "ensemble.cell_type_rule.score: found \"high\""),
    ([], "the manifest: found [], expected an object"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "told"), WRONG, ids=[told for _, told in WRONG])
def test_what_is_wrong_is_told(data: Any, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        parse_manifest(json.dumps(data), "mine.json")
    assert str(caught.value).startswith("mine.json: ")


def test_no_member_for_a_type() -> None:
    data = changed("members.0.use_for", ["shsy5y", "cls"])
    data["members"][1]["use_for"] = ["cort"]
    with pytest.raises(InputError, match="none is used for 'astro'"):
        parse_manifest(json.dumps(data), "m")


def test_no_first_pass_is_asked_for_where_members_do_not_differ() -> None:
    data = changed("members.0.use_for", ["shsy5y", "cort"])
    data["members"][1]["use_for"] = ["shsy5y", "cort"]
    with pytest.raises(InputError, match="none is used for 'astro'") as caught:
        parse_manifest(json.dumps(data), "m")
    assert CLS_USE not in str(caught.value)


def test_weights_not_given_are_one() -> None:
    members = parse_manifest(json.dumps(changed("members.1.weights", {"boxes": 2, "masks": 0.5})), "m").members
    assert members[0].weights == StageWeights(1, 1, 1)
    assert members[1].weights == StageWeights(1, 2, 0.5)


def test_a_stage_without_weight_is_told_once_for_each_type() -> None:
    data = changed("members.0.weights", {"masks": 0})
    parse_manifest(json.dumps(data), "m")  # the other member's masks count
    data["members"][1]["weights"] = {"masks": 0, "boxes": 0}
    with pytest.raises(InputError, match="3 problem") as caught:
        parse_manifest(json.dumps(data), "m")
    assert "members[0].weights.masks: all members used for 'astro' have 0 here" in str(caught.value)


def test_the_first_pass_needs_weights_as_well() -> None:
    data = changed("members.0.use_for", ["shsy5y", "astro", "cls"])
    data["members"][0]["weights"] = {"masks": 0}
    parse_manifest(json.dumps(data), "m")  # it makes no masks
    data["members"][0]["weights"] = {"proposals": 0}
    with pytest.raises(InputError, match=r"1 problem[^-]*- members\[0\].weights.proposals: all members used for 'cls'"):
        parse_manifest(json.dumps(data), "m")


def test_one_file_for_two_members() -> None:
    data = changed("members.0.file", "x.pt")
    data["members"][1]["file"] = "x.pt"
    with pytest.raises(InputError, match=r"members\[1\].file: 'x.pt' is the file of members\[0\] as well"):
        parse_manifest(json.dumps(data), "m")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{\n  "kernel": {,}', "m:2:14: not JSON"),
        ('{"kernel": 1, "kernel": 2}', "the key 'kernel' is given twice"),
        ('{"time_limit_hours": NaN}', "NaN is no JSON number"),
        ("", "m:1:1: not JSON: Expecting value; the file is empty"),
        ("  \n", "the file is empty"),
        ('{\n  // mine\n  "members": []}', "m:2:3: not JSON: Expecting property name"),
        ('{"members": [] # mine\n}', "JSON has no comments, they go into `notes`"),
        ('{"members": [1,\n]}', "no comma after the last entry"),
        ('{"members": [] , }', "no comma after the last entry"),
        ("{'members': []}", "quotes are plain double ones"),
        ('{"members": “x”}', "quotes are plain double ones"),
        ('{”members": []}', "quotes are plain double ones"),
    ],
)
def test_what_is_no_json_is_told(text: str, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        parse_manifest(text, "m")


def test_all_problems_are_told_at_once() -> None:
    data = changed("members.0.kind", "x")
    data["wheels_dataset"] = 3
    with pytest.raises(InputError, match="2 problem") as caught:
        parse_manifest(json.dumps(data), "m")
    assert "members[0].kind" in str(caught.value) and "wheels_dataset" in str(caught.value)


# The schema and the dataclasses.

PARTS = [
    (Manifest, SCHEMA, {"$schema"}),
    (KernelIdentity, SCHEMA["properties"]["kernel"], set()),
    (MemberEntry, SCHEMA["properties"]["members"]["items"], set()),
    (StageWeights, SCHEMA["properties"]["members"]["items"]["properties"]["weights"], set()),
    (EnsembleSettings, SCHEMA["properties"]["ensemble"], set()),
    (CellTypeRule, SCHEMA["properties"]["ensemble"]["properties"]["cell_type_rule"], set()),
    (Thresholds, SCHEMA["$defs"]["thresholds"], set()),
]


@pytest.mark.parametrize(("part", "schema", "extra"), PARTS, ids=[part.__name__ for part, _, _ in PARTS])
def test_schema_has_the_dataclass_fields(part: type, schema: dict[str, Any], extra: set[str]) -> None:
    assert set(schema["properties"]) == {field.name for field in fields(part)} | extra
    needed = {f.name for f in fields(part) if f.default is MISSING and f.default_factory is MISSING}
    assert set(schema.get("required", [])) == needed
    assert schema["additionalProperties"] is False
    assert all("description" in text or "$ref" in text for text in schema["properties"].values())


@pytest.mark.parametrize(("part", "schema"), [(part, schema) for part, schema, _ in PARTS if part is not Thresholds])
def test_schema_has_the_same_defaults(part: type, schema: dict[str, Any]) -> None:
    for field in fields(part):
        told, default = schema["properties"][field.name], field.default
        if not is_dataclass(default):
            assert told.get("default", MISSING) == (list(default) if isinstance(default, tuple) else default)


def test_schema_has_the_thresholds_of_each_type() -> None:
    for name, told in SCHEMA["$defs"]["thresholds"]["properties"].items():
        values = {cell_type: getattr(DEFAULT_THRESHOLDS[cell_type], name) for cell_type in CELL_TYPES}
        listed = ", ".join(f"{json.dumps(value)} ({cell_type})" for cell_type, value in values.items())
        if "default" in told:
            assert set(values.values()) == {told["default"]}
        else:
            assert told["description"].endswith(f" By default {listed}.")


def test_schema_has_the_same_choices() -> None:
    member = SCHEMA["properties"]["members"]["items"]["properties"]
    assert member["kind"]["enum"] == list(MEMBER_KINDS)
    assert member["encoder"]["anyOf"][0]["enum"] == [*ENCODER_NAMES, PLAIN_ENCODER]
    assert member["use_for"]["items"]["enum"] == [*CELL_TYPES, CLS_USE]
    assert SCHEMA["properties"]["kernel"]["properties"]["accelerator"]["enum"] == list(ACCELERATOR_NAMES)
    assert list(SCHEMA["properties"]["ensemble"]["properties"]["thresholds"]["properties"]) == list(CELL_TYPES)


def schema_accepts(data: Any) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(data)


def test_schema_accepts_what_the_reader_accepts() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    per_fold = json.dumps(changed("members.0", PER_FOLD))
    assert parse_manifest(per_fold, "m").members[0].file == "one_{fold}.pt"
    for text in (PUBLISHED, json.dumps(MINIMAL), manifest_to_json(parse_manifest(PUBLISHED, "m")), per_fold):
        jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))


#: Rules over several fields, and paths' parts, are beyond a schema.
BEYOND_SCHEMA = (
    "as well",
    "at least one",
    "names no dataset",
    "without `file`",
    "a file per",
    "leaves nothing",
    "members[0].file: f",
)


@pytest.mark.parametrize("data", [data for data, told in WRONG if not any(part in told for part in BEYOND_SCHEMA)])
def test_schema_refuses_what_the_reader_refuses(data: Any) -> None:
    assert not schema_accepts(data)


def test_names_are_those_of_the_state_dicts() -> None:
    path = ROOT / "tests" / "goldens" / "state_dict_shapes.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        combinations = json.load(stream)
    for combination in combinations:
        kind, encoder = combination.split("_", 1)
        assert kind in KIND_NAMES and encoder in ENCODER_NAMES
