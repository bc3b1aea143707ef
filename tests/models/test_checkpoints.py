"""Checkpoints: read without running code, recognised by content, matched strictly both ways; refused with advice."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_detectors import tiny_detector

from kernel.errors import InputError
from kernel.files import file_sha256
from kernel.models.checkpoints import (
    is_optional_key,
    load_detector,
    load_strictly,
    read_claimed,
    read_state_dict,
    recognise_checkpoint,
    recognise_state_dict,
    shapes_of,
    shorten_list,
)
from kernel.models.configs import DetectorSpec
from kernel.models.detectors import build_detector

pytestmark = pytest.mark.usefixtures("wheels_site")

SHAPES_FILE = Path(__file__).parents[1] / "goldens" / "state_dict_shapes.json.gz"
SHAPES: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress(SHAPES_FILE.read_bytes()))
State = dict[str, torch.Tensor]
SMALL_STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(3)}


@pytest.fixture(scope="module")
def cascade_state(wheels_site: Path) -> State:
    """Every tensor of a tiny cascade. Not to be changed: copy it."""
    return dict(tiny_detector("cascade").state_dict())


@pytest.fixture(scope="module")
def cascade_file(cascade_state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights as they are published: a PyTorch file, `module.` before every key."""
    path = tmp_path_factory.mktemp("weights") / "cascade_resnet18_narrow_0.pt"
    torch.save(prefixed(cascade_state), path)
    return path


def prefixed(state: Mapping[str, torch.Tensor]) -> State:
    return {f"module.{key}": value for key, value in state.items()}


def save_safetensors(state: State, path: Path) -> Path:
    path = path.with_suffix(".safetensors")
    safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def save_plain(state: State, path: Path) -> Path:
    torch.save(state, path)
    return path


def save_legacy(state: State, path: Path) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def save_parallel(state: State, path: Path) -> Path:
    return save_plain(prefixed(state), path)


def save_nested(state: State, path: Path) -> Path:
    torch.save({"meta": {"epoch": 12, "mmdet": "2.17.0"}, "state_dict": state}, path)
    return path


def save_nested_parallel(state: State, path: Path) -> Path:
    return save_nested(prefixed(state), path.with_suffix(".pth"))


SAVERS = [save_safetensors, save_plain, save_legacy, save_parallel, save_nested, save_nested_parallel]


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", SAVERS)
def test_every_format_reads_as_the_same_bare_state_dict(save: Callable[[State, Path], Path], tmp_path: Path) -> None:
    found = read_state_dict(save(dict(SMALL_STATE), tmp_path / "weights.pt"))
    assert set(found) == set(SMALL_STATE)
    for key, value in SMALL_STATE.items():
        assert torch.equal(found[key], value)
        assert found[key].device.type == "cpu"


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_suffixes_of_pytorch_files(suffix: str, tmp_path: Path) -> None:
    path = save_plain(dict(SMALL_STATE), tmp_path / f"weights{suffix}")
    assert set(read_state_dict(path)) == set(SMALL_STATE)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"no weight file /nowhere/weights\.pt.*manifest"):
        read_state_dict(Path("/nowhere/weights.pt"))


def test_a_folder_is_no_weight_file(tmp_path: Path) -> None:
    folder = tmp_path / "weights.pt"
    folder.mkdir()
    with pytest.raises(InputError, match="no weight file"):
        read_state_dict(folder)


@pytest.mark.parametrize("name", ["weights.h5", "weights.onnx", "weights", "weights.PT"])
def test_an_unknown_suffix_is_refused_with_the_allowed_ones(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"anything")
    with pytest.raises(InputError, match=r"\.safetensors, \.pt, \.pth, \.bin"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([torch.zeros(1)], "holds list"),
        (torch.zeros(1), "holds Tensor"),
        ({}, "not a state dict"),
        ({"state_dict": {}}, "not a state dict"),
        ({"a": torch.zeros(1), "epoch": 3}, "'epoch' is no named tensor"),
        ({"state_dict": {"a": [1.0]}}, "'a' is no named tensor"),
        ({"model": {"a": [1.0]}}, "'model' is no named tensor"),
    ],
)
def test_anything_but_a_state_dict_is_refused(saved: Any, message: str, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=message):
        read_state_dict(tmp_path / "weights.pt")


def test_a_name_with_and_without_prefix_is_refused(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "a": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"both with and without 'module\.'"):
        read_state_dict(tmp_path / "weights.pt")


