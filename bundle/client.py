"""Kaggle's official client as a library: what it only prints becomes an error with advice.

The client finds the login by itself. Nothing here reads, prints or keeps it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bundle.client_errors import LOG_IN, ForbiddenError, NotThereError, advice_on, asking, one_line, push_advice
from kernel.errors import InputError, RunError

T = TypeVar("T")
#: The oldest client that is known to do.
OLDEST_CLIENT = (2, 2, 5)
#: How often a request is made that fails by its connection, or for too many requests.
TRIES = 4
#: Seconds after which a request is made again at the latest, whatever the server asks for.
LONGEST_DELAY = 120.0
#: With these the client shows requests with their login: it must not.
_VERBOSE = ("--verbose", "-v")


@dataclass(frozen=True)
class Pushed:
    """What Kaggle answered to a push that it accepted."""

    kernel: str  # owner/slug, as Kaggle calls it
    version: int
    url: str


@dataclass(frozen=True)
class Submission:
    """A submission as Kaggle has it now."""

    ref: int
    state: str  # pending, complete or error
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
        token = None
        with asking(f"listing the files of {dataset}"):
            while True:
                page = self._retried(lambda token=token: self._api.dataset_list_files(dataset, token, 200))
                files |= {file.name: file.total_bytes for file in page.dataset_files or ()}
                token = page.next_page_token
                if not token:
                    return files

    def read_dataset_file(self, dataset: str, name: str, folder: Path) -> bytes | None:
        """The content of a small file of a dataset, downloaded into `folder`; None: it has no such file."""
        try:
            with asking(f"reading {name} of {dataset}"), contextlib.redirect_stdout(io.StringIO()):
                self._retried(lambda: self._api.dataset_download_file(dataset, name, str(folder), force=True))
        except NotThereError:
            return None
        return (folder / name).read_bytes()

    def own_datasets(self) -> list[str]:
        """The names of the user's datasets, those that were used last."""
        with asking("listing your datasets"):
            return [entry.ref for entry in self._retried(lambda: self._api.dataset_list(mine=True)) or ()]

    def send_dataset(self, folder: Path, dataset: str, new: bool) -> None:
        """Make the dataset of a folder, or a new version of it.

        Raises:
            RunError: Kaggle refuses it, or a file could not be uploaded.
        """
        quiet = not sys.stdout.isatty()  # its progress bars are for people
        with asking(f"sending {folder} as the dataset {dataset}"):
            if new:
                answer = self._api.dataset_create_new(str(folder), quiet=quiet)
            else:
                answer = self._api.dataset_create_version(str(folder), "by build_kernel.py push", quiet=quiet)
        if answer is None or str(answer.status).lower() != "ok":
            reason = getattr(answer, "error", None) or "no reason given"
            advice = (
                "look at kaggle.com/datasets/" + dataset + ", or give the dataset another slug in the manifest"
                if "in use" in reason
                else "mend that, and run the same again: what is there already is not sent again"
            )
            raise RunError(f"Kaggle refuses the dataset {dataset}: {one_line(reason)}; {advice}")

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
            RunError: Kaggle refuses it, drops a source of it, or gives it another name.
        """
        with asking("pushing the kernel"), push_advice():
            answer = self._retried(
                lambda: self._api.kernels_push(str(folder), None if timeout is None else str(timeout), None, no_run),
                connection=False,
            )
        if answer is None:
            raise RunError("the client could not push the kernel: see what it printed above, and push again")
        if answer.error:
            raise RunError(f"Kaggle refuses the kernel: {one_line(answer.error)}; {advice_on(answer.error)}")
        for kind, dropped in (
            ("dataset", answer.invalid_dataset_sources),
            ("competition", answer.invalid_competition_sources),
            ("kernel", answer.invalid_kernel_sources),
            ("model", answer.invalid_model_sources),
        ):
            if dropped:
                raise RunError(
                    f"version {answer.version_number} of {kernel} was pushed without the {kind} source(s) "
                    f"{', '.join(dropped)}: correct their names in the manifest, or see that they exist and that you "
                    "may use them, build and push again"
                )
        if answer.invalid_tags:
            raise RunError(f"Kaggle does not know the tag(s) {', '.join(answer.invalid_tags)}: take them out")
        found = "/".join([part for part in str(answer.ref).split("/") if part][-2:])
        if found.lower() != kernel.lower():
            raise RunError(
                f"Kaggle has named the kernel {found}, not {kernel}: put that name and its title into the manifest as "
                "`kernel.id` and `kernel.title`, or choose others, build and push again"
            )
        return Pushed(found, int(answer.version_number or 0), str(answer.url))

    def pull(self, kernel: str, version: int, folder: Path) -> dict[str, Any]:
        """Pull a version's script and metadata into `folder`; returns the metadata, `code_file` among it."""
        with asking(f"pulling version {version} of {kernel}"):
            self._retried(lambda: self._api.kernels_pull(f"{kernel}/{version}", str(folder), metadata=True))
        return json.loads((folder / "kernel-metadata.json").read_text(encoding="utf-8"))

    def last_version(self, kernel: str) -> int:
        """The number of a kernel's last version.

        Raises:
            InputError: there is no such kernel.
        """
        from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

        request = ApiGetKernelRequest()
        request.user_name, request.kernel_slug = kernel.split("/")
        try:
            with asking(f"asking for the kernel {kernel}"), self._api.build_kaggle_client() as connection:
                found = self._retried(lambda: connection.kernels.kernels_api_client.get_kernel(request))
        except NotThereError as error:
            raise InputError(f"there is no kernel {kernel} yet: `python build_kernel.py push` makes it") from error
        return int(found.metadata.current_version_number or 1)

    def run_state(self, kernel: str, version: int) -> tuple[str, str]:
        """The state of a version's run in small letters (queued, running, complete, error, ...), and why it failed."""
        with asking(f"asking for version {version} of {kernel}"):
            found = self._retried(lambda: self._api.kernels_status(f"{kernel}/{version}"))
        return found.status.name.lower(), found.failure_message or ""

    def log_lines(self, kernel: str, version: int) -> list[str]:
        """The log of a version's run, line by line."""
        with asking(f"reading the log of version {version} of {kernel}"):
            text = self._retried(lambda: self._api.kernels_logs(f"{kernel}/{version}"))
        try:
            events = json.loads(text) if text else []
        except ValueError:
            return text.splitlines()
        if not isinstance(events, list):
            return text.splitlines()
        parts = [str(event.get("data", "")) for event in events if isinstance(event, dict)]
        return "".join(parts).splitlines()

    def fetch_outputs(self, kernel: str, version: int, folder: Path) -> None:
        """Download a version's outputs and its log into `folder`."""
        with asking(f"downloading the outputs of version {version} of {kernel}"):
            self._retried(lambda: self._api.kernels_output(f"{kernel}/{version}", str(folder), force=True))

    # Submissions

    def submit(self, competition: str, kernel: str, version: int, message: str) -> int:
        """Submit a version's submission.csv, once; returns the submission's number."""
        with asking(f"submitting version {version} of {kernel}"):
            answer = self._retried(
                lambda: self._api.competition_submit_code(
                    "submission.csv", message, competition, kernel, version, True
                ),
                connection=False,
            )
        if not answer.ref:
            raise RunError(f"Kaggle has not taken the submission: {one_line(answer.message) or 'no reason given'}")
        return int(answer.ref)

    def submission(self, ref: int) -> Submission:
        """A submission as it is now; one that cannot be seen yet is pending."""
        try:
            with asking(f"asking for the submission {ref}"):
                found = self._retried(lambda: self._api.get_submission(ref))
        except NotThereError:
            return Submission(ref, "pending", None, None, None)
        return Submission(
            ref, found.status.name.lower(), found.public_score or None, found.private_score or None,
            found.error_description or None,
        )  # fmt: skip

    def quotas(self) -> list[Quota]:
        """The accelerators' hours of this week."""
        with asking("asking for the quota"):
            found = self._retried(self._api.quota_view)
        renewed = "" if found.quota_refresh_time is None else f"{found.quota_refresh_time:%Y-%m-%d %H:%M} UTC"
        return [
            Quota(name, part.time_used.total_seconds() / 3600, part.total_time_allowed.total_seconds() / 3600, renewed)
            for name, part in (("GPU", found.gpu_quota), ("TPU", found.tpu_quota))
            if part is not None
        ]

    def _retried(self, call: Callable[[], T], connection: bool = True) -> T:
        """Call, and again after too many requests; also after a lost connection, if `connection`."""
        import requests

        for attempt in range(1, TRIES + 1):
            try:
                return call()
            except requests.exceptions.HTTPError as error:
                if error.response is None or error.response.status_code != 429 or attempt == TRIES:
                    raise
                asked = error.response.headers.get("Retry-After", "")
                delay = min(float(asked), LONGEST_DELAY) if asked.isdigit() else 2.0**attempt
            except requests.exceptions.ConnectionError:
                if not connection or attempt == TRIES:
                    raise
                delay = 0.5 * 2.0**attempt
            time.sleep(delay)
        raise AssertionError("the last try returns or raises")


def log_in() -> KaggleClient:
    """The official client, logged in as it does that by itself.

    Raises:
        InputError: the client is missing or too old, or nobody is logged in.
        RunError: Kaggle cannot be reached, or does not take the login.
    """
    hidden = {name: os.environ.pop(name) for name in ("VERBOSE", "VERBOSE_OUTPUT") if name in os.environ}
    talk = io.StringIO()
    try:
        with contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
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
    api = kaggle.api
    api.args = [word for word in api.args if word not in _VERBOSE]
    with asking("logging in"), contextlib.redirect_stdout(talk):
        try:
            api.authenticate()
        except SystemExit as error:
            raise InputError(f"nobody is logged in to Kaggle: {LOG_IN}") from error
    return KaggleClient(api)
