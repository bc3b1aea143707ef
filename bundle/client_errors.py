"""What Kaggle's client raises, as one line with advice."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kernel.errors import RunError
from kernel.manifest.types import ACCELERATOR_NAMES

LOG_IN = (
    "run `kaggle auth login`, or make a token at kaggle.com/settings/api and put it into the environment as "
    "KAGGLE_API_TOKEN or into the file ~/.kaggle/access_token"
)
#: What Kaggle's refusals of a kernel contain, and what to do about it.
_PUSH_ADVICE = (
    # First, for these name the accelerator as well, and that a limit is exceeded.
    (r"phone|verif", "verify your phone number at kaggle.com/settings"),
    (r"quota", "wait until the weekly quota is renewed: `python build_kernel.py quota` says when"),
    (
        r"too large|maximum.{0,30}size|exceed.{0,30}(size|bytes)|1,?000,?000",
        "the script must stay below 900,000 bytes: take out what it need not carry",
    ),
    (
        r"accelerator|machine.?shape",
        f"correct `kernel.accelerator` in the manifest: known are {', '.join(ACCELERATOR_NAMES)}",
    ),
    (r"docker|image", "correct `kernel.docker_image` in the manifest, or leave it out"),
    (r"session count|concurrent|already running", "wait until your other run ends, or cancel it, then push again"),
    (r"title|slug|conflict", "give the kernel another `kernel.title` and `kernel.id` in the manifest"),
    (r"rules|accept", "accept the competition's rules on its page, then push again"),
)
#: The same of submissions.
_SUBMIT_ADVICE = (
    (
        r"output file|no submission|not found",
        "the run has left no submission.csv: `python build_kernel.py logs` shows why",
    ),
    (r"limit|maximum|exceed|too many|per day|daily", "wait until the day is over (UTC), then submit"),
    (r"deadline|closed|ended|late", "see on the competition's page whether it still takes submissions"),
    (r"rules|accept", "accept the competition's rules on its page, then submit again"),
    (r"internet|gpu|accelerator|runtime", "push a version that keeps to the competition's rules, and submit that"),
)


class KaggleError(RunError):
    """What Kaggle or its client says no to.

    Args:
        what: was tried, and how it ended.
        advice: the next step.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}: {advice}")
        self.what = what


class NotThereError(KaggleError):
    """Kaggle has no such thing, or does not show it to this user."""


class ForbiddenError(NotThereError):
    """Kaggle has it, maybe, and does not let this user at it."""


class PassingError(KaggleError):
    """Kaggle fails itself, does not answer or cannot be reached: the same may go well later."""


class OddAnswerError(PassingError):
    """Something answers that the client does not understand: not Kaggle, a page in its place, or a newer Kaggle."""


class UnknownOutcomeError(KaggleError):
    """Something was sent that is not to be sent twice, and whether it arrived is not known."""


@contextmanager
def asking(
    doing: str,
    advise: Callable[[str], str] | None = None,
    shown: tuple[Path, str] | None = None,
    secret: bool = False,
) -> Iterator[None]:
    """Raise what the client raises in the block as one line with advice.

    Args:
        doing: says what is tried.
        advise: gives the advice on a refusal, by its text.
        shown: a folder, and what messages call it.
        secret: what the client's errors say may hold a login, and is not told.

    Raises:
        NotThereError: Kaggle has no such thing, or does not show it.
        PassingError: Kaggle cannot be reached, fails itself, or does not answer.
        OddAnswerError: the client does not understand the answer.
        KaggleError: Kaggle refuses.
    """
    import requests
    import urllib3

    def told(error: Exception) -> str:
        text = one_line(str(error))
        return text if shown is None else text.replace(str(shown[0]), shown[1])

    try:
        yield
    except requests.exceptions.HTTPError as error:
        raise refusal(doing, error, advise) from error
    except json.JSONDecodeError as error:  # of requests as well
        raise OddAnswerError(
            f"{doing}: what answers is not Kaggle, or not as it should ({told(error)})",
            "see that no proxy or log-in page of your network answers in its place"
            + (", and that the files in ~/.kaggle are whole" if secret else "")
            + ", and run the same again later",
        ) from error
    except (requests.exceptions.ReadTimeout, requests.exceptions.ConnectTimeout) as error:
        raise PassingError(f"{doing}: Kaggle does not answer", "wait some minutes, and run the same again") from error
    except requests.exceptions.InvalidHeader as error:
        raise KaggleError(f"{doing}: the login has characters that none can have", LOG_IN) from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
        raise PassingError(
            f"{doing}: Kaggle cannot be reached ({type(error).__name__})",
            "see that the network and any proxy work, and run the same again",
        ) from error
    except (ValueError, OSError, AttributeError, LookupError, TypeError, RecursionError) as error:
        if secret:
            raise KaggleError(
                f"{doing}: the client cannot use the login that it finds, or the answer to it ({type(error).__name__})",
                f"see that the files in ~/.kaggle can be read, and are whole; {LOG_IN}",
            ) from error
        raise told_refusal(doing, error, told(error), advise) from error


