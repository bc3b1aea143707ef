"""What Kaggle's client raises, as one line with advice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kernel.errors import RunError
from kernel.manifest.types import ACCELERATOR_NAMES

LOG_IN = (
    "run `kaggle auth login`, or make a token at kaggle.com/settings/api and put it into the environment as "
    "KAGGLE_API_TOKEN or into the file ~/.kaggle/access_token"
)
#: What Kaggle's refusals of a kernel contain, and what to do about it.
_PUSH_ADVICE = (
    (
        r"too large|maximum.{0,30}size|exceed.{0,30}(size|bytes|limit)|1,?000,?000",
        "the script must stay below 900,000 bytes: take out what it need not carry",
    ),
    (
        r"accelerator|machine.?shape",
        f"correct `kernel.accelerator` in the manifest: known are {', '.join(ACCELERATOR_NAMES)}",
    ),
    (r"docker|image", "correct `kernel.docker_image` in the manifest, or leave it out"),
    (r"session count|concurrent|already running", "wait until your other run ends, or cancel it, then push again"),
    (r"quota", "wait until the weekly quota is renewed: `python build_kernel.py quota` says when"),
    (r"title|slug|conflict", "give the kernel another `kernel.title` and `kernel.id` in the manifest"),
    (r"phone|verif", "verify your phone number at kaggle.com/settings"),
    (r"rules|accept", "accept the competition's rules on its page, then push again"),
)


class NotThereError(RunError):
    """Kaggle has no such thing, or does not show it to this user."""


class ForbiddenError(NotThereError):
    """Kaggle has it, maybe, and does not let this user at it."""


@contextmanager
def asking(doing: str) -> Iterator[None]:
    """Raise what the client raises in the block as one line with advice; `doing` says what was tried.

    Raises:
        NotThereError: Kaggle has no such thing, or does not show it.
        RunError: Kaggle cannot be reached, or refuses.
    """
    import requests

    try:
        yield
    except requests.exceptions.HTTPError as error:
        raise refusal(doing, error) from error
    except requests.exceptions.RequestException as error:
        raise RunError(
            f"{doing}: Kaggle cannot be reached ({type(error).__name__}): see that the network and any proxy work, and "
            "run the same again"
        ) from error
    except ValueError as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, requests.exceptions.HTTPError):
            raise refusal(doing, cause) from error
        text = one_line(str(error))
        if "Upload unsuccessful" in text:
            raise RunError(f"{doing}: {text}: run the same again, whole files are not sent twice") from error
        raise RunError(f"{doing}: the client refuses: {text}: correct that, and run the same again") from error


def refusal(doing: str, error: Any) -> RunError:
    """The error for an answer that is none, with what to do."""
    status = None if error.response is None else error.response.status_code
    said = one_line(str(error))
    if status == 401:
        return RunError(f"{doing}: Kaggle does not take the login (401): {LOG_IN}")
    if status == 403:
        return ForbiddenError(
            f"{doing}: not allowed (403): see that the name is right, that it is yours or public, and that you have "
            f"accepted the competition's rules ({said})"
        )
    if status == 404:
        return NotThereError(f"{doing}: not there (404): see that the name is right ({said})")
    if status == 409:
        return RunError(
            f"{doing}: in conflict with what is there or under way (409): wait a minute and run the same again, or "
            f"choose another name ({said})"
        )
    if status == 429:
        return RunError(f"{doing}: too many requests (429): wait some minutes, and run the same again")
    if status is not None and status >= 500:
        return RunError(f"{doing}: Kaggle itself fails ({status}): wait some minutes, and run the same again")
    return RunError(f"{doing}: Kaggle refuses ({status}): {said}: {advice_on(said)}")


@contextmanager
def push_advice() -> Iterator[None]:
    """Let a lost connection say that it is not known whether a version was made."""
    import requests

    try:
        yield
    except requests.exceptions.HTTPError:
        raise
    except requests.exceptions.RequestException as error:
        raise RunError(
            f"the connection was lost while the kernel was pushed ({type(error).__name__}), and whether a version was "
            "made is not known: look by `python build_kernel.py status`, then push again"
        ) from error


def advice_on(refused: str) -> str:
    """What to do about a refusal of a kernel, by what it contains."""
    for pattern, advice in _PUSH_ADVICE:
        if re.search(pattern, refused, re.IGNORECASE):
            return advice
    return "correct that in the manifest, build and push again"


def one_line(text: str | None, limit: int = 300) -> str:
    """A text of the server's on one line, cut."""
    line = " ".join((text or "").split())
    return line if len(line) <= limit else line[:limit] + "..."
