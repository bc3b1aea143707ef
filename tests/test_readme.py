"""Every command of the README and of docs/ does what it says there, page by page in order, in a copy of the checkout.

Only sizes are changed: fewer and smaller images, fewer iterations. The published ensemble's weights are not ours to
keep, so the synthetic members' manifest and weights stand in the place of `weights_manifest.json` and `weights`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from cases import forget_samples
from kaggle_stub import Dataset, StubServer, client_environment, run_client, running_stub
from pages import page_commands
from safetensors.torch import load_file, save_file

import build_kernel
from kernel.data.synthetic.generate import generate_image, write_dataset
from kernel.settings import CELL_TYPES

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.xdist_group("readme")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, wheels_site: Path) -> Path:
    """A copy of what the commands need, with a small ensemble as the default one."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("kernel", "bundle"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("build_kernel.py", "Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, copy / name)
    shutil.copy(ROOT / "bundle" / "synthetic" / "manifest.json", copy / "weights_manifest.json")
    shutil.copytree(ROOT / "bundle" / "synthetic" / "weights", copy / "weights")
    shutil.copytree(wheels_site, copy / "dist" / "site" / wheels_site.name)
    for path in (copy / "bundle" / "members" / "images").glob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[100:260, 100:300])
    (copy / "images").mkdir()
    cv2.imwrite(str(copy / "images" / "cells.png"), generate_image("cort", 1, (128, 160)).image)
    return copy


@pytest.fixture
def server() -> Iterator[StubServer]:
    """Kaggle, with the datasets that the pages name; the user of the pages is logged in."""
    with running_stub() as stub:
        stub.user = "ada"
        for name in ("ens11", "ens10", "last"):
            stub.datasets[f"theoviel/sartorius-cps-{name}"] = Dataset([{"readme.txt": b"weights"}])
        yield stub


def run_in(checkout: Path, command: str, environment: dict[str, str] | None = None) -> str:
    """Run a command of ours by this interpreter; returns what it prints."""
    words = command.split()
    assert words[0] == "python"
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=checkout, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_command(checkout: Path, server: StubServer, words: list[str]) -> None:
    """Run a sub-command of build_kernel.py; what it asks is answered, and Kaggle is quick."""
    more = {"push": "--yes --poll 0.05", "status": "--poll 0.05", "submit": "--yes --poll 0.05"}.get(words[2], "")
    if words[2] == "init":
        (checkout / "mine.json").unlink(missing_ok=True)  # of an earlier page
    if words[2] == "push":
        results = checkout / "dist" / "dry-run"
        server.next_run = {
            "outputs": {name: (results / name).read_bytes() for name in ("submission.csv", "summary.json")}
        }
    environment = client_environment(server, checkout / "home", KAGGLE_API_TOKEN=server.token)
    told = run_in(checkout, f"{' '.join(words)} {more}", environment)
    expected = {
        "push": "is on Kaggle as it was meant", "status": "complete", "submit": "public score: 0.311",
        "fetch": "submission.csv is valid", "init": "kernel: ada/", "members": "sha256",
    }  # fmt: skip
    assert expected[words[2]] in told


def test_every_command_of_the_pages(checkout: Path, server: StubServer) -> None:
    ran = []
    for command in page_commands():
        words = command.split()
        if words[0] == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=checkout, capture_output=True, text=True, check=False)
            assert done.returncode == 0 and done.stdout, done.stderr
        elif words[0] == "kaggle":
            server.requests.clear()
            if words[1:3] == ["datasets", "create"]:  # the push before has made it
                metadata = json.loads((checkout / words[-1] / "dataset-metadata.json").read_text(encoding="utf-8"))
                server.datasets.pop(metadata["id"])
            told = run_client(server, checkout, *words[1:])
            assert "rror" not in told and "not valid" not in told and server.requests, told
        elif words[1] == "build_kernel.py" and words[2:3] and words[2] in build_kernel.COMMANDS:
            run_command(checkout, server, words)
        elif words[1:4] == ["-m", "kernel", "synthesize"]:
            run_in(checkout, re.sub(r"--images \d+", "--images 1", command))
            shutil.rmtree(checkout / words[4])
            count = 5 if "--seed 1" in command else 1  # as many as there are folds
            write_dataset(checkout / words[4], dict.fromkeys(CELL_TYPES, count), seed=1, shape=(128, 160))
            forget_samples(checkout / words[4])  # of so few images there are fewer wells than folds
        elif words[1:4] == ["-m", "kernel", "train"]:
            run_in(checkout, f"{command} --iterations 2")
            out = checkout / words[words.index("--out") + 1]
            assert out.is_file()
            if re.search(r"_\d\.safetensors", command):
                # Two iterations take everything for a cell, which takes long to score: the synthetic member does not.
                state = load_file(checkout / "bundle" / "synthetic" / "weights" / "htc.safetensors")
                save_file(state, out, {"trained as": out.name})
        elif words[1:4] == ["-m", "kernel", "train-members"]:
            told = run_in(checkout, f"{command} --kinds maskrcnn --iterations 1")
            fold = "fold 0, which was left out" if "--from" in words else "fold 0, which no member saw"
            assert "weights and manifest:" in told and fold in told
        else:
            told = run_in(checkout, command)
            if "--dry-run" in words:
                assert "dry run:" in told and (checkout / "dist" / "dry-run" / "submission.csv").is_file()
            if "--out-of-fold" in words:
                assert re.findall(r"^(\w+(?: \d)?): \d\.\d{4} on (\d+)", told, re.MULTILINE) == [
                    ("fold 0", "8"), ("fold 1", "7"), ("ensemble", "15"),
                ]  # fmt: skip
            if words[-1] == "--each-member":
                assert told.count("cell type right on") == 4
        ran.append(words[0] if words[0] != "python" else " ".join(words[1:4]))
    assert {
        "make",
        "kaggle",
        *(
            f"-m kernel {name}"
            for name in ("prepare", "train", "train-members", "validate", "tune", "select", "predict")
        ),
    } <= set(ran)
    published = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))["weight_datasets"]
    assert {*published} == {
        word
        for command in page_commands()
        for word in command.split()
        if re.fullmatch(r"(?!weights)\w+/sartorius-.*", word)
    }
    assert {f"build_kernel.py {name}" for name in ("init", "members", "push", "status", "fetch", "submit")} <= {
        " ".join(name.split()[:2]) for name in ran
    }
