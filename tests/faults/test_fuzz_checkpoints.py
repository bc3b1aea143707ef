"""Fuzzes of weight files: damaged, of odd tensors and containers. Each is a checkpoint, or refused in a line."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from faults.counting import count_input, torture
from hypothesis import given
from odd_weights import save_with_class

from kernel.errors import InputError
from kernel.models.checkpoints import Checkpoint, checkpoint_of, read_checkpoint, recognise_state_dict, shapes_of
from kernel.models.configurations import configured_stem_stride
from kernel.models.pickles import CodeFreeReader

STATE = {
    "backbone.conv1.weight": torch.arange(24.0).view(2, 3, 2, 2),
    "rpn_head.rpn_cls.bias": torch.ones(3),
    "backbone.bn1.num_batches_tracked": torch.tensor(7),
}


def saved(zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"meta": {"epoch": 1}, "state_dict": STATE}, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


WHOLE = {
    "zip.pt": saved(zipped=True),
    "legacy.pth": saved(zipped=False),
    "tensors.safetensors": safetensors.torch.save(STATE),
    "raw.bin": pickle.dumps({"a": [1, 2.0, "text", None]}),
}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with an object of mmengine's."""
    path = tmp_path_factory.mktemp("foreign") / "a.pth"
    save_with_class({"state_dict": STATE}, path)
    return path.read_bytes()


def check_reading(path: Path) -> None:
    """Read a file as the kernel does, and as convert does."""
    for read in (read_checkpoint, CodeFreeReader().read):
        try:
            found = read(path)
        except InputError as error:
            assert path.name in str(error) and "\n" not in str(error)
        else:
            assert not isinstance(found, Checkpoint) or all(
                isinstance(value, torch.Tensor) for value in found.state.values()
            )


@torture()
@given(data=st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject, foreign: bytes, tmp_path: Path) -> None:
    count_input("weight files, damaged")
    name = data.draw(st.sampled_from([*WHOLE, "foreign.pth"]))
    content = bytearray(WHOLE.get(name, foreign))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    (tmp_path / name).write_bytes(content)
    check_reading(tmp_path / name)


@torture()
@given(content=st.binary(max_size=200), name=st.sampled_from(sorted(WHOLE)), magic=st.booleans())
def test_any_bytes_are_read_or_refused(content: bytes, name: str, magic: bool, tmp_path: Path) -> None:
    count_input("weight files, any bytes")
    (tmp_path / name).write_bytes((b"\x80\x02" if magic else b"") + content)
    check_reading(tmp_path / name)


tensors = st.builds(
    lambda dtype, shape: torch.zeros(shape).to(dtype),
    st.sampled_from([torch.float32, torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64]),
    st.lists(st.integers(0, 3), max_size=4),
)
parts = st.sampled_from(
    ["backbone", "neck", "rpn_head", "roi_head", "module", "model", "ema_model", "_orig_mod", "fc", ""]
)
keys = st.lists(parts, min_size=1, max_size=4).map(".".join) | st.text(max_size=8)
contents = st.recursive(
    tensors | st.integers() | st.text(max_size=20) | st.none(),
    lambda inner: st.dictionaries(keys | st.integers(), inner, max_size=6) | st.lists(inner, max_size=3),
    max_leaves=20,
)


@torture()
@given(content=contents, take=st.none() | keys)
def test_any_content_is_a_checkpoint_or_refused(content: Any, take: str | None) -> None:
    count_input("weight files, any content")
    try:
        found = checkpoint_of(content, content, "a.pt", take)
        recognise_state_dict(shapes_of(found.state), "a.pt")
    except InputError as error:
        assert str(error).startswith("a.pt: ")


@torture()
@given(
    st.recursive(
        st.text() | st.integers() | st.none(),
        lambda inner: st.dictionaries(st.sampled_from(["meta", "cfg", "config", "strides", "stem_stride", "x"]), inner)
        | st.lists(inner),
        max_leaves=10,
    )
)
def test_any_configuration_has_a_stride_or_none(configuration: Any) -> None:  # fmt: skip
    count_input("configurations")
    assert configured_stem_stride(configuration) in (None, 1, 2)


@torture()
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "backbone.conv1.weight",
                "backbone.layer1.0.conv2.weight",
                "backbone.effnet.conv_stem.weight",
                "roi_head.bbox_head.fc_cls.weight",
                "roi_head.bbox_head.0.fc_cls.weight",
                "neck.fpn_convs.0.conv.weight",
                "roi_head.bbox_head.shared_fcs.0.weight",
                "roi_head.mask_head.conv_logits.weight",
                "neck.lateral_convs.0.gn.weight",
            ]
        ),
        st.lists(st.integers(0, 300), max_size=5).map(tuple),
    )
)
def test_any_shapes_are_a_detector_or_refused(shapes: dict[str, tuple[int, ...]]) -> None:  # fmt: skip
    count_input("shapes")
    for blocks in range(2):
        shapes |= {f"backbone.layer{stage}.{block}.conv2.weight": (24, 24, 3, 3) for stage in (1, 2, 3, 4)
                   for block in range(blocks + 1)}  # fmt: skip
        try:
            assert recognise_state_dict(shapes, "a.pt").num_classes > 0
        except InputError as error:
            assert str(error).startswith("a.pt: ")