def told_refusal(doing: str, error: Exception, text: str, advise: Callable[[str], str] | None) -> KaggleError:
    """The error for what the client itself says no to, or stumbles over; `text` is what it says, `advise` as above."""
    import requests

    cause = error.__cause__ or error.__context__
    if isinstance(error, ValueError) and isinstance(cause, requests.exceptions.HTTPError):
        return refusal(doing, cause, advise)
    if isinstance(error, ValueError) and "Upload unsuccessful" in text:
        return PassingError(f"{doing}: {text}", "run the same again, whole files are not sent twice")
    if isinstance(error, ValueError) and "does not match expected size" in text:
        return PassingError(f"{doing}: it has not arrived whole ({text})", "run the same again")
    if isinstance(error, ValueError):
        return KaggleError(f"{doing}: the client refuses: {text}", "correct that, and run the same again")
    if isinstance(error, OSError):
        advice = "see that this file or folder can be read and written, and run the same again"
        return KaggleError(f"{doing}: {text}", advice)
    return OddAnswerError(  # it looks into the answer for what is not there
        f"{doing}: the client does not understand Kaggle's answer ({type(error).__name__}: {text})",
        "update it by `python -m pip install --upgrade kaggle six`, or run the same again later",
    )


def refusal(doing: str, error: Any, advise: Callable[[str], str] | None = None) -> KaggleError:
    """The error for an answer that is none, with what to do; `advise` as for `asking`."""
    status = status_of(error)
    said = one_line(str(error))
    if status == 401:
        return KaggleError(
            f"{doing}: Kaggle does not take the login (401), which is {login_source()}",
            "it is expired, revoked or mistyped; take it away first, for the client may prefer it to a new one; "
            f"then {LOG_IN}",
        )
    if status == 403:
        return ForbiddenError(
            f"{doing}: not allowed (403)",
            "see that the name is right, that it is yours or public, and that you have accepted the competition's "
            f"rules ({said})",
        )
    if status == 404:
        return NotThereError(f"{doing}: not there (404)", f"see that the name is right ({said})")
    if status == 409:
        return KaggleError(
            f"{doing}: in conflict with what is there or under way (409)",
            f"wait a minute and run the same again, or choose another name ({said})",
        )
    if status == 429:
        return PassingError(f"{doing}: too many requests (429)", "wait some minutes, and run the same again")
    if status >= 500:
        return PassingError(f"{doing}: Kaggle itself fails ({status})", "wait some minutes, and run the same again")
    advice = "see that what the manifest says is right" if advise is None else advise(said)
    return KaggleError(f"{doing}: Kaggle refuses ({status}): {said}", advice)


def token_source() -> str | None:
    """Where the client has found a token, for a message; None where there is none."""
    from kagglesdk.kaggle_env import get_access_token_from_env

    source = get_access_token_from_env()[1]
    return None if source is None else "the token in " + ("~/.kaggle/" if source == "access_token" else "") + source


def login_source() -> str:
    """Which login the client uses, for a message: of several, it prefers them in this order."""
    token = token_source()
    if token is not None:
        return token
    if os.environ.get("KAGGLE_KEY"):
        return "the key in KAGGLE_KEY"
    folders = (os.environ.get("KAGGLE_CONFIG_DIR") or "~/.kaggle", os.environ.get("XDG_CONFIG_HOME") or "~/.config")
    for path in (Path(folders[0], "kaggle.json"), Path(folders[1], "kaggle", "kaggle.json")):
        if path.expanduser().is_file():
            return f"the key in {path}"
    return "what `kaggle auth login` keeps in ~/.kaggle/credentials.json"


def status_of(error: Any) -> int:
    """The status of an HTTPError; 0 where there was no answer. Kaggle may say it in the body of one that is well."""
    if error.response is None:
        return 0
    status = int(error.response.status_code)
    try:
        return status if status >= 400 else int(error.response.json()["code"])
    except (ValueError, LookupError, TypeError):
        return status


@contextmanager
def sending_once(what: str, look: str) -> Iterator[None]:
    """Around `asking`, for what is not to be sent twice: an answer that is lost says that the outcome is not known.

    Args:
        what: may have been done.
        look: how to see whether it was.

    Raises:
        UnknownOutcomeError: the answer was lost.
    """
    try:
        yield
    except PassingError as error:
        if "(429)" in error.what:  # which is an answer
            raise
        raise UnknownOutcomeError(f"{error.what}, and whether {what} is not known", look) from error


def push_advice(refused: str) -> str:
    """What to do about a refusal of a kernel, by what it contains."""
    return advice_by(_PUSH_ADVICE, refused) or "correct that in the manifest, build and push again"


def submit_advice(refused: str) -> str:
    """What to do about a refusal of a submission, by what it contains."""
    return advice_by(_SUBMIT_ADVICE, refused) or "see the competition's page, under its rules, what it takes"


def advice_by(known: tuple[tuple[str, str], ...], text: str) -> str | None:
    """The advice of the first pattern that a text contains."""
    return next((advice for pattern, advice in known if re.search(pattern, text, re.IGNORECASE)), None)


def one_line(text: str | None, limit: int = 300) -> str:
    """A text of the server's on one line, cut."""
    line = " ".join((text or "").split())
    return line if len(line) <= limit else line[:limit] + "..."
