"""The folders that commands write as a whole, and what is lost where an earlier one is replaced."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

from kernel.commands.written import WRITTEN_NAME, changed_files
from kernel.errors import InputError
from kernel.folders import ResultFolder, refuse_to_replace
from kernel.text import first_names, spreadsheet_cell

#: The table of a report, a row per image.
SCORES_TABLE = "scores.csv"
#: The columns of tables with a row per image that name it.
_NAME_COLUMNS = ("image", "id")


def known_results() -> dict[str, ResultFolder]:
    """What each command leaves in the folder of its --out."""
    from kernel.data.prepare_report import REPORT_NAME  # these take a second, which `--help` need not
    from kernel.data.prepared import PREPARED_NAME
    from kernel.data.splits import FOLDS_NAME
    from kernel.export.kinds import IMAGES_TABLE, RESULT_NAMES, SET_EXPORTS
    from kernel.report.builder import REPORT_FOLDER, REPORT_PAGE
    from kernel.tuning.stage_evidence import STAGE_EVIDENCE_MARKER, STAGE_EVIDENCE_NAMES
    from kernel.tuning.threshold_evidence import EVIDENCE_MARKER, EVIDENCE_NAMES

    return {
        "predict": ResultFolder("predict", (*RESULT_NAMES, WRITTEN_NAME), (IMAGES_TABLE, SET_EXPORTS["tables"])),
        "validate": ResultFolder("validate", (SCORES_TABLE, "pictures", REPORT_PAGE, REPORT_FOLDER), (SCORES_TABLE,)),
        "tune": ResultFolder("tune", EVIDENCE_NAMES, (EVIDENCE_MARKER,)),
        "stages": ResultFolder("tune --stages", STAGE_EVIDENCE_NAMES, (STAGE_EVIDENCE_MARKER,)),
        "select": ResultFolder("select", ("selection.csv", "selection.png"), ("selection.csv",)),
        "prepare": ResultFolder("prepare", (PREPARED_NAME, REPORT_NAME, FOLDS_NAME), (PREPARED_NAME, REPORT_NAME)),
    }


def refuse_to_replace_result(
    target: Path, command: str, images: Collection[str] | None = None, *, replace: bool = False
) -> None:
    """Refuse a folder that holds anything else than an earlier result of the same: better before the work than after.

    Args:
        target: the folder to be written.
        command: what is to be written there, by its name in `known_results`.
        images: the ids that the new result will have, where an earlier one has a table of them.
        replace: what --replace says: results of other commands and of other images, and work in them, may be replaced.

    Raises:
        InputError: `target` may not be replaced.
    """
    known = known_results()
    refuse_to_replace(target, known[command], tuple(known.values()), replace=replace)
    if images is not None and not replace:
        names = {form for image_id in images for form in (image_id, spreadsheet_cell(image_id))}
        lost = [image_id for image_id in earlier_images(target) if image_id not in names]
        if lost:
            raise InputError(
                f"{target} holds results of {len(lost)} images that are not among these ({first_names(lost)}), and "
                "would be replaced as a whole: name another folder, or give --replace"
            )
    if WRITTEN_NAME in known[command].names and not replace:
        changed = changed_files(target)
        if changed:
            raise InputError(
                f"{target} holds {len(changed)} files that may have been changed or added since it was written "
                f"({first_names(changed)}), and would be replaced as a whole: name another folder, or give --replace"
            )


def earlier_images(target: Path) -> list[str]:
    """The images of which an earlier result has something, as its table names them; none where there is no result."""
    from kernel.export.kinds import IMAGES_TABLE

    found: list[str] = []
    for path in (target / IMAGES_TABLE, target / SCORES_TABLE):
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace", newline="") as stream:
                rows = [row for row in csv.DictReader(stream) if not row.get("failure")]
            found += [row[name] for row in rows for name in _NAME_COLUMNS if row.get(name)]
    return found
