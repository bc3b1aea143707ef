"""A run shared over a dask cluster: a real scheduler and real workers, some of which die."""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import pytest
from dask_cluster import PATIENCE, ROOT, Cluster, Job, Slowly

from kernel.__main__ import main
from kernel.commands.written import WRITTEN_NAME
from kernel.data.synthetic.generate import generate_image
from kernel.errors import InputError, RunError
from kernel.runtime.cluster import map_on_cluster
from kernel.runtime.failures import FailedImage

pytest.importorskip("distributed", reason="dask.distributed is not installed: pip install distributed")
pytestmark = pytest.mark.xdist_group("script")
DEMO = ROOT / "bundle" / "synthetic"


def jobs(count: int) -> list[Job]:
    return [Job(f"image{number}") for number in range(count)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "cluster").mkdir()
    with Cluster(tmp_path / "cluster", 3) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_a_worker_that_is_killed_costs_nothing(cluster: Cluster, out: Path) -> None:
    names, processes = [], set()
    for job, answer in map_on_cluster(cluster.address, Slowly(out), jobs(60), out):
        assert isinstance(answer, str)
        names.append(job.name)
        processes.add(answer.rpartition(" ")[2])
        if len(names) == 20:
            cluster.workers[0].kill()
    assert sorted(names) == sorted(job.name for job in jobs(60)), "each once"
    assert {path.name for path in out.iterdir()} == set(names)
    assert len(processes) >= 2


@contextmanager
def replacing_the_dead(cluster: Cluster) -> Iterator[None]:
    """Each worker that dies is replaced, as a nanny or SLURM would."""
    stop = threading.Event()

    def replace() -> None:
        while not stop.wait(0.2):
            for worker in list(cluster.workers):
                if worker.poll() is not None:
                    cluster.workers.remove(worker)
                    cluster.add_worker(f"another{time.monotonic()}")

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_an_image_that_kills_its_workers_costs_only_itself(cluster: Cluster, out: Path) -> None:
    with replacing_the_dead(cluster):
        work = Slowly(out, "image3")
        answers = {job.name: answer for job, answer in map_on_cluster(cluster.address, work, jobs(12), out)}
    assert len(answers) == 12
    failed = answers.pop("image3")
    assert isinstance(failed, FailedImage) and "died" in failed.reason and not failed.wrong_input
    assert all(isinstance(answer, str) for answer in answers.values())


def test_an_image_blamed_for_four_deaths_is_tried_alone(cluster: Cluster, out: Path) -> None:
    # dask gives up after four, and blames what waited at the dead worker like what ran there.
    with replacing_the_dead(cluster):
        work = Slowly(out, "image3", deaths=4)
        answers = {job.name: answer for job, answer in map_on_cluster(cluster.address, work, jobs(6), out)}
    assert len(list(out.glob("died*"))) == 4
    assert len(answers) == 6 and all(isinstance(answer, str) for answer in answers.values())


def test_what_fails_on_every_worker_ends_the_run(cluster: Cluster, out: Path) -> None:
    with pytest.raises(RunError, match="no networks here"):
        list(map_on_cluster(cluster.address, Slowly(out, broken="image0"), jobs(3), out))
    with pytest.raises(RunError, match="is not there on one of the workers"):
        list(map_on_cluster(cluster.address, Slowly(out), jobs(3), out / "elsewhere"))
    assert list(map_on_cluster(cluster.address, Slowly(out), [], out)) == []


def test_workers_without_the_package_are_told(tmp_path: Path, out: Path) -> None:
    (tmp_path / "bare").mkdir()
    with (
        Cluster(tmp_path / "bare", 1, ()) as cluster,
        pytest.raises(RunError, match="lack this package, or have other"),
    ):
        list(map_on_cluster(cluster.address, Slowly(out), jobs(1), out))


def test_a_scheduler_that_goes_away_ends_the_run(cluster: Cluster, out: Path) -> None:
    with pytest.raises(RunError, match=r"the scheduler at tcp://.* has gone away; what is written stays"):
        for number, _ in enumerate(map_on_cluster(cluster.address, Slowly(out), jobs(500), out)):
            if number == 3:
                cluster.scheduler.kill()


