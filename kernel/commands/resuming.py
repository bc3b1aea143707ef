"""Folders that a command fills image by image: where it is stopped, the same command goes on from there."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from kernel.commands.results import earlier_images
from kernel.commands.written import WRITTEN_NAME, changed_files, file_facts, note_written, read_note
from kernel.errors import InputError, RunError
from kernel.files import free_beside, writing
from kernel.folders import remove_folder, replace_folder, scratch_folder
from kernel.locks import sole_writer
from kernel.log import LOG
from kernel.runtime.journal import JOURNAL_FORMAT, Journal, JournalContent, content_digest, read_journal
from kernel.text import first_names, spreadsheet_cell


class NamedFile(Protocol):
    """An image with a name of its own; several may be of one file."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path: ...


class FinishedImages:
    """The images that are finished in a folder, by a journal beside it: each with what it has given.

    Args:
        journal: the file of the journal; one with another head must not be there.
        head: what the results are made of.
        images: the images of this run; others in the journal, and those whose file is another now, do not count.
    """

    def __init__(self, journal: Path, head: Mapping[str, Any], images: Sequence[NamedFile]):
        self._digests: dict[Path, str | None] = {}
        paths = {image.name: image.path for image in images}
        records = [
            record
            for record in read_journal(journal).records
            if record["image"] in paths
            and record.get("digest") is not None
            and self._digest(paths[record["image"]]) == record["digest"]
        ]
        self._results = {record["image"]: record["result"] for record in records if "result" in record}
        self._stops = Counter(record["image"] for record in records if "stopped" in record)
        self._count = len(images)
        self._journal = Journal(journal, head)
        if self._results:
            LOG.info("%d of %d images are finished already", len(self._results), len(images))

    def __len__(self) -> int:
        return len(self._results)

    def get(self, image: NamedFile) -> Any | None:
        """What a finished image has given; None: it is not finished, and is about to be read."""
        self._digest(image.path)
        return self._results.get(image.name)

    def add(self, image: NamedFile, result: Any) -> None:
        """Take note that an image is finished, its files written, and of what it has given, as JSON has it."""
        self._results[image.name] = result
        self._journal.append({"image": image.name, "digest": self._digest(image.path), "result": result})

    def stopped(self, image: NamedFile, reason: str) -> int:
        """Take note that an image has ended the run, and why; returns how often it has by now."""
        self._stops[image.name] += 1
        self._journal.append({"image": image.name, "digest": self._digest(image.path), "stopped": reason})
        return self._stops[image.name]

    def stops(self, image: NamedFile) -> int:
        """How often an image has ended the run."""
        return self._stops[image.name]

    def without_result(self, images: Sequence[NamedFile]) -> list[str]:
        """The names of those images that are not finished."""
        return [image.name for image in images if image.name not in self._results]

    @property
    def leaves_some(self) -> bool:
        """Whether some images have results, and the others may have some yet: none of these has ended a run."""
        return 0 < len(self._results) < self._count and not self._stops

    @property
    def has_notes(self) -> bool:
        """Whether there is anything that the next run is to know."""
        return bool(self._results or self._stops)

    def _digest(self, path: Path) -> str | None:
        """Of the file as it was when it was first asked for: one that changes later on is read again next time."""
        if path not in self._digests:
            self._digests[path] = folder_digest(path) if path.is_dir() else content_digest(path)
        return self._digests[path]

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()


def folder_digest(folder: Path) -> str:
    """A checksum of the names, sizes and times of all files in a folder."""
    digest = hashlib.sha256()
    for path, (size, time_ns) in file_facts(folder).items():
        digest.update(f"{path}\0{size}\0{time_ns}\0".encode())
    return digest.hexdigest()[:32]


