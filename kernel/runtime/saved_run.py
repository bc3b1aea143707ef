"""A run whose results are safe as they come: in a journal, and in a submission.csv that is valid at any time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernel.errors import InputError, RunError
from kernel.files import is_full, remove_unfinished, writing
from kernel.images.listing import AskedIds
from kernel.log import LOG
from kernel.postprocess.submission import SubmissionWriter
from kernel.runtime.failures import FailedImage
from kernel.runtime.journal import Journal, content_digest, is_written, put_aside, read_journal
from kernel.runtime.results import RunResults

#: submission.csv is made anew at most so often, in multiples of the time that this takes: what it costs is bounded.
SAVING_SHARE = 400
#: Of a journal's record of an image that has a result.
RECORD_NAMES = ("device", "rles", "image_shape", "summary", "peaks")
#: How long a thread waits for the one that writes, where the process is to end soon.
LOCK_SECONDS = 3.0


class SavedRun:
    """The results of this process's images, in memory and on disk.

    A run that ended too soon is gone on with: images that a journal with the same head has a result for are done, if
    their files are the same. Others are not, those that had failed last. A journal with another head is put aside.

    From its start on, the working folder holds a submission.csv that is valid, with an empty row for every image that
    is not done; one that an earlier run has left stays until `go_on`. It is made anew now and then; a killed run loses
    at most what came since from that file, and nothing from the journal.

    Args:
        working: the folder of the results.
        paths: all images of the run.
        share: those of them that this process does.
        rank: this process's, where there are several. Only the first one writes submission.csv.
        asked: ids without an image, which have an empty row, and how those of images are written.

    Raises:
        InputError: the folder cannot be written, or an image's name cannot stand in submission.csv.
    """

    def __init__(
        self,
        working: Path,
        paths: Sequence[Path],
        share: Sequence[Path],
        rank: int = 0,
        asked: AskedIds | None = None,
    ):
        self.results = RunResults()
        self.submission = working / "submission.csv"
        self._paths, self._share, self._rank = list(paths), list(share), rank
        self._head: Mapping[str, Any] = {}
        self._journal_path = working / f"journal{f'-{rank:04}' if rank else ''}.log"
        self._journal: Journal | None = None
        self._unwritten: list[dict[str, Any]] = []  # records that the journal lacks
        self._lock = threading.RLock()
        self._failed_before: set[str] = set()
        self._warned: set[str] = set()
        self._last_save, self._save_seconds = 0.0, 0.0
        asked = asked or AskedIds()
        self._writer = SubmissionWriter([*(path.stem for path in paths), *asked.absent], asked.spelled)
        if self.submission.is_dir():
            raise InputError(f"{self.submission} is a folder, and a file is to be written there: move it away")
        if not self.submission.is_file():
            self._save()

    def go_on(self, head: Mapping[str, Any]) -> None:
        """Take over what is done already, and keep what comes from now on.

        Args:
            head: what the results are made of; None for what is not known.

        Raises:
            InputError: the folder cannot be written, or another process does.
            RunError: its disk is full, by the journal.
        """
        if is_written(self._journal_path):
            raise InputError(f"another run writes {self._journal_path}: wait for its end, or choose another folder")
        with self._lock:
            self._head = head
            with writing(self._journal_path):
                self._read_journals()
                self._journal = Journal(self._journal_path, head)
                if not self._rank:  # it is the one that writes such files
                    remove_unfinished(self.submission)
            self._save()

    @property
    def todo(self) -> list[Path]:
        """The images of this process's share that have no result yet; those that failed in an earlier run come last."""
        left = [path for path in self._share if path.stem not in self.results.rows]
        return sorted(left, key=lambda path: path.stem in self._failed_before)

    @property
    def unserved(self) -> list[Path]:
        """The images of this process's share that have no result, through no fault of their files."""
        rows, failed = self.results.rows, self.results.failed
        return [
            path
            for path in self._share
            if path.stem not in rows or (path.stem in failed and not failed[path.stem].wrong_input)
        ]

    def _read_journals(self) -> None:
        """Take over what journals in the folder have of this run, and put those of another run aside."""
        paths = {path.stem: path for path in self._share}
        for journal in sorted(self.submission.parent.glob("journal*.log")):
            is_own = journal == self._journal_path
            try:
                content = read_journal(journal)
            except OSError as error:
                if is_own:
                    LOG.warning("cannot read %s (%s): put aside as %s", journal, error.strerror, put_aside(journal))
                continue
            if not content.is_of(self._head):
                if (is_own and content.damaged) or (
                    content.head is not None and (is_own or not (self._rank or is_written(journal)))
                ):
                    with contextlib.suppress(FileNotFoundError):  # its own process was quicker
                        LOG.warning(
                            "%s is of another script, manifest or weights: put aside as %s",
                            journal.name, put_aside(journal).name,
                        )  # fmt: skip
                continue
            if content.damaged:
                LOG.warning("%s: %d damaged line(s) are not used", journal.name, content.damaged)
            for record in content.records:
                if record.get("image") in paths:
                    self._take_over(record, paths[record["image"]])
        if self.results.summaries:
            LOG.info("%d of %d images are done already, by the journal", len(self.results.summaries), len(self._share))

    def _take_over(self, record: Mapping[str, Any], path: Path) -> None:
        """Take over a journal's record of an image, unless it was made of another file, or is none."""
        if record.get("failure", "") is not None:
            self._failed_before.add(path.stem)
            return
        if path.stem in self.results.summaries or not {"digest", *RECORD_NAMES} <= set(record):
            return
        digest = content_digest(path)
        if None not in (digest, record["digest"]) and digest != record["digest"]:
            return
        try:
            self._writer.add(path.stem, record["rles"], tuple(record["image_shape"]))
        except InputError as error:
            LOG.warning("%s: the journal's result is not used", error)
            return
        self.results.succeed(path.stem, record, record["device"])

    def succeed(self, path: Path, answer: Mapping[str, Any], device: str) -> None:
        """Keep an image's result, as `ImageWorker` answers it.

        Raises:
            InputError: as `SubmissionWriter.add`.
        """
        digest = content_digest(path)  # before the lock: a disk that hangs must not keep the last work from it
        with self._lock:
            height, width = answer["image_shape"]
            self._writer.add(path.stem, answer["rles"], (height, width))
            self.results.succeed(path.stem, answer, device)
            record = {**answer, "device": device}
            self._append(path, digest, {"failure": None, **{name: record[name] for name in RECORD_NAMES}})
            self.save_now_and_then()

    def fail(self, path: Path, failure: FailedImage) -> None:
        """Keep that an image has no result, and why."""
        digest = content_digest(path)
        with self._lock:
            self.results.fail(path.stem, failure)
            self._append(path, digest, {"failure": asdict(failure)})

    def _append(self, path: Path, digest: str | None, record: Mapping[str, Any]) -> None:
        """Add a record to the journal; where that cannot be, the run goes on without, and the log says so.

        Such records are added as soon as it can be written again.
        """
        self._unwritten.append({"image": path.stem, "digest": digest, **record})
        try:
            if self._journal is not None and self._journal.is_lost:
                LOG.warning("%s was deleted, and is written again", self._journal_path)
                self._begin_anew()
            elif self._journal is None:
                self._begin_anew()
            self._add_unwritten()
        except (OSError, InputError) as error:
            wrong = error.strerror if isinstance(error, OSError) else error
            self._warn_once(f"cannot write {self._journal_path} ({wrong}): a killed run would lose its images")

    def _add_unwritten(self) -> None:
        """Add what the journal lacks, as far as that can be."""
        assert self._journal is not None
        while self._unwritten:
            self._journal.append(self._unwritten[0])
            del self._unwritten[0]

    def _begin_anew(self) -> None:
        """Write the journal again, which somebody has deleted, moved or replaced. The other processes' are theirs."""
        self.close()
        self._journal_path.parent.mkdir(parents=True, exist_ok=True)
        if self._journal_path.exists():
            LOG.warning("what is there now is put aside as %s", put_aside(self._journal_path).name)
        self._journal = Journal(self._journal_path, self._head)
        self._unwritten = [self._record(path) for path in self._share if path.stem in self.results.rows]
        self._add_unwritten()

    def _record(self, path: Path) -> dict[str, Any]:
        """The journal's record of an image that has a result, or failed."""
        record = {"image": path.stem, "digest": content_digest(path), "failure": None}
        if path.stem in self.results.failed:
            return {**record, "failure": asdict(self.results.failed[path.stem])}
        return {**record, **self.results.answer(path.stem)}

    def save_now_and_then(self) -> None:
        """Make submission.csv anew, with what other processes have done by now, if that was not done just before."""
        with self._lock:
            if time.monotonic() - self._last_save < SAVING_SHARE * self._save_seconds:
                return
            try:
                self._save()
            except InputError as error:
                self._warn_once(f"{error}; until it can be written again, the journal alone has what is done")

    def _save(self) -> None:
        """Make submission.csv anew, of the results that there are.

        Raises:
            InputError: it cannot be written.
        """
        if self._rank:
            return
        begun = time.monotonic()
        if len(self._share) < len(self._paths):
            self.add_others()
        self._writer.write(self.submission)
        self._last_save = time.monotonic()
        self._save_seconds = self._last_save - begun

    def write(self) -> None:
        """Make submission.csv anew, for the last time, and try what helps where that fails.

        Raises:
            RunError: it cannot be written.
        """
        with self._lock:
            try:
                self._save()
                return
            except InputError as error:
                if self._is_written():
                    return
                LOG.error("%s; trying once more", error)
            with writing(self.submission, RunError):
                self.submission.parent.mkdir(parents=True, exist_ok=True)
                if self.submission.is_dir():
                    LOG.error("%s is a folder: put aside as %s", self.submission, put_aside(self.submission).name)
            try:
                self._save()
            except InputError as error:
                if not (is_full(error) and self._save_over_journal()):
                    raise RunError(
                        f"{error}; it is as it was written last, {self._journal_path} may have more"
                    ) from error

    def _is_written(self) -> bool:
        """Whether submission.csv has all that it would have."""
        try:
            return self.submission.is_file() and self.submission.read_bytes() == self._writer.content()
        except OSError:
            return False

    def _save_over_journal(self) -> bool:
        """Make submission.csv anew in the room of the journal, where that has enough; whether that was so.

        A killed run would lose its images in these moments; the next one would have no room either.
        """
        content = self._writer.content()
        if self._rank or self._journal is None or self._journal.is_lost:
            return False
        if self._journal_path.stat().st_size < len(content):
            return False
        with writing(self.submission, RunError):
            with self._journal_path.open("r+b") as file:
                file.write(content)
                file.truncate()
            self._journal_path.replace(self.submission)
        with contextlib.suppress(OSError, InputError):  # as far as there is room for it beside
            self._begin_anew()
        return True

    def take_for_good(self) -> bool:
        """Keep all other threads from changing the results, for a process that ends; whether that could be had."""
        return self._lock.acquire(timeout=LOCK_SECONDS)

    def add_others(self) -> None:
        """Add what the journals of other processes of this run have by now."""
        paths = {path.stem: path for path in self._paths}
        for journal in sorted(self.submission.parent.glob("journal-*.log")):
            with contextlib.suppress(OSError):
                content = read_journal(journal)
                for record in content.records if content.is_of(self._head) else []:
                    if record.get("image") in paths and record["image"] not in self.results.rows:
                        self._take_over(record, paths[record["image"]])

    def fail_rest(self, reason: str) -> None:
        """Let the images fail of which neither this process nor another one's journal has a result by now."""
        with self._lock:
            self.add_others()
            self.results.fail_rest(self._paths, reason)

    def replace_results(self, results: RunResults) -> None:
        """Take the results of the processes that have told theirs, this one among them.

        What journals have told stays for images that are not among them, or failed: submission.csv has their rows.

        Raises:
            InputError: as `SubmissionWriter.add`.
        """
        with self._lock:
            for image_id in results.summaries:
                if image_id not in self.results.summaries:
                    rles, shape = results.rows[image_id]
                    self._writer.add(image_id, rles, shape)
            told = self.results
            self.results = results
            for image_id in told.summaries.keys() - results.summaries.keys():
                answer = told.answer(image_id)
                results.succeed(image_id, answer, answer["device"])

    def forget(self) -> None:
        """Delete the journals of the run: all its images have a result, and submission.csv has them."""
        for journal in self.submission.parent.glob("journal*.log"):
            try:
                if read_journal(journal).is_of(self._head):
                    journal.unlink(missing_ok=True)
            except OSError as error:
                LOG.warning("cannot delete %s: %s", journal, error.strerror)

    def close(self) -> None:
        """Let other runs have the folder."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            LOG.error("%s", text)