def test_a_connection_found_closed_by_a_question_ends_the_run_too(
    cluster: Cluster, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client
    from distributed.comm.core import CommClosedError

    def ask_in_vain(client: Client) -> dict[str, int]:
        raise CommClosedError("closed, and the client does not know it yet")

    answers = map_on_cluster(cluster.address, Slowly(out), jobs(50), out)
    next(answers)
    monkeypatch.setattr(Client, "nthreads", ask_in_vain)
    with pytest.raises(RunError, match="has gone away; what is written stays"):
        list(answers)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense", "", "http://127.0.0.1:1"])
def test_an_address_of_no_scheduler_is_refused(out: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel.runtime.cluster.CONNECT_SECONDS", 1)
    with pytest.raises(InputError, match="no dask scheduler of this version answers there"):
        list(map_on_cluster(address, Slowly(out), jobs(1), out))


def one_member(folder: Path) -> list[str]:
    """The demo's smallest member alone, without views: what a run is made of, quickly."""
    manifest = json.loads((DEMO / "manifest.json").read_text(encoding="utf-8"))
    manifest["members"] = [
        {**member, "use_for": ["shsy5y", "astro", "cort", "cls"]}
        for member in manifest["members"]
        if member["kind"] == "maskrcnn"
    ]
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest), encoding="utf-8", newline="\n")
    return ["--manifest", str(path), "--weights-dir", str(DEMO / "weights"), "--device", "cpu"]


def content(folder: Path) -> dict[str, object]:
    """All files of results, but for the note of their times; of images.csv all but the seconds."""
    files: dict[str, object] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    assert files.pop(WRITTEN_NAME)
    with (folder / "images.csv").open(encoding="utf-8", newline="") as stream:
        files["images.csv"] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]
    return files


def when(there: Callable[[], bool], then: Callable[[], object]) -> threading.Thread:
    """A thread that does something as soon as something else is true."""

    def wait() -> None:
        deadline = time.monotonic() + PATIENCE
        while not there() and time.monotonic() < deadline:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def images_of_two_plates(folder: Path, count: int) -> None:
    """Images of equal names in two sub-folders, and one that is none."""
    for number in range(count):
        plate = folder / f"plate{number % 2}"
        plate.mkdir(parents=True, exist_ok=True)
        pixels = generate_image("shsy5y", number, (96, 128)).image
        cv2.imwrite(str(plate / f"field{number // 2}.png"), pixels)
    (folder / "plate0" / "broken.png").write_bytes(b"nothing")


def test_predict_on_several_devices_writes_what_it_writes_on_one(
    tmp_path: Path, wheels_site: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    images_of_two_plates(tmp_path / "images", 4)
    given = ["predict", "images", "--recursive", "--export", "labels,tables", *one_member(tmp_path)]
    monkeypatch.chdir(tmp_path)
    assert main([*given, "--out", "one"]) == 2  # one is broken
    capfd.readouterr()
    assert main([*given, "--out", "two", "--device", "cpu,cpu"]) == 2
    assert "cpu: member maskrcnn" in capfd.readouterr().err  # told by a process of its own
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_predict_on_a_cluster_writes_what_it_writes_here(
    tmp_path: Path, wheels_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images_of_two_plates(tmp_path / "images", 10)
    given = ["--recursive", "--export", "labels,tables,coco,report", *one_member(tmp_path)]
    monkeypatch.chdir(tmp_path)  # paths are relative here, and workers work elsewhere
    assert main(["predict", "images", "--out", "here", *given]) == 2  # one is broken
    (tmp_path / "cluster").mkdir()
    with Cluster(tmp_path / "cluster", 3) as cluster:
        unfinished = tmp_path / ".there.unfinished"
        thread = when(lambda: any(unfinished.rglob("*.tif")), cluster.workers[0].kill)
        assert main(["predict", "images", "--out", "there", "--scheduler", cluster.address, *given]) == 2
        thread.join()
        assert cluster.workers[0].wait() == -9
    here, there = content(tmp_path / "here"), content(tmp_path / "there")
    page = "report.html"  # its title names the folder
    assert there.pop(page) and here.pop(page)
    assert set(there) == set(here) and len([name for name in here if name.endswith(".tif")]) == 10
    assert there == here