@contextmanager
def unfinished_folder(target: Path) -> Iterator[Path]:
    """The hidden folder beside `target` for what is not finished, there or not; no other process has it meanwhile.

    Raises:
        InputError: another process is in the block for the same target, or the folder around it cannot be written.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with sole_writer(target):
        yield target.parent / f".{target.name}.unfinished"


@contextmanager
def resumed_folder(
    target: Path, made_of: Sequence[str], images: Sequence[NamedFile], *, replace: bool = False
) -> Iterator[tuple[Path, FinishedImages]]:
    """A folder to write into, put in `target`'s place at the end, and the images that are finished in it.

    Where the block ends too soon, however that comes, the folder stays, hidden beside `target`, and is gone on with the
    next time. One that was made of something else is begun anew, if it has no results or `replace` says so. `target`
    stays as it was until the end.
    What was written is noted in it, for `changed_files`.

    Where some images have no result in the end, the same command does these alone, in a copy of `target`; unless
    somebody has changed that.

    Hours may lie between the command's look at `target` and the end. Where somebody has saved something there
    meanwhile, `target` stays, and the new folder is put beside it. So it is where `target` has results of images that
    have none in the end, as by a wrong option.

    Args:
        target: the folder of the results, or a link to it.
        made_of: texts that decide what the results are.
        images: all images.
        replace: what --replace says: work in `target` may be replaced, and that of a run that was stopped.

    Raises:
        InputError: as `unfinished_folder` and `refuse_to_begin_anew`, or `target` cannot be replaced.
        RunError: the disk is full; or `target` stays, as somebody has worked in it meanwhile, or results would be lost.
    """
    target = target.resolve()
    with unfinished_folder(target) as unfinished:
        head = {"journal": JOURNAL_FORMAT, "made_of": hashlib.sha256("\0".join(made_of).encode("utf-8")).hexdigest()}
        folder, journal = unfinished / "new", unfinished / "journal.log"
        with writing(unfinished):
            earlier = read_journal(journal)
            if folder.is_dir() and not replace:
                refuse_to_begin_anew(target, earlier, head)
            # A journal without its folder is of a run that has put the folder in place, where it may be another now.
            if not earlier.is_of(head) or not (folder.is_dir() or copied_back(target, folder)):
                remove_folder(unfinished)
            folder.mkdir(parents=True, exist_ok=True)
            finished = FinishedImages(journal, head, images)
        try:
            with writing(unfinished):
                yield folder, finished
                note_written(folder)
                shutil.copyfile(folder / WRITTEN_NAME, unfinished / WRITTEN_NAME)
            finished.close()
            reasons = [] if replace else reasons_to_keep(target, finished.without_result(images))
            place = free_beside(target, "new") if reasons else target
            replace_folder(folder, place)
        except BaseException:
            finished.close()
            if not finished.has_notes:
                remove_folder(unfinished)
            else:
                LOG.error(
                    "%d of %d images are finished: the same command goes on from there", len(finished), len(images)
                )
            raise
        if reasons or not finished.leaves_some:
            remove_folder(unfinished)
        if reasons:
            raise RunError(
                f"{target} stays as it is, for {' and '.join(reasons)}: the new results, of {len(finished)} of "
                f"{len(images)} images, are in {place}; take from the two what you want, or give --replace"
            )


def refuse_to_begin_anew(target: Path, earlier: JournalContent, head: Mapping[str, Any]) -> None:
    """Refuse to throw away what a run that was stopped has finished of something else.

    Args:
        target: what it was to write.
        earlier: its journal.
        head: that of the new run.

    Raises:
        InputError: it has finished images.
    """
    count = len({record["image"] for record in earlier.records if "result" in record})
    if count and earlier.head is not None and not earlier.is_of(head):
        raise InputError(
            f"{target}: an earlier run was stopped, by other options or members, and has {count} images finished: "
            "repeat its command, name another --out, or give --replace to begin anew"
        )


def reasons_to_keep(target: Path, without_result: Sequence[str]) -> list[str]:
    """Why a folder of earlier results should not be replaced, as parts of a message.

    Args:
        target: the folder, there or not.
        without_result: images that the new results have nothing of.
    """
    reasons = []
    if changed := changed_files(target):
        reasons.append(f"{len(changed)} file(s) in it were changed or added while this ran ({first_names(changed)})")
    earlier = set(earlier_images(target))
    if lost := [name for name in without_result if {name, spreadsheet_cell(name)} & earlier]:
        reasons.append(f"it holds results of {len(lost)} image(s) that failed now ({first_names(lost)})")
    return reasons


def copied_back(target: Path, folder: Path) -> bool:
    """Make `folder` a copy of `target`, if that is as the note beside `folder` has it; returns whether it was.

    Raises:
        InputError, OSError: it cannot be written.
    """
    noted = read_note(folder.parent)
    if not noted or file_facts(target) != noted:
        return False
    with scratch_folder(folder.parent, folder.name) as scratch:  # a copy in part would be taken for a whole one
        whole = scratch / "whole"  # the scratch folder itself is for its owner only
        for name in noted:
            copy = whole / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(target / name, copy)
        whole.rename(folder)
    return True
