"""Kaggle's official client as a library: what it only prints becomes an error with advice.

The client finds the login by itself. Nothing here reads, prints or keeps it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bundle.client_errors import (
    LOG_IN,
    ForbiddenError,
    KaggleError,
    NotThereError,
    OddAnswerError,
    UnknownOutcomeError,
    asking,
    one_line,
    push_advice,
    sending_once,
    status_of,
    submit_advice,
    token_source,
)
from bundle.kaggle import KERNEL_METADATA_NAME
from kernel.errors import InputError, RunError
from kernel.folders import is_of_the_system
from kernel.signals import heard_hang_up
from kernel.text import parse_json

T = TypeVar("T")
#: The oldest client that is known to do.
OLDEST_CLIENT = (2, 2, 5)
#: How often a request is made that fails by its connection, for too many requests, or as the server fails itself.
TRIES = 4
#: How often one is made that gets no answer, each time for so many seconds.
SILENT_TRIES = 2
LONGEST_SILENCE = 60.0
#: Seconds before the second try; twice as many before each other.
FIRST_DELAY = 1.0
#: Seconds after which a request is made again at the latest, whatever the server asks for.
LONGEST_DELAY = 120.0
#: Requests of the client that must not arrive twice, as each makes a version; and which field names the dataset.
SENT_ONCE = {"create_dataset": "slug", "create_dataset_version": "dataset_slug"}
#: With these the client shows requests with their login: it must not.
_VERBOSE = ("--verbose", "-v")
#: What is said of a kernel that Kaggle does not have.
NO_KERNEL = "there is no kernel {} yet: `python build_kernel.py push` makes it"


@dataclass(frozen=True)
class Pushed:
    """What Kaggle answered to a push that it accepted."""

    kernel: str  # owner/slug, as Kaggle calls it
    version: int
    url: str
    problems: tuple[str, ...] = ()  # what Kaggle has dropped or changed, and what to do about it


@dataclass(frozen=True)
class KernelThere:
    """The last version of a kernel that Kaggle has."""

    version: int | None  # None: Kaggle does not tell
    private: bool | None  # the same
    source: str

    @property
    def following(self) -> str:
        """What to call the version that the next push makes."""
        return "a new version" if self.version is None else f"version {self.version + 1}"


@dataclass(frozen=True)
class Submission:
    """A submission as Kaggle has it now."""

    ref: int
    state: str  # pending, complete, error, or absent where Kaggle shows none of this number
    public_score: str | None
    private_score: str | None
    error: str | None


@dataclass(frozen=True)
class Quota:
    """Hours of an accelerator in this week."""

    name: str
    used: float
    total: float
    renewed: str


class KaggleClient:
    """The logged-in client."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._uploaded: Callable[[], None] = lambda: None  # of the dataset that is being sent
        # It tries some requests again, by its own rules, and says so: ours are to hold for all.
        api.with_retry = lambda call: lambda request: self._retried_by_name(call, request)
        api.download_file = functools.partial(api.download_file, max_retries=1)
        # Of the class: there is one client for each process, which may have been here before.
        api.kernels_output = turning_each_page_once(functools.partial(type(api).kernels_output, api))
        api.get_response_processor = lambda: refuse_odd_answer

    def log_in(self) -> None:
        """Log in, as the client does that by itself.

        Raises:
            InputError: nobody is logged in, or the login has expired.
            RunError: Kaggle cannot be reached, or does not take the login.
        """
        talk = io.StringIO()
        with asking("logging in", secret=True), contextlib.redirect_stdout(talk):
            try:
                self._retried(self._api.authenticate)
                return
            except SystemExit as error:
                if error.code != 1:  # a signal's
                    raise
        refused = "Invalid credentials" in talk.getvalue()  # of `kaggle auth login`, which the client has deleted
        source = "what `kaggle auth login` had kept" if refused else token_source()
        if source is not None:
            raise InputError(
                f"Kaggle does not take {source}, which is expired, revoked or mistyped: take it away or replace it: "
                f"{LOG_IN}"
            )
        raise InputError(f"nobody is logged in to Kaggle: {LOG_IN}")

    @property
    def user(self) -> str:
        """Who is logged in."""
        return str(self._api.get_config_value(self._api.CONFIG_NAME_USER) or "")

    # Datasets

    def dataset_state(self, dataset: str) -> str | None:
        """The state of a dataset's last version, in small letters: ready, failed, ...; None: none that can be seen."""
        try:
            with asking(f"asking for the dataset {dataset}"):
                return self._retried(lambda: str(self._api.dataset_status(dataset)))
        except NotThereError:
            return None

    def dataset_files(self, dataset: str) -> dict[str, int | None]:
        """The files of a dataset's last version and their sizes in bytes."""
        files: dict[str, int | None] = {}
        tokens: list[str | None] = [None]
        with asking(f"listing the files of {dataset}"):
            while True:
                page = self._retried(lambda: self._api.dataset_list_files(dataset, tokens[-1], 200))
                files |= {file.name: file.total_bytes for file in page.dataset_files or ()}
                if not page.next_page_token:
                    return files
                turn_page(page.next_page_token, tokens)

    def read_dataset_file(self, dataset: str, name: str, folder: Path) -> bytes | None:
        """The content of a small file of a dataset, downloaded into `folder`; None: it has no such file."""
        try:
            with (
                asking(f"reading {name} of {dataset}", shown=(folder, "a scratch folder")),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                self._retried(
                    lambda: self._api.dataset_download_file(dataset, name, str(folder), force=True, unzip=True)
                )
                return (folder / name).read_bytes()
        except NotThereError:
            return None

    def dataset_license(self, dataset: str) -> str | None:
        """The license that a dataset has on Kaggle; None: it says none."""
        from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetMetadataRequest

        request = ApiGetDatasetMetadataRequest()
        request.owner_slug, request.dataset_slug = dataset.split("/")
        with asking(f"asking for the license of {dataset}"), self._api.build_kaggle_client() as connection:
            found = self._retried(lambda: connection.datasets.dataset_api_client.get_dataset_metadata(request))
            names = [entry.name for entry in found.info.licenses or ()]
        return str(names[0]) if names and names[0] else None

    def own_datasets(self) -> list[str]:
        """The names of the user's datasets, those that were used last."""
        with asking("listing your datasets"):
            return [entry.ref for entry in self._retried(lambda: self._api.dataset_list(mine=True)) or ()]

    def send_dataset(self, folder: Path, dataset: str, new: bool, uploaded: Callable[[], None]) -> None:
        """Make the dataset of a folder, or a new version of it, once: a second try could make a second version.

        What a system puts into any folder that it shows is not sent.

        Args:
            folder: of the dataset.
            dataset: its name.
            new: whether it is not there yet.
            uploaded: is called when all files are with Kaggle, just before it is asked to make the version.

        Raises:
            UnknownOutcomeError: the answer was lost, or a new one is said to be there already.
            RunError: Kaggle refuses it, or a file could not be uploaded.
        """
        quiet = not sys.stdout.isatty()  # its progress bars are for people, and what it says of failures as well
        talk = contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext()
        with asking(f"sending {folder} as the dataset {dataset}"), talk:
            self._uploaded = uploaded
            passed_over = [path.name for path in folder.iterdir() if is_of_the_system(path.name)]
            if new:
                answer = self._api.dataset_create_new(str(folder), quiet=quiet, ignore_patterns=passed_over)
            else:
                notes = "by build_kernel.py push"
                answer = self._api.dataset_create_version(str(folder), notes, quiet=quiet, ignore_patterns=passed_over)
            status, reason = str(answer.status).lower(), str(answer.error or "no reason given")
        if status != "ok":
            refused = f"Kaggle refuses the dataset {dataset}: {one_line(reason)}"
            if new and "in use" in reason:
                look = f"look at kaggle.com/datasets/{dataset}, or give the dataset another slug in the manifest"
                raise UnknownOutcomeError(refused, look)
            raise KaggleError(refused, "mend that, and run the same again: what is there already is not sent again")

    # Competitions

    def check_competition(self, competition: str) -> None:
        """Refuse a competition that is not there, or whose rules are not accepted.

        Raises:
            InputError: either of these.
        """
        try:
            with asking(f"asking for the competition {competition}"):
                self._retried(lambda: self._api.competition_list_files(competition))
        except ForbiddenError as error:
            raise InputError(
                f"the competition {competition} does not let you in: open "
                f"kaggle.com/competitions/{competition}/rules and accept its rules"
            ) from error
        except NotThereError as error:
            raise InputError(f"there is no competition {competition}: correct `kernel.competition`") from error

    # Kernels

    def push(self, folder: Path, kernel: str, timeout: int | None, no_run: bool) -> Pushed:
        """Push the kernel of a folder, once: a second try could make a second version.

        Raises:
            UnknownOutcomeError: the answer was lost.
            RunError: Kaggle refuses it, and has made no version.
        """
        look = (
            f"look at the versions on kaggle.com/code/{kernel}, or by `python build_kernel.py status`, then push again"
        )
        with sending_once("a version was made", look), asking("pushing the kernel", push_advice):
            answer = self._retried(
                lambda: self._api.kernels_push(str(folder), None if timeout is None else str(timeout), None, no_run),
                once=True,
            )
            if answer.error:
                raise RunError(f"Kaggle refuses the kernel: {one_line(answer.error)}; {push_advice(answer.error)}")
            version = int(answer.version_number)
            if version < 1:
                raise LookupError(f"it is version {version}")
            found = "/".join([part for part in answer.ref.split("/") if part][-2:])
            dropped = {
                "dataset": answer.invalid_dataset_sources,
                "competition": answer.invalid_competition_sources,
                "kernel": answer.invalid_kernel_sources,
                "model": answer.invalid_model_sources,
            }
            problems = [
                f"version {version} of {kernel} was pushed without the {kind} source(s) {', '.join(names)}: correct "
                "their names in the manifest, or see that they exist and that you may use them, build and push again"
                for kind, names in dropped.items()
                if names
            ]
            if answer.invalid_tags:
                problems.append(f"Kaggle does not know the tag(s) {', '.join(answer.invalid_tags)}: take them out")
        if found.lower() != kernel.lower():
            problems.append(
                f"Kaggle has named the kernel {found}, not {kernel}: put that name and its title into the manifest as "
                "`kernel.id` and `kernel.title`, or choose others, build and push again"
            )
        return Pushed(found, version, str(answer.url), tuple(problems))

    def pull(self, kernel: str, version: int, folder: Path) -> tuple[dict[str, Any], Path]:
        """Pull a version's script and metadata into `folder`; returns the metadata, and where the script is."""
        with asking(f"pulling version {version} of {kernel}", shown=(folder, "a scratch folder")):
            self._retried(lambda: self._api.kernels_pull(f"{kernel}/{version}", str(folder), metadata=True))
            metadata = json.loads((folder / KERNEL_METADATA_NAME).read_text(encoding="utf-8"))
            return metadata, folder / metadata["code_file"]

    def kernel_there(self, kernel: str) -> KernelThere | None:
        """A kernel's last version; None: there is no such kernel that can be seen."""
        from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

        request = ApiGetKernelRequest()
        request.user_name, request.kernel_slug = kernel.split("/")
        try:
            with asking(f"asking for the kernel {kernel}"), self._api.build_kaggle_client() as connection:
                found = self._retried(lambda: connection.kernels.kernels_api_client.get_kernel(request))
                version = int(found.metadata.current_version_number or 0) or None
                return KernelThere(version, found.metadata.is_private, found.blob.source or "")
        except NotThereError:
            return None

    def last_version(self, kernel: str) -> int:
        """The number of a kernel's last version.

        Raises:
            InputError: there is no such kernel.
            OddAnswerError: Kaggle does not tell.
        """
        there = self.kernel_there(kernel)
        if there is None:
            raise InputError(NO_KERNEL.format(kernel))
        if there.version is None:
            raise OddAnswerError(
                f"Kaggle does not tell the number of {kernel}'s last version",
                f"say by --version N which one is meant: kaggle.com/code/{kernel} lists them",
            )
        return there.version

    def run_state(self, kernel: str, version: int) -> tuple[str, str]:
        """The state of a version's run in small letters (queued, running, complete, error, ...), and why it failed.

        Raises:
            NotThereError: there is no such kernel, or it has no such version.
        """
        try:
            with asking(f"asking for version {version} of {kernel}"):
                found = self._retried(lambda: self._api.kernels_status(f"{kernel}/{version}"))
                return found.status.name.lower(), found.failure_message or ""
        except NotThereError as error:
            there = self.kernel_there(kernel)
            if there is None:
                advice = NO_KERNEL.format(kernel)
            elif there.version is None or version <= there.version:
                raise
            else:
                advice = f"the last version is {there.version}: give another --version, or none"
            raise NotThereError(error.what, advice) from error

    def log_lines(self, kernel: str, version: int) -> list[str]:
        """The log of a version's run, line by line."""
        with asking(f"reading the log of version {version} of {kernel}"):
            text = str(self._retried(lambda: self._api.kernels_logs(f"{kernel}/{version}")))
        try:
            events = parse_json(text) if text else []
        except ValueError:
            return text.splitlines()
        if not isinstance(events, list):
            return text.splitlines()
        parts = [str(event.get("data", "")) for event in events if isinstance(event, dict)]
        return "".join(parts).splitlines()

    def fetch_outputs(self, kernel: str, version: int, folder: Path) -> None:
        """Download a version's outputs and its log into `folder`."""
        doing = f"downloading the outputs of version {version} of {kernel}"
        with asking(doing, shown=(folder, "the results' folder")), contextlib.redirect_stdout(io.StringIO()):
            self._retried(lambda: self._api.kernels_output(f"{kernel}/{version}", str(folder), force=True))

    # Submissions

    def submit(self, competition: str, kernel: str, version: int, message: str) -> int:
        """Submit a version's submission.csv, once; returns the submission's number.

        Raises:
            UnknownOutcomeError: the answer was lost.
            RunError: Kaggle refuses it.
        """
        look = (
            f"look at kaggle.com/competitions/{competition}/submissions, or by `kaggle competitions submissions "
            f"{competition}`; if it is there, wait by `python build_kernel.py submit --ref NUMBER --wait`, else submit "
            "again"
        )
        doing = f"submitting version {version} of {kernel}"
        with sending_once("it was submitted", look), asking(doing, submit_advice):
            answer = self._retried(
                lambda: self._api.competition_submit_code(
                    "submission.csv", message, competition, kernel, version, True
                ),
                once=True,
            )
            ref, said = int(answer.ref or 0), one_line(answer.message)
        if not ref:
            raise KaggleError(f"Kaggle has not taken the submission: {said or 'no reason given'}", submit_advice(said))
        return ref

    def submission(self, ref: int) -> Submission:
        """A submission as it is now."""
        try:
            with asking(f"asking for the submission {ref}"):
                found = self._api.get_submission(ref)
                return Submission(
                    ref, found.status.name.lower(), found.public_score or None, found.private_score or None,
                    found.error_description or None,
                )  # fmt: skip
        except ForbiddenError:
            raise
        except NotThereError:
            return Submission(ref, "absent", None, None, None)

    def quotas(self) -> list[Quota]:
        """The accelerators' hours of this week."""
        with asking("asking for the quota"):
            found = self._retried(self._api.quota_view)
            renewed = "" if found.quota_refresh_time is None else f"{found.quota_refresh_time:%Y-%m-%d %H:%M} UTC"
            return [
                Quota(
                    name, part.time_used.total_seconds() / 3600, part.total_time_allowed.total_seconds() / 3600, renewed
                )
                for name, part in (("GPU", found.gpu_quota), ("TPU", found.tpu_quota))
                if part is not None
            ]

    def _retried_by_name(self, call: Callable[[Any], T], request: Any) -> T:
        """What the client makes again by itself: once alone where that is one of `SENT_ONCE`. Errors as `asking`."""
        name = call.__name__
        if name not in SENT_ONCE:
            return self._retried(lambda: call(request))
        dataset = f"{request.owner_slug}/{getattr(request, SENT_ONCE[name])}"
        self._uploaded()
        with (
            sending_once("it has arrived", "push again, which does not send twice what is there"),
            asking(f"sending the dataset {dataset}"),
        ):
            return self._retried(lambda: call(request), once=True)

    def _retried(self, call: Callable[[], T], once: bool = False) -> T:
        """Call, and again where that failed by its connection, for too many requests, or as the server failed itself.

        Args:
            call: makes a request.
            once: it must not arrive twice: it is made again only after too many requests, which were no arrival.
        """
        import requests

        for attempt in range(1, TRIES + 1):
            delay = FIRST_DELAY * 2.0 ** (attempt - 1)
            try:
                return call()
            except requests.exceptions.HTTPError as error:
                status = status_of(error)
                if error.response is None or attempt == TRIES or not (status == 429 or (status >= 500 and not once)):
                    raise
                asked = error.response.headers.get("Retry-After", "")
                delay = min(float(asked), LONGEST_DELAY) if asked.isdecimal() and status == 429 else delay
            except requests.exceptions.ReadTimeout:
                if once or attempt >= SILENT_TRIES:
                    raise
            except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError):
                if once or attempt == TRIES:
                    raise
            time.sleep(delay)
        raise AssertionError("the last try returns or raises")


