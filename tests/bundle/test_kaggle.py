"""Kernel and dataset metadata, tried with the real client against a stub of Kaggle's server on loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kaggle_stub import CLIENT, Dataset, StubServer, run_client, running_stub

from bundle.kaggle import (
    DATASET_METADATA_NAME,
    KERNEL_METADATA_NAME,
    check_dataset_folder,
    kernel_metadata,
    unverified_points,
)
from bundle.names import slug_of_title
from kernel.errors import InputError
from kernel.manifest.reader import parse_manifest

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = parse_manifest((ROOT / "weights_manifest.json").read_text(encoding="utf-8"), "weights_manifest.json")
needs_client = pytest.mark.skipif(not CLIENT.is_file(), reason="the kaggle client is not installed")


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with running_stub() as server:
        yield server


@needs_client
def test_push_as_the_server_sees_it(tmp_path: Path, stub: StubServer) -> None:
    folder = tmp_path / "kernel"
    folder.mkdir()
    (folder / "kernel.py").write_text("print('é')\n", encoding="utf-8")
    (folder / KERNEL_METADATA_NAME).write_text(json.dumps(kernel_metadata(MANIFEST)), encoding="utf-8")
    stub.datasets = {name: Dataset([{}]) for name in (*MANIFEST.weight_datasets, MANIFEST.wheels_dataset)}
    told = run_client(stub, tmp_path, "kernels", "push", "-p", str(folder))
    assert "Kernel version 1 successfully pushed" in told
    assert not re.search(r"title does not resolve|not valid|error", told), told
    [(path, request)] = [entry for entry in stub.requests if entry[0].endswith("SaveKernel")]
    assert path.endswith("/api/v1/kernels.KernelsApiService/SaveKernel")
    expected = {
        "slug": MANIFEST.kernel.id,
        "newTitle": MANIFEST.kernel.title,
        "text": "print('é')\n",
        "language": "python",
        "kernelType": "script",
        "isPrivate": True,
        "enableGpu": True,
        "enableInternet": False,
        "machineShape": "NvidiaTeslaT4",
        "dockerImagePinningType": "original",
        "datasetDataSources": [*MANIFEST.weight_datasets, MANIFEST.wheels_dataset],
        "competitionDataSources": ["sartorius-cell-instance-segmentation"],
    }
    assert {key: request.get(key) for key in expected} == expected


@needs_client
def test_wheel_dataset_as_the_server_sees_it(tmp_path: Path, stub: StubServer) -> None:
    folder = write_dataset(tmp_path / "wheels")
    told = run_client(stub, tmp_path, "datasets", "create", "-p", str(folder))
    requests = [request for path, request in stub.requests if path.endswith("CreateDataset")]
    assert requests, told
    assert requests[-1]["ownerSlug"] == "me" and requests[-1]["slug"] == "wheels"
    assert requests[-1]["licenseName"] == "other"
    assert len(requests[-1]["files"]) == 1


# kernel-metadata.json


def test_metadata_names_every_source_once() -> None:
    manifest = replace(
        MANIFEST,
        weight_datasets=(),
        members=tuple(replace(member, dataset="me/weights") for member in MANIFEST.members),
    )
    assert kernel_metadata(manifest)["dataset_sources"] == ["me/weights", MANIFEST.wheels_dataset]


def test_title_and_id_must_agree() -> None:
    manifest = replace(MANIFEST, kernel=replace(MANIFEST.kernel, title="Another title"))
    with pytest.raises(InputError, match=r"slug 'another-title', kernel\.id says 'sartorius-in-network-ensemble'"):
        kernel_metadata(manifest)


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("", ""),
        ("Sartorius in-network ensemble", "sartorius-in-network-ensemble"),
        ("  Cells: 1,000 of O'Hara's, v2_final! ", "cells-1000-of-o-hara-s-v2-final"),
    ],
)
def test_slug_of_title(title: str, slug: str) -> None:
    assert slug_of_title(title) == slug
    assert pytest.importorskip("slugify", reason="comes with the kaggle client").slugify(title) == slug


def test_unverified_points_of_the_published_manifest() -> None:
    told = "\n".join(unverified_points(MANIFEST))
    assert "put your own Kaggle user name" in told
    assert "13 member(s) name no weight file" in told and "cascade_efficientnet_b6_cort" in told


def test_unverified_points_of_a_full_manifest() -> None:
    members = tuple(
        replace(member, dataset="me/weights", file=f"{member.name}.pt", sha256="0" * 64) for member in MANIFEST.members
    )
    kernel = replace(MANIFEST.kernel, id="me/sartorius-in-network-ensemble")
    manifest = replace(MANIFEST, kernel=kernel, wheels_dataset="me/wheels", members=members)
    assert len(unverified_points(manifest)) == 1


# dataset-metadata.json

METADATA: dict[str, Any] = {"id": "me/wheels", "title": "Some wheels", "licenses": [{"name": "other"}]}


def write_dataset(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "some-1.0-py3-none-any.whl").write_bytes(b"PK")
    (folder / DATASET_METADATA_NAME).write_text(json.dumps(METADATA | changes), encoding="utf-8")
    return folder


def test_a_good_dataset_folder_passes(tmp_path: Path) -> None:
    check_dataset_folder(write_dataset(tmp_path / "wheels"), "me/wheels")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"id": "me/others"}, "id: found 'me/others', expected 'me/wheels'"),
        ({"title": "short"}, "title: found 'short', expected 6 to 50"),
        ({"title": "x" * 51}, "title: found"),
        ({"subtitle": "too short"}, "subtitle: found 9 characters"),
        ({"licenses": []}, "licenses: found []"),
        ({"licenses": [{"name": "mine"}]}, "licenses: found [{'name': 'mine'}]"),
    ],
)
def test_a_wrong_dataset_folder_is_told(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        check_dataset_folder(write_dataset(tmp_path / "wheels", **changes), "me/wheels")


def test_what_the_server_would_change_is_told(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "wheels")
    (folder / "sources").mkdir()
    (folder / "mmcv.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"mmcv\.tar\.gz: the server unpacks archives") as caught:
        check_dataset_folder(folder, "me/wheels")
    assert "sources/: folders are skipped" in str(caught.value)


def test_no_metadata(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a dataset needs one"):
        check_dataset_folder(tmp_path, "me/wheels")
