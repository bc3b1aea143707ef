"""Pushing by the real client to the stub: what is sent, what is not, and how each failure ends."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from kaggle_project import WEIGHTS_DATASET, WHEELS_DATASET, Project, make_project
from kaggle_stub import CLIENT, Dataset, Failure, StubServer, running_stub

from bundle.checks import error, question
from bundle.client import KaggleClient
from bundle.client_errors import push_advice
from bundle.commands.push import refuse
from bundle.datasets import sums_of, write_sums
from bundle.push import SentDataset, built_manifest, is_under_way, note_sent, read_sent, send_and_wait
from bundle.waiting import Waiting
from kernel.ensemble.load import mounted_weights
from kernel.errors import InputError, RunError
from kernel.files import file_sha256

pytestmark = [
    pytest.mark.skipif(not CLIENT.is_file(), reason="the kaggle client is not installed"),
    pytest.mark.xdist_group("push"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, wheels_dir: Path) -> Path:
    """The folder of a project that is built."""
    folder = tmp_path_factory.mktemp("built") / "project"
    with running_stub() as server:
        done = make_project(folder, server, wheels_dir).build()
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def server() -> Iterator[StubServer]:
    with running_stub() as stub:
        stub.user = "ada"
        yield stub


@pytest.fixture
def project(tmp_path: Path, built: Path, server: StubServer) -> Project:
    shutil.copytree(built, tmp_path / "project")
    return Project(tmp_path / "project", server, {"KAGGLE_API_TOKEN": server.token})


def sent(server: StubServer) -> list[str]:
    """What was sent to be kept, by its endpoint."""
    names = (path.rsplit("/", 1)[-1] for path, _ in server.requests)
    return [name for name in names if name in ("CreateDataset", "CreateDatasetVersion", "SaveKernel")]


def advice(done: Any) -> str:
    """The lines of an error; nothing but them may be there."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    assert re.match(r"(error|failed): ", done.stderr.splitlines()[-1] if "\n  - " not in done.stderr else done.stderr)
    return done.stderr


def noted_version(project: Project) -> Any:
    """The version that was noted as the last one pushed; "nothing" where none was."""
    note = project.out / "pushed.json"
    return json.loads(note.read_text(encoding="utf-8"))["version"] if note.exists() else "nothing"


# What is sent


def test_first_and_second_push(project: Project, server: StubServer) -> None:
    done = project.push()
    assert done.returncode == 0, done.stdout + done.stderr
    assert sent(server) == ["CreateDataset", "CreateDataset", "SaveKernel"]
    assert set(server.datasets[WEIGHTS_DATASET].versions[0]) == {"maskrcnn.safetensors", "sha256sums.txt"}
    assert server.datasets[WEIGHTS_DATASET].license == "other" and server.datasets[WEIGHTS_DATASET].private
    (run,) = server.kernels["ada/my-cell-kernel"]
    assert run.request["text"] == (project.out / "kernel" / "kernel.py").read_text(encoding="utf-8")
    assert run.request["datasetDataSources"] == [WEIGHTS_DATASET, WHEELS_DATASET]
    assert "version 1 of ada/my-cell-kernel is on Kaggle as it was meant" in done.stdout
    assert json.loads((project.out / "pushed.json").read_text(encoding="utf-8"))["version"] == 1

    server.requests.clear()
    done = project.push()
    assert done.returncode == 0 and sent(server) == ["SaveKernel"]
    assert done.stdout.count("there, unchanged") == 2 and "version 2 of" in done.stdout


