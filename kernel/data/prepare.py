"""The preparation: a source's images mended by several processes, split into folds, and written with a report.

source = read_competition(Path("data"), astro_fix=Path("data/hck_fix"))
report = prepare(source, Path("prepared"), split="group", folds=5, workers=4)
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from tqdm import tqdm

from kernel.data.pictures import Picture, same_pictures
from kernel.data.prepare_image import PreparedResult, prepare_image
from kernel.data.prepare_report import (
    REPORT_NAME,
    PrepareReport,
    ReasonCount,
    build_report,
    count_reasons,
    is_report,
    reason_lines,
    split_record,
    write_report,
)
from kernel.data.prepared import (
    PREPARED_NAME,
    SHOWN_FOLDER,
    PreparedDataset,
    PreparedImage,
    prepared_description,
    prepared_names,
    write_prepared,
)
from kernel.data.sources import Source, SourceImage
from kernel.data.splits import FOLDS, FOLDS_NAME, SampledImage, Split, make_split, write_folds
from kernel.errors import InputError, RunError
from kernel.files import writing
from kernel.log import LOG
from kernel.processes import map_in_processes
from kernel.text import first_names

#: What the description of a prepared folder ends with, after the source's name.
_PREPARED = ", prepared by python -m kernel prepare"
#: Images that are worth the start of a process.
_IMAGES_EACH = 4
#: Windows waits for no more processes than these.
_MOST_WORKERS = 61


def prepare(
    source: Source,
    out: Path,
    split: str | None = "group",
    folds: int = FOLDS,
    *,
    or_next_best: bool = False,
    workers: int = 1,
    replace: bool = False,
) -> PrepareReport:
    """Prepare a source and write annotations.json, report.json and, with a split, folds.csv into `out`.

    What can be wrong as a whole is looked for first; nothing is written then. What only the images
    show, as too few different ones for the folds, leaves an earlier preparation as it was, too. The files do not depend
    on `workers`.

    Args:
        source: of `read_competition`, `read_livecell`, `read_pseudo_labels` or `read_annotated_folder`.
        out: the prepared folder; an earlier preparation's files in it are replaced.
        split, folds, or_next_best: as `make_split` takes them; None: no folds.
        workers: processes; 1: this one alone.
        replace: files of those names may be replaced that are of another source, of other images, or of no preparation.

    Raises:
        InputError: no image is left (report.json, which says why, is written all the same), the split is not possible,
            or `out` is the competition's folder, cannot be written, or holds what only `replace` lets go.
        RunError: a worker process died, or the disk is full.
    """
    if (out / "train.csv").exists():
        raise InputError(
            f"{out} holds a train.csv: choose another folder, so that it stays clear which of the two is read"
        )
    if not replace:
        refuse_to_replace_others(source, out)
    made = None
    if split and source.images:  # better refused now than at the end
        lost = count_reasons(source.dropped_cells, (), source.dropped_images)
        made = _split(source, source.images, lost, split, folds, or_next_best=or_next_best)
    with _scratch_for_shown(source, out) as scratch:
        tasks = [
            dataclasses.replace(image, shown_path=scratch / f"{image.image_id}.png") if may_be_written(image) else image
            for image in source.images
        ]
        results = list(prepare_images(tasks, workers))
        kept = [task for task, result in zip(source.images, results, strict=True) if result.image]
        images = (_at_its_place(result.image, scratch, out) for result in results if result.image)
        dataset = PreparedDataset(source.class_names, tuple(images))
        report = build_report(source, results)
        if not kept:
            raise InputError(_nothing_left(report, out))
        same = _first_of_same([result.picture for result in results if result.picture])
        report = dataclasses.replace(
            report, same_pictures=tuple((name, first) for name, first in same.items() if name != first)
        )
        if split and (same or len(kept) < len(source.images)):
            made = _split(source, kept, report.reasons, split, folds, or_next_best=or_next_best, same=same)
        if made:
            report = dataclasses.replace(report, split=split_record(made))
        write_prepared(out, dataset, f"{source.name}{_PREPARED}", lambda: _put_in_place(scratch, out / SHOWN_FOLDER))
    if made:
        write_folds(out / FOLDS_NAME, made.rows)
    elif (out / FOLDS_NAME).exists():
        (out / FOLDS_NAME).unlink()
        LOG.warning(
            "%s of an earlier preparation is removed, for it could name other images: --split makes folds",
            out / FOLDS_NAME,
        )
    write_report(report, out)
    return report


@contextmanager
def _scratch_for_shown(source: Source, out: Path) -> Iterator[Path]:
    """A folder in `out` for pictures that are not in their place until annotations.json, which tells of them, is.

    Where none is shown otherwise than its file is read, nor called otherwise, there is no such folder, and nothing is
    written to it.
    """
    if not any(map(may_be_written, source.images)):
        yield out / SHOWN_FOLDER
        return
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{SHOWN_FOLDER}-", dir=out)
    with scratch as folder:
        yield Path(folder)


def may_be_written(image: SourceImage) -> bool:
    """Whether a picture of an image may be needed beside its file."""
    return image.showing is not None or image.is_renamed


def _at_its_place(image: PreparedImage, scratch: Path, out: Path) -> PreparedImage:
    """The image, with the path that it will have where it lies in the scratch folder."""
    path = out / SHOWN_FOLDER / image.path.name if image.path.parent == scratch else image.path
    return dataclasses.replace(image, path=path)


def _put_in_place(scratch: Path, shown: Path) -> None:
    """Move the pictures to where annotations.json says that they are; those of an earlier preparation are replaced."""
    if scratch == shown:
        return
    with writing(shown, RunError):
        for path in sorted(scratch.iterdir()):
            shown.mkdir(exist_ok=True)
            path.replace(shown / path.name)


def _first_of_same(pictures: Sequence[Picture]) -> dict[str, str]:
    """Of pictures that are the same, the first one's id by each one's."""
    groups = same_pictures(pictures)
    return {pictures[place].image_id: pictures[group[0]].image_id for group in groups for place in group}


def _nothing_left(report: PrepareReport, out: Path) -> str:
    """The message where every image was left out. The report is written; where it cannot be, the message says so."""
    lines = [f"no image is left to prepare, of {report.rows_read} rows read", *reason_lines(report.reasons)]
    try:
        write_report(report, out)
    except (InputError, RunError) as error:
        lines.append(str(error))
    else:
        earlier = f" ({PREPARED_NAME} beside it is of an earlier run)" if (out / PREPARED_NAME).exists() else ""
        lines.append(f"each of them is in {out / REPORT_NAME}{earlier}")
    return "\n".join(lines)


def _split(
    source: Source,
    images: Sequence[SourceImage],
    lost: Sequence[ReasonCount],
    name: str,
    folds: int,
    *,
    or_next_best: bool,
    same: Mapping[str, str] = MappingProxyType({}),
) -> Split:
    """`make_split` of a source's `images`; where it fails, the message also says what was left out before, for that may
    be the cause.

    `same`: of pictures that are the same, the first one's id by each one's.
    """
    sampled = [
        SampledImage(image.image_id, image.cell_type, image.sample_id, same.get(image.image_id, "")) for image in images
    ]
    try:
        return make_split(sampled, name, folds, or_next_best=or_next_best, sample_remedy=source.sample_remedy)
    except InputError as error:
        raise InputError("\n".join([str(error), *reason_lines(lost)])) from error


def refuse_to_replace_others(source: Source, out: Path) -> None:
    """Refuse to write over files that are no earlier preparation of the same source and, as far as told, its images.

    Raises:
        InputError: `out` holds such.
    """
    annotations, report, folds = (out / name for name in (PREPARED_NAME, REPORT_NAME, FOLDS_NAME))
    remedy = "name another --out, or give --replace"
    if annotations.exists():
        description = prepared_description(annotations)
        if description != f"{source.name}{_PREPARED}":
            of = f"is of '{description}'" if description.endswith(_PREPARED) else "was not written by prepare"
            raise InputError(f"{annotations} {of}, and would be replaced: {remedy}")
        names = {image.image_id for image in source.images}
        lost = [name for name in prepared_names(annotations) if name not in names] if names else []
        if lost:
            raise InputError(
                f"{out} holds {len(lost)} prepared images that are not among these ({first_names(lost)}), and would be "
                f"replaced: {remedy}"
            )
    elif folds.exists() or (report.exists() and not is_report(report)):
        path = folds if folds.exists() else report
        raise InputError(f"{path} was not written by prepare, and would be replaced: {remedy}")


def prepare_images(images: Sequence[SourceImage], workers: int) -> Iterator[PreparedResult]:
    """`prepare_image` of each, in order, by `workers` processes, with a progress bar.

    Raises:
        InputError: fewer than one worker.
        RunError: a worker process died or hangs.
    """
    if workers < 1:
        raise InputError(f"{workers} workers: at least 1 is needed")
    workers = min(workers, _MOST_WORKERS, -(-len(images) // _IMAGES_EACH))
    results = map(prepare_image, images)
    if workers > 1:
        results = map_in_processes(prepare_image, images, [_as_it_is] * workers, "try fewer workers (--workers 1)")
    yield from tqdm(results, total=len(images), unit="image", desc="preparing", mininterval=1)


def _as_it_is() -> None:
    """A worker needs nothing before its first image."""