def test_keys_that_are_no_text_are_refused(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(InputError):
        read_state_dict(tmp_path / "weights.pt")


def test_an_empty_safetensors_file_of_no_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a state dict"):
        read_state_dict(save_safetensors({}, tmp_path / "weights"))


class RunsCode:
    """An object whose unpickling makes a file: what a malicious checkpoint would do worse."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))


def dump_raw(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def dump_zip(value: Any, path: Path) -> None:
    torch.save(value, path)


def dump_legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("dump", [dump_raw, dump_zip, dump_legacy])
@pytest.mark.parametrize("nested", [False, True])
def test_a_file_that_wants_to_run_code_is_refused_and_does_not(
    dump: Callable[[Any, Path], None], nested: bool, tmp_path: Path
) -> None:
    path, mark = tmp_path / "weights.pt", tmp_path / "the code ran"
    state = {"a": torch.zeros(1), "b": RunsCode(mark)}
    dump({"state_dict": state} if nested else state, path)
    if dump is dump_raw:
        pickle.loads(path.read_bytes())["state_dict" if nested else "b"]
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()  # loaded carelessly, it does run
    mark.unlink()
    with pytest.raises(InputError, match=r"would run code when loaded.*refused"):
        read_state_dict(path)
    with pytest.raises(InputError, match="refused"):
        read_claimed(path, "cascade", "resnet18_narrow", file_sha256(path))
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"\x00", b"not weights at all\n", b"\x80\x02", b"PK\x03\x04", b"{}" * 50])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_is_no_weight_file_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="weights"):
        read_state_dict(path)


@pytest.mark.parametrize("save", [save_safetensors, save_plain, save_legacy])
def test_a_file_cut_short_anywhere_is_refused(save: Callable[[State, Path], Path], tmp_path: Path) -> None:
    path = save(dict(SMALL_STATE), tmp_path / "weights.pt")
    content = path.read_bytes()
    cuts = np.linspace(0, len(content) - 1, 60).astype(int)
    for cut in cuts.tolist():
        path.write_bytes(content[:cut])
        with pytest.raises(InputError, match="weights"):
            read_state_dict(path)


@pytest.mark.parametrize(
    ("save", "start", "stop"),
    [(save_safetensors, b"", b"}}"), (save_plain, b"\x80\x02", b"PK")],
)
def test_a_damaged_byte_of_the_header_gives_tensors_or_an_input_error(
    save: Callable[[State, Path], Path], start: bytes, stop: bytes, tmp_path: Path
) -> None:
    """The header: safetensors' JSON, or the pickle in PyTorch's zip file, which is not compressed."""
    path = save(dict(SMALL_STATE), tmp_path / "weights.pt")
    content = path.read_bytes()
    first = content.index(start)
    refused = 0
    for place in range(first, content.index(stop, first)):
        for byte in b"h\xff":  # the pickle's "get from the memo", and no operation at all
            path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            try:
                state = read_state_dict(path)
            except InputError as error:
                assert str(path) in str(error)
                refused += 1
            else:
                assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert refused > 100


# --- recognising -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_each_published_combination_is_recognised_by_its_shapes(name: str) -> None:
    kind, encoder = name.split("_", 1)
    shapes = {key: tuple(shape) for key, shape in SHAPES[name].items()}
    assert recognise_state_dict(shapes, "here") == DetectorSpec(kind, encoder, num_classes=8)


@pytest.mark.parametrize("kind", ["maskrcnn", "cascade", "htc"])
@pytest.mark.parametrize("encoder", ["resnet18_narrow", "efficientnet_lite0"])
def test_narrow_detectors_are_recognised_with_their_widths(kind: str, encoder: str) -> None:
    spec = DetectorSpec(kind, encoder, num_classes=3, neck_channels=16, fc_channels=24, mask_channels=12)
    with torch.device("meta"):
        detector = build_detector(spec)
    assert recognise_state_dict(shapes_of(detector.state_dict()), "here") == spec


def test_an_unknown_encoder_is_refused_with_the_known_ones() -> None:
    shapes = {key: tuple(shape) for key, shape in SHAPES["cascade_resnet50"].items()}
    del shapes["backbone.layer1.0.conv2.weight"]
    with pytest.raises(InputError, match=r"^here: .*encoder.*efficientnet_b4.*resnext50"):
        recognise_state_dict(shapes, "here")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("cascade_resnet50", "roi_head.mask_head.0.conv_logits.weight"),
        ("maskrcnn_resnet50", "roi_head.bbox_head.fc_cls.weight"),
        ("maskrcnn_resnet50", "roi_head.bbox_head.shared_fcs.0.weight"),
        ("htc_resnet50", "neck.fpn_convs.0.conv.weight"),
    ],
)
def test_missing_heads_are_named(name: str, key: str) -> None:
    shapes = {each: tuple(shape) for each, shape in SHAPES[name].items() if each != key}
    with pytest.raises(InputError, match=f"^here: .*lacks {key}$"):
        recognise_state_dict(shapes, "here")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("roi_head.bbox_head.fc_cls.weight", ()),
        ("roi_head.bbox_head.fc_cls.weight", (0, 1024)),
        ("roi_head.mask_head.conv_logits.weight", (8,)),
    ],
)
def test_heads_of_impossible_shapes_are_refused(key: str, shape: tuple[int, ...]) -> None:
    shapes = {each: tuple(dims) for each, dims in SHAPES["maskrcnn_resnet50"].items()}
    with pytest.raises(InputError, match=r"^here: "):
        recognise_state_dict({**shapes, key: shape}, "here")


def test_a_file_is_recognised_whatever_its_name(cascade_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "maskrcnn_resnet50.pt"
    path.write_bytes(cascade_file.read_bytes())
    spec = recognise_checkpoint(path)
    assert (spec.kind, spec.encoder, spec.num_classes) == ("cascade", "resnet18_narrow", 3)


# --- matching ----------------------------------------------------------------------------------------------------


def test_strict_loading_copies_every_tensor(cascade_state: State) -> None:
    detector = tiny_detector("cascade", seed=1)
    load_strictly(detector, cascade_state, "here")
    found = detector.state_dict()
    assert all(torch.equal(found[key], value) for key, value in cascade_state.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("rpn_head.rpn_cls.bias"), "missing: rpn_head.rpn_cls.bias$"),
        (lambda state: state.update(extra=torch.zeros(1)), "unknown: extra$"),
        (
            lambda state: state.update({"rpn_head.rpn_cls.bias": torch.zeros(4)}),
            r"of another shape: rpn_head.rpn_cls.bias \(4,\) instead of \(3,\)$",
        ),
        (
            lambda state: state.update({"rpn_head.rpn_cls.bias": torch.zeros(3, 1)}),
            r"of another shape: rpn_head.rpn_cls.bias \(3, 1\) instead of \(3,\)$",
        ),
        (
            lambda state: state.update({"rpn_head.rpn_cls.bias": torch.tensor([0.0, torch.nan, 0.0])}),
            "not finite: rpn_head.rpn_cls.bias$",
        ),
        (
            lambda state: state.update({"backbone.bn1.running_var": torch.full((24,), torch.inf)}),
            "not finite: backbone.bn1.running_var$",
        ),
        (
            lambda state: [state.pop(key) for key in list(state) if key.startswith("neck.")],
            r"missing: (neck\.[\w.]+, ){4}neck\.[\w.]+ and 11 more$",
        ),
    ],
    ids=["missing", "unknown", "shape", "rank", "NaN", "infinite", "many"],
)
def test_mismatches_are_refused_and_named(change: Callable[[State], Any], message: str, cascade_state: State) -> None:
    state = dict(cascade_state)
    change(state)
    detector = tiny_detector("cascade", seed=1)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    with pytest.raises(InputError, match=f"^here does not fit the detector: {message}"):
        load_strictly(detector, state, "here")
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


def test_all_sorts_of_mismatch_are_told_at_once(cascade_state: State) -> None:
    state = dict(cascade_state, extra=torch.tensor(torch.nan))
    del state["rpn_head.rpn_cls.bias"]
    with pytest.raises(InputError, match=r"missing: rpn_head.rpn_cls.bias; unknown: extra; not finite: extra$"):
        load_strictly(tiny_detector("cascade"), state, "here")


@pytest.mark.parametrize(
    ("key", "optional"),
    [
        ("backbone.effnet.conv_head.weight", True),
        ("backbone.effnet.bn2.running_mean", True),
        ("backbone.effnet.classifier.bias", True),
        ("backbone.bn1.num_batches_tracked", True),
        ("backbone.effnet.bn1.weight", False),
        ("backbone.effnet.conv_stem.weight", False),
        ("backbone.effnet.blocks.0.0.bn2.weight", False),
        ("backbone.layer1.0.bn2.weight", False),
        ("roi_head.classifier.weight", False),
    ],
)
def test_only_what_no_detector_runs_is_optional(key: str, optional: bool) -> None:
    assert is_optional_key(key) is optional


def test_optional_keys_may_be_absent_or_in_excess(cascade_state: State) -> None:
    without = {key: value for key, value in cascade_state.items() if not key.endswith("num_batches_tracked")}
    assert len(without) < len(cascade_state)
    excess = {"backbone.effnet.classifier.weight": torch.zeros(1000, 8)}
    detector = tiny_detector("cascade", seed=1)
    load_strictly(detector, {**without, **excess}, "here")
    assert torch.equal(detector.rpn_head.rpn_cls.weight, cascade_state["rpn_head.rpn_cls.weight"])


def test_a_neck_with_group_norm_is_recognised_and_loaded(tmp_path: Path) -> None:
    spec = DetectorSpec(
        "maskrcnn", "resnet18_narrow", 3, neck_channels=32, fc_channels=8, mask_channels=8, neck_norm=True
    )
    state = build_detector(spec).state_dict()
    assert recognise_state_dict(shapes_of(state), "here") == spec
    safetensors.torch.save_file(state, tmp_path / "member.safetensors")
    loaded = load_detector(tmp_path / "member.safetensors", "maskrcnn", "resnet18_narrow")
    assert loaded.neck.lateral_convs[0].gn.num_groups == 32
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_the_unused_classifier_of_an_efficientnet_may_be_absent() -> None:
    spec = DetectorSpec("maskrcnn", "efficientnet_lite0", 3, 8, 8, 8)
    detector = build_detector(spec)
    unused = ("backbone.effnet.conv_head.", "backbone.effnet.bn2.", "backbone.effnet.classifier.")
    state = {key: torch.zeros_like(value) for key, value in detector.state_dict().items()}
    kept = {key: value for key, value in state.items() if not key.startswith(unused)}
    assert len(kept) == len(state) - 8
    load_strictly(detector, kept, "here")
    assert detector.backbone.effnet.conv_stem.weight.abs().max() == 0
    assert detector.backbone.effnet.classifier.weight.abs().max() > 0


@pytest.mark.parametrize(
    ("count", "expected"), [(0, ""), (1, "0"), (5, "0, 1, 2, 3, 4"), (7, "0, 1, 2, 3, 4 and 2 more")]
)
def test_long_lists_are_shortened(count: int, expected: str) -> None:
    assert shorten_list(map(str, range(count))) == expected


# --- loading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", SAVERS)
def test_a_detector_is_loaded_ready_for_use(
    save: Callable[[State, Path], Path], cascade_state: State, tmp_path: Path
) -> None:
    path = save(cascade_state, tmp_path / "weights.pt")
    detector = load_detector(path, "cascade", "resnet18_narrow")
    assert not any(module.training for module in detector.modules())
    found = detector.state_dict()
    assert set(found) == set(cascade_state)
    for key, value in cascade_state.items():
        assert torch.equal(found[key], value)
        assert found[key].device.type == "cpu"


def test_half_precision_weights_become_float32(cascade_state: State, tmp_path: Path) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in cascade_state.items()}
    detector = load_detector(save_safetensors(half, tmp_path / "weights"), "cascade", "resnet18_narrow")
    weight = detector.rpn_head.rpn_cls.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, half["rpn_head.rpn_cls.weight"].float())


@pytest.mark.parametrize(
    ("kind", "encoder"), [("htc", "resnet18_narrow"), ("cascade", "resnet50"), ("maskrcnn", "efficientnet_b4")]
)
def test_a_claim_that_disagrees_names_both(kind: str, encoder: str, cascade_file: Path) -> None:
    with pytest.raises(
        InputError, match=f"holds cascade resnet18_narrow, the manifest says {kind} {encoder}"
    ) as caught:
        load_detector(cascade_file, kind, encoder)
    assert str(cascade_file) in str(caught.value)


def test_an_altered_file_is_refused_with_both_sums(cascade_file: Path, tmp_path: Path) -> None:
    content = bytearray(cascade_file.read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / cascade_file.name
    path.write_bytes(content)
    claimed, found = file_sha256(cascade_file), file_sha256(path)
    assert claimed != found
    with pytest.raises(InputError, match=f"was altered: its sha256 is {found}, the manifest says {claimed}"):
        read_claimed(path, "cascade", "resnet18_narrow", claimed)


def test_a_missing_file_is_told_as_missing_though_a_sum_is_claimed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weight file"):
        read_claimed(tmp_path / "weights.pt", "cascade", "resnet18_narrow", "0" * 64)


def test_weights_that_are_not_finite_are_refused_by_file(cascade_state: State, tmp_path: Path) -> None:
    state = dict(cascade_state)
    state["neck.fpn_convs.0.conv.bias"] = torch.full((16,), torch.nan)
    path = save_safetensors(state, tmp_path / "weights")
    with pytest.raises(
        InputError, match=r"weights\.safetensors does not fit.*not finite: neck\.fpn_convs\.0\.conv\.bias"
    ):
        load_detector(path, "cascade", "resnet18_narrow")


def test_heads_of_different_widths_in_one_file_are_refused(cascade_state: State, tmp_path: Path) -> None:
    """What decides the spec is stage 0; a later stage that does not fit must not pass."""
    state = dict(cascade_state)
    state["roi_head.bbox_head.2.fc_cls.weight"] = torch.zeros(9, 16)
    state["roi_head.bbox_head.2.fc_cls.bias"] = torch.zeros(9)
    with pytest.raises(InputError, match=r"of another shape: roi_head\.bbox_head\.2\.fc_cls\.weight \(9, 16\)"):
        load_detector(save_parallel(state, tmp_path / "weights.pt"), "cascade", "resnet18_narrow")