def test_only_what_changed_gets_a_new_version(project: Project, server: StubServer) -> None:
    assert project.push().returncode == 0
    (dataset,) = (folder for folder in project.out.iterdir() if folder.name.startswith("weights-"))
    weights = project.folder / "weights" / "maskrcnn.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])
    data = json.loads(project.manifest.read_text(encoding="utf-8"))
    del data["members"][0]["sha256"]
    project.manifest.write_text(json.dumps(data), encoding="utf-8")
    assert project.build().returncode == 0
    server.requests.clear()
    server.new_states, server.new_lag, server.unseen_pulls = ["READY"], 3, 2  # Kaggle takes its time to show it
    done = project.push()
    assert done.returncode == 0, done.stderr
    assert f"{WEIGHTS_DATASET}: the version before is ready" in done.stdout
    assert sent(server) == ["CreateDatasetVersion", "SaveKernel"]
    assert len(server.datasets[WEIGHTS_DATASET].versions) == 2
    assert (
        server.datasets[WEIGHTS_DATASET].versions[1]["maskrcnn.safetensors"]
        == (dataset / "maskrcnn.safetensors").read_bytes()
    )


class OneDataset:
    """The client, as far as a dataset is sent: Kaggle shows it once it was asked for some times."""

    def __init__(self, unseen: int = 0, meanwhile: Callable[[Path], object] = lambda folder: None) -> None:
        self.unseen, self.meanwhile = unseen, meanwhile
        self.files: dict[str, bytes] = {}

    def send_dataset(self, folder: Path, dataset: str, new: bool, uploaded: Callable[[], None]) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.meanwhile(folder)
        uploaded()

    def dataset_state(self, dataset: str) -> str:
        return "ready"

    def read_dataset_file(self, dataset: str, name: str, scratch: Path) -> bytes | None:
        self.unseen -= 1
        return self.files[name] if self.unseen < 0 else None

    def dataset_files(self, dataset: str) -> dict[str, int | None]:
        return {name: len(content) for name, content in self.files.items()}


def make_dataset(out: Path) -> Path:
    """The folder of a dataset, as a plan to send it leaves it."""
    (out / "weights-one").mkdir(parents=True)
    (out / "weights-one" / "one.pt").write_bytes(b"weights")
    write_sums(out / "weights-one")
    return out / "weights-one"