def turn_page(token: str | None, turned: list[str | None]) -> None:
    """Note that a page is turned to.

    Raises:
        LookupError: it was already, so that the pages have no end.
    """
    if token in turned:
        raise LookupError(f"page {token} comes after itself")
    turned.append(token)


def turning_each_page_once(list_page: Callable[..., T]) -> Callable[..., T]:
    """A method of the client that calls itself for each further page, so that it ends. Errors as `turn_page`."""
    turned: list[str | None] = []

    @functools.wraps(list_page)
    def turn(*words: Any, page_token: str | None = None, **more: Any) -> T:
        if page_token is None:
            turned.clear()
        turn_page(page_token, turned)
        return list_page(*words, page_token=page_token, **more)

    return turn


def refuse_odd_answer(response: Any) -> None:
    """Refuse JSON that is no object, which the client takes for one whose fields are all as usual.

    Raises:
        TypeError: it is none.
    """
    if "application/json" in response.headers.get("Content-Type", "") and not isinstance(response.json(), dict):
        raise TypeError("it is no object")


@functools.cache
def limit_waiting() -> None:
    """Let no request of this process wait for ever: the client gives most requests no limit of time.

    A server that says nothing for LONGEST_SILENCE seconds is then an error. Uploads try TRIES times to connect.
    """
    import requests

    adapter = requests.adapters.HTTPAdapter
    send = adapter.send

    @functools.wraps(send)
    def send_limited(self: Any, request: Any, stream: bool = False, timeout: Any = None, **more: Any) -> Any:
        self.max_retries = self.max_retries.new(total=min(self.max_retries.total, TRIES))
        shortest = min(timeout, LONGEST_SILENCE) if isinstance(timeout, int | float) else LONGEST_SILENCE
        return send(self, request, stream, shortest, **more)

    adapter.send = send_limited