def test_weights_are_read_once_while_they_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have gigabytes, and Kaggle is asked many times whether it has them."""
    folder, client, read = make_dataset(tmp_path), OneDataset(unseen=5), []
    monkeypatch.setattr("bundle.datasets.file_sha256", lambda path: read.append(path.name) or file_sha256(path))
    send_and_wait(cast(KaggleClient, client), "ada/one", folder, True, Waiting(9, 0, lambda line: None, "push again"))
    assert client.unseen < 0 and read == ["one.pt"]
    assert read_sent(tmp_path)["ada/one"].arrived


def test_weights_that_change_while_they_are_sent_are_told(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path)
    client = cast(KaggleClient, OneDataset(meanwhile=lambda folder: (folder / "one.pt").write_bytes(b"others")))
    waiting = Waiting(0, 0, lambda line: None, "push again")
    with pytest.raises(RunError, match="weights-one has changed since the push began: push again"):
        send_and_wait(client, "ada/one", folder, True, waiting)
    assert read_sent(tmp_path) == {}


@pytest.mark.parametrize("changed", ["one.pt", "sha256sums.txt"])
def test_what_has_changed_since_it_was_sent_is_not_under_way(tmp_path: Path, changed: str) -> None:
    folder = make_dataset(tmp_path)
    assert not is_under_way("ada/one", folder)
    note_sent(tmp_path, "ada/one", SentDataset(sums_of(folder), arrived=False))
    assert is_under_way("ada/one", folder)
    (folder / changed).write_bytes(b"others")
    assert not is_under_way("ada/one", folder)


def test_a_new_dataset_says_what_it_holds_now(project: Project, server: StubServer) -> None:
    """Also where a file was put there after the build."""
    (folder,) = project.out.glob("weights-*")
    (folder / "more.txt").write_text("of mine", encoding="utf-8")
    assert project.push("--ready-timeout", "5", "--accept-questions").returncode == 0
    assert b"  more.txt" in server.datasets[WEIGHTS_DATASET].versions[0]["sha256sums.txt"]


def test_it_shows_and_asks_first(project: Project, server: StubServer) -> None:
    done = project.run("push")
    assert done.returncode == 2 and "send this? nobody can answer here: give --yes" in done.stderr
    assert "dataset ada/my-cell-weights: new, private, 1 file(s), 4.8 MB" in done.stdout
    assert "run on NvidiaTeslaT4, internet off" in done.stdout
    assert sent(server) == []
    assert project.run("push", "--check").returncode == 0 and sent(server) == []


def test_options_are_passed_on(project: Project, server: StubServer) -> None:
    done = project.push("--no-run", "--timeout", "600")
    assert done.returncode == 0 and "saved and does not run" in done.stdout
    request = server.kernels["ada/my-cell-kernel"][0].request
    assert request["kernelExecutionType"] == "QUICK_SAVE" and request["sessionTimeoutSeconds"] == 600


def test_the_image_of_the_manifest(project: Project, server: StubServer) -> None:
    image = "gcr.io/kaggle-gpu-images/python@sha256:12ab"
    project.edit({}, docker_image=image, docker_pinning="latest")
    assert project.run().returncode == 0
    assert project.push().returncode == 0
    request = server.kernels["ada/my-cell-kernel"][0].request
    assert (request["dockerImage"], request["dockerImagePinningType"]) == (image, "latest")
    server.changes = {"dockerImage": "another"}
    assert f"image is another, not {image}" in advice(project.push())


# What is told before anything is sent


@pytest.mark.parametrize(
    ("change", "kernel", "told"),
    [
        ({"wheels_dataset": "your-kaggle-name/mmdet-pure-python-wheels"}, {}, "stands for your own Kaggle user name"),
        ({"weight_datasets": ["you/my-cell-weights"]}, {}, "a dataset of weights is you/my-cell-weights"),
        ({"wheels_dataset": "ada/my-cell-weihts"}, {}, "and ada/my-cell-weihts differ by one letter"),
        ({}, {"competition": "sartorius-cell-instance-segmentaton"}, "is sartorius-cell-instance-segmentation meant"),
    ],
)  # fmt: skip
def test_slips_are_told_without_network(
    project: Project, server: StubServer, change: dict[str, Any], kernel: dict[str, Any], told: str
) -> None:
    if "wheels_dataset" in change:
        metadata = project.out / "wheels" / "dataset-metadata.json"
        data = json.loads(metadata.read_text(encoding="utf-8")) | {"id": change["wheels_dataset"]}
        metadata.write_text(json.dumps(data), encoding="utf-8")
    project.edit(change, **kernel)
    assert project.run().returncode == 0
    server.requests.clear()
    for options in (["--offline"], ["--yes", "--poll", "0.1"]):
        done = project.run("push", *options)
        assert done.returncode == 2 and "nothing was sent" in done.stderr
        assert told in done.stdout + done.stderr
    assert sent(server) == [] and not server.asked("StartBlobUpload")


def test_a_long_title_is_told_by_the_build(project: Project, server: StubServer) -> None:
    title = "A title of fifty-one characters, no more nor less!!"
    assert len(title) == 51
    project.edit({}, title=title, id="ada/a-title-of-fifty-one-characters-no-more-nor-less")
    done = project.run()
    assert done.returncode == 2 and "has 51 characters, Kaggle takes 5 to 50" in done.stderr
    assert "built from another state" in advice(project.push()) and sent(server) == []


def test_an_ampersand_in_a_name_is_told_by_the_build(project: Project) -> None:
    (project.folder / "weights" / "maskrcnn.safetensors").rename(project.folder / "weights" / "you&me.safetensors")
    data = json.loads(project.manifest.read_text(encoding="utf-8"))
    data["members"][0]["file"] = "you&me.safetensors"
    project.manifest.write_text(json.dumps(data), encoding="utf-8")
    done = project.build()
    assert done.returncode == 2 and "Kaggle takes no & or @ in a file's name: rename the file" in done.stderr
    # By the name that the folder was to have, not by that of the scratch folder in which it was made.
    assert f"error: {project.out / 'weights-my-cell-weights'} cannot be published" in done.stderr


def test_a_forgotten_dataset_is_told(project: Project, server: StubServer) -> None:
    """Built without --weights-dir, there is nothing to make the dataset of."""
    shutil.rmtree(project.out / "weights-my-cell-weights")
    offline = project.run("push", "--offline")
    assert offline.returncode == 0 and "whether Kaggle has ada/my-cell-weights" in offline.stdout
    told = advice(project.push())
    assert "Kaggle has no dataset ada/my-cell-weights, and its files are not at hand" in told
    assert sent(server) == []


def test_a_misspelt_dataset_is_told_with_the_right_one(project: Project, server: StubServer) -> None:
    server.datasets["ada/my-cells-weights"] = Dataset([{}])
    shutil.rmtree(project.out / "weights-my-cell-weights")
    assert "is ada/my-cells-weights meant? correct it" in advice(project.push())
    assert sent(server) == []


def test_a_dataset_that_would_be_made_by_a_slip_is_asked_about(project: Project, server: StubServer) -> None:
    server.datasets["ada/my-cells-weights"] = Dataset([{}])
    done = project.push()
    assert done.returncode == 2 and "there is ada/my-cells-weights: is that meant? (likely yes)" in done.stdout
    assert sent(server) == []
    assert project.push("--accept-questions").returncode == 0


def test_a_dataset_without_the_members_file_is_told(project: Project, server: StubServer) -> None:
    shutil.rmtree(project.out / "weights-my-cell-weights")
    server.datasets[WEIGHTS_DATASET] = Dataset([{"other.safetensors": b"x"}])
    assert "ada/my-cell-weights on Kaggle holds no maskrcnn.safetensors" in advice(project.push())
    assert sent(server) == []


def test_weights_in_a_folder_that_is_not_called_like_the_dataset(project: Project, server: StubServer) -> None:
    """The build recognises them in it, and the kernel finds them where the dataset has them."""
    weights = project.folder / "weights" / "maskrcnn.safetensors"
    (weights.parent / "ens11").mkdir()
    weights = weights.rename(weights.parent / "ens11" / weights.name)
    data = json.loads(project.manifest.read_text(encoding="utf-8"))
    data["weight_datasets"] = ["bob/published-members"]
    for key in ("dataset", "file", "sha256"):
        data["members"][0].pop(key, None)
    project.manifest.write_text(json.dumps(data), encoding="utf-8")
    assert project.build().returncode == 0
    server.datasets["bob/published-members"] = Dataset([{weights.name: weights.read_bytes()}])
    done = project.push()
    assert done.returncode == 0, done.stderr
    mount = project.folder / "in" / "datasets" / "bob" / "published-members"
    mount.mkdir(parents=True)
    shutil.copy(weights, mount)
    built = built_manifest(project.out / "kernel" / "kernel.py")
    assert list(mounted_weights(built, project.folder / "in").values()) == [mount / weights.name]


@pytest.mark.parametrize(("file", "goes_on"), [("ens11/m.safetensors", False), ("m.safetensors", True)])
def test_without_a_sum_the_whole_path_counts(project: Project, server: StubServer, file: str, goes_on: bool) -> None:
    """As the kernel looks for it: the folder that the manifest names must be there, others need not be named."""
    shutil.rmtree(project.out / "weights-my-cell-weights")
    server.datasets[WEIGHTS_DATASET] = Dataset([{"fold0/m.safetensors": b"x"}])
    data = json.loads(project.manifest.read_text(encoding="utf-8"))
    del data["members"][0]["sha256"]
    data["members"][0]["file"] = file
    project.manifest.write_text(json.dumps(data), encoding="utf-8")
    assert project.run().returncode == 0  # without --weights-dir, which would fill it in
    done = project.push("--accept-questions")
    assert (done.returncode == 0) == goes_on
    assert goes_on or f"{WEIGHTS_DATASET} on Kaggle holds no ens11/m.safetensors" in advice(done)


def test_members_without_sums_and_idle_datasets_are_asked_about(project: Project, server: StubServer) -> None:
    data = json.loads(project.manifest.read_text(encoding="utf-8"))
    del data["members"][0]["sha256"]
    data["members"][0]["dataset"] = WEIGHTS_DATASET
    data["weight_datasets"] = [WEIGHTS_DATASET, "ada/forgotten-things"]
    project.manifest.write_text(json.dumps(data), encoding="utf-8")
    assert project.run().returncode == 0  # without --weights-dir, which would fill it in
    done = project.push()
    assert done.returncode == 2 and "2 question(s) above are open" in done.stderr
    assert "1 member(s) have no `file` or no `sha256`" in done.stdout
    assert "no member uses the dataset(s) ada/forgotten-things" in done.stdout
    assert sent(server) == []


def test_a_stale_build_is_told(project: Project, server: StubServer) -> None:
    project.edit({"time_limit_hours": 3.0})
    told = advice(project.push())
    assert "was built from another state of" in told and "or from another manifest" in told
    assert server.requests == []


def test_an_altered_script_folder_is_told(project: Project, server: StubServer) -> None:
    metadata = project.out / "kernel" / "kernel-metadata.json"
    data = json.loads(metadata.read_text(encoding="utf-8"))
    metadata.write_text(json.dumps(data | {"enable_internet": True}), encoding="utf-8")
    assert "is not what the manifest says: build again" in advice(project.push())
    metadata.write_text("{", encoding="utf-8")
    assert "is not what the manifest says: build again" in advice(project.push())
    (project.out / "kernel" / "kernel.py").unlink()
    assert "build the kernel first" in advice(project.push())
    assert server.requests == []


def test_a_script_too_large_is_told(project: Project, server: StubServer) -> None:
    """By the build; one that was made so since is not what a build gives."""
    with (project.out / "kernel" / "kernel.py").open("a", encoding="utf-8") as script:
        script.write("#" * 900_000)
    assert "is not what a build gives now" in advice(project.push())
    members = json.loads(project.manifest.read_text(encoding="utf-8"))["members"]
    project.edit({"members": [members[0] | {"notes": "x" * 900_000}]})
    assert "below 900,000: shorten the manifest's notes" in advice(project.build())
    assert server.requests == []


def test_the_rules_of_the_competition(project: Project, server: StubServer) -> None:
    (name,) = server.competitions
    server.competitions[name] = False
    assert "accept its rules" in advice(project.push()) and sent(server) == []
    server.competitions = {}
    assert "there is no competition" in advice(project.push()) and sent(server) == []


@pytest.mark.parametrize(("answer", "goes_on"), [("y\n", True), ("no\n", False), ("", False)])
def test_questions_are_asked_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str, goes_on: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    if goes_on:
        refuse([question("is it?")], False)
    else:
        with pytest.raises(InputError, match=r"1 question\(s\) above are open"):
            refuse([question("is it?")], False)
    assert capsys.readouterr().out == "question: is it?\nis all of this meant? [y/N] "
    with pytest.raises(InputError, match="something is wrong:\n  - it is"):
        refuse([error("it is"), question("is it?")], True)


# Login


def test_nobody_is_logged_in(project: Project, server: StubServer) -> None:
    project.login = {}
    told = advice(project.push())
    assert "nobody is logged in to Kaggle: run `kaggle auth login`" in told and server.requests == []


def test_somebody_else_is_logged_in(project: Project, server: StubServer) -> None:
    server.user = "bob"
    assert "kernel.id is ada/my-cell-kernel, but bob is logged in" in advice(project.push())
    assert sent(server) == []


@pytest.mark.parametrize("login", [{"KAGGLE_API_TOKEN": "expired"}, {"KAGGLE_USERNAME": "ada", "KAGGLE_KEY": "old"}])
def test_a_login_that_is_not_taken(project: Project, server: StubServer, login: dict[str, str]) -> None:
    project.login = login
    assert "kaggle auth login" in advice(project.push()) and sent(server) == []


def test_a_planted_token_shows_nowhere(project: Project, server: StubServer) -> None:
    server.token = secret = "KGAT_planted-6b1f"
    other = "planted-key-77ac"
    (project.home / ".kaggle").mkdir(parents=True)
    (project.home / ".kaggle" / "access_token").write_text(secret, encoding="utf-8")
    (project.home / ".kaggle" / "kaggle.json").write_text(
        json.dumps({"username": "ada", "key": other}), encoding="utf-8"
    )
    project.login = {"KAGGLE_API_TOKEN": secret, "VERBOSE": "1"}
    outputs = [project.build(), project.push(), project.run("status"), project.run("quota")]
    project.login = {"VERBOSE": "true"}  # by the home directory alone
    outputs += [project.push(), project.run("logs"), project.run("status")]
    assert [done.returncode for done in outputs] == [0] * len(outputs), outputs
    for secret_part in (secret, other):
        assert not any(secret_part in done.stdout + done.stderr for done in outputs)
        kept = [path for path in project.out.rglob("*") if path.is_file()]
        assert len(kept) > 5 and not any(secret_part.encode() in path.read_bytes() for path in kept)
        # Asking who one is takes the token in the body: that is the login.
        bodies = [
            body
            for (path, _), body in zip(server.requests, server.bodies, strict=True)
            if not path.endswith("/IntrospectToken")
        ]
        assert not any(secret_part.encode() in body for body in bodies)


# Failures of the server


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (Failure("GetDatasetStatus", 401), "does not take the login (401)"),
        (Failure("CreateDataset", 403, "denied"), "not allowed (403)"),
        (Failure("SaveKernel", 404, "no such thing"), "not there (404)"),
        (Failure("SaveKernel", 409, "conflict"), "in conflict with what is there"),
        (Failure("ListDataFiles", 429, "slow down", {"Retry-After": "0"}), "too many requests (429)"),
        (Failure("SaveKernel", 500, "oops"), "Kaggle itself fails (500)"),
        (Failure("SaveKernel", 0), "whether a version was made is not known"),
        (Failure("upload", 400), "Upload unsuccessful"),
        (Failure("GetKernel", 503), "asking for the kernel ada/my-cell-kernel: Kaggle itself fails (503)"),
        (Failure("SaveKernel", 400, "Maximum batch GPU session count of 2 reached"), "wait until your other run ends"),
        (Failure("GetKernel", 500, after="SaveKernel"), "Kaggle itself fails (500)"),
    ],
    ids=lambda value: f"{value.endpoint}-{value.status}" if isinstance(value, Failure) else "",
)
def test_failures_end_with_advice(project: Project, server: StubServer, failure: Failure, told: str) -> None:
    server.failures = [failure]
    done = project.push()
    assert told in advice(done) and done.returncode == 1
    made = {("SaveKernel", 500): None, ("SaveKernel", 0): None, ("GetKernel", 500): 1}
    assert noted_version(project) == made.get((failure.endpoint, failure.status), "nothing")


@pytest.mark.parametrize(
    "failure",
    [
        Failure("SaveKernel", 429, headers={"Retry-After": "1"}, times=1),
        Failure("GetDatasetStatus", 0, times=1),
        Failure("CreateDataset", 429, headers={"Retry-After": "0"}, times=2),
    ],
    ids=lambda failure: f"{failure.endpoint}-{failure.status}",
)
def test_what_passes_is_tried_again(project: Project, server: StubServer, failure: Failure) -> None:
    server.failures = [failure]
    done = project.push()
    assert done.returncode == 0, done.stderr
    assert len(server.kernels["ada/my-cell-kernel"]) == 1


def test_a_network_that_is_not_there(project: Project, server: StubServer) -> None:
    project.login |= {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    assert "Kaggle cannot be reached (ProxyError)" in advice(project.push())


def test_an_upload_that_breaks_off_goes_on(project: Project, server: StubServer) -> None:
    server.partial_uploads = 1
    done = project.push()
    assert done.returncode == 0, done.stderr
    content = (project.folder / "weights" / "maskrcnn.safetensors").read_bytes()
    assert server.datasets[WEIGHTS_DATASET].versions[0]["maskrcnn.safetensors"] == content


def test_a_dataset_that_arrives_without_a_file(project: Project, server: StubServer) -> None:
    server.lost_files = {"maskrcnn.safetensors"}
    assert "has arrived without maskrcnn.safetensors, or not with all of it: push again" in advice(project.push())
    assert "SaveKernel" not in sent(server)
    server.lost_files = set()
    assert project.push().returncode == 0
    assert sent(server)[-3:] == ["CreateDataset", "CreateDatasetVersion", "SaveKernel"]


@pytest.mark.parametrize(
    ("states", "told"),
    [
        (["BLOBS_RECEIVED", "FAILED"], "could not take in the dataset"),
        (["BLOBS_RECEIVED"], "is not ready after"),
    ],
)
def test_a_dataset_that_never_gets_ready(project: Project, server: StubServer, states: list[str], told: str) -> None:
    server.new_states = states
    assert told in advice(project.push("--ready-timeout", "0.2"))
    assert "SaveKernel" not in sent(server)


def test_waiting_for_a_dataset_that_was_sent_before(project: Project, server: StubServer) -> None:
    server.new_states = ["BLOBS_RECEIVED"]
    assert project.push("--ready-timeout", "0").returncode == 1
    server.datasets[WEIGHTS_DATASET].states = ["BLOBS_DECOMPRESSED", "BLOBS_DECOMPRESSED", "READY"]
    server.new_states = ["READY"]
    server.requests.clear()
    assert project.push().returncode == 0
    assert sent(server) == ["CreateDataset", "SaveKernel"]  # of the wheels; the weights were there


# What the client only prints


def test_sources_that_are_dropped(project: Project, server: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    save = server.answer_SaveKernel

    def forget(request: dict[str, Any]) -> dict[str, Any]:
        server.datasets.pop(WEIGHTS_DATASET)
        return save(request)

    monkeypatch.setattr(server, "answer_SaveKernel", forget)
    assert f"was pushed without the dataset source(s) {WEIGHTS_DATASET}" in advice(project.push())
    assert noted_version(project) == 1


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        ("You must verify your phone number to use an accelerator", "verify your phone number"),
        ("You have exceeded your weekly GPU quota limit", "wait until the weekly quota is renewed"),
        ("Kernel source exceeds the maximum size", "must stay below 900,000 bytes"),
        ("Source exceeds 1000000 bytes", "must stay below 900,000 bytes"),
        ("Session limit exceeded: concurrent sessions exceed your limit", "wait until your other run ends"),
        ("Invalid machine shape NvidiaTeslaX", "correct `kernel.accelerator`"),
    ],
)
def test_a_refusal_names_what_it_is_about(refused: str, told: str) -> None:
    assert told in push_advice(refused)


def test_a_kernel_that_is_refused_or_renamed(
    project: Project, server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = server.answer_SaveKernel
    monkeypatch.setattr(
        server, "answer_SaveKernel", lambda request: save(request | {"machineShape": "NvidiaTeslaX"}), raising=False
    )
    assert "Invalid machine shape NvidiaTeslaX; correct `kernel.accelerator`" in advice(project.push())
    monkeypatch.setattr(server, "answer_SaveKernel", save)
    server.changes = {"ref": "ada/my-cell-kernel-2"}
    assert "Kaggle has named the kernel ada/my-cell-kernel-2, not ada/my-cell-kernel" in advice(project.push())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"enableInternet": True}, "internet is True, not False"),
        ({"isPrivate": False}, "private is False, not True"),
        ({"machineShape": "NvidiaTeslaP100"}, "accelerator is NvidiaTeslaP100, not NvidiaTeslaT4"),
        ({"text": "print()"}, "the script is another one"),
        ({"datasetDataSources": [WHEELS_DATASET]}, f"datasets missing: {WEIGHTS_DATASET}"),
        ({"datasetDataSources": [WEIGHTS_DATASET, WHEELS_DATASET, "a/other-things"]}, "too many: a/other-things"),
        ({"competitionDataSources": []}, "competitions missing: sartorius"),
    ],
)
def test_what_is_there_must_be_what_was_meant(
    project: Project, server: StubServer, changes: dict[str, Any], told: str
) -> None:
    server.changes = changes
    done = project.push()
    assert told in advice(done) and "do not submit it" in done.stderr
    assert noted_version(project) == 1