@contextmanager
def ending_import() -> Iterator[None]:
    """Let a signal end the import in the block, which logs in, and would swallow the exception of `end_on_sigterm`."""
    heard: list[int] = []

    def note(number: int, frame: object) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, *heard_hang_up())}
    try:
        yield
    except KeyboardInterrupt:
        if heard:
            raise SystemExit(128 + heard[0]) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_in() -> KaggleClient:
    """The official client, logged in as it does that by itself.

    Raises:
        InputError: the client is missing or too old, or nobody is logged in.
        RunError: Kaggle cannot be reached, or does not take the login.
    """
    hidden = {name: os.environ.pop(name) for name in ("VERBOSE", "VERBOSE_OUTPUT") if name in os.environ}
    talk = io.StringIO()
    try:
        with contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk), ending_import():
            import requests  # noqa: F401 - what the client stands on

            limit_waiting()
            import kaggle
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed, and Kaggle's client needs it: `python -m pip install kaggle six`, or use "
            "the environment: `make .venv/complete`, then `. .venv/bin/activate`"
        ) from error
    finally:
        os.environ.update(hidden)
    version = tuple(int(part) for part in re.findall(r"\d+", kaggle.__version__)[:3])
    if version < OLDEST_CLIENT:
        raise InputError(
            f"kaggle {kaggle.__version__} is too old, {'.'.join(map(str, OLDEST_CLIENT))} or later is needed: "
            "`python -m pip install --upgrade kaggle six`"
        )
    kaggle.api.args = [word for word in kaggle.api.args if word not in _VERBOSE]
    client = KaggleClient(kaggle.api)
    client.log_in()
    return client
