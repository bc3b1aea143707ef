"""`prepare`: annotations of any source in one form, with folds and a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kernel.commands.common import (
    add_gray_argument,
    add_plane_arguments,
    add_replace,
    add_scale_arguments,
)
from kernel.commands.options import positive_number, whole_number
from kernel.commands.rules import CommandRules, Excludes, Idle, Needs, StoreWritten, flag, is_given
from kernel.data.annotated_folder import read_annotated_folder
from kernel.data.livecell import read_livecell
from kernel.data.mask_files.forms import MASK_FORMS
from kernel.data.prepare import prepare
from kernel.data.prepare_report import REPORT_NAME
from kernel.data.prepared import PREPARED_NAME, SHOWN_FOLDER
from kernel.data.sources import Showing, Source, read_competition, read_pseudo_labels, with_samples
from kernel.data.splits import FOLDS, FOLDS_NAME, SPLIT_NAMES
from kernel.errors import InputError
from kernel.images.planes import ALL_FRAMES, choice_of_texts
from kernel.images.zoom import COMPETITION_PIXEL_UM

PREPARE_HELP = """\
Make a folder that train, validate and tune take as --data: annotations.json (COCO, run lengths), folds.csv, and
report.json, which says what was read, mended and dropped, by row and by image. Where no image is left, report.json
alone is written.

    python -m kernel prepare --competition DIR [--astro-fix DIR/hck_fix] --out OUT
    python -m kernel prepare --livecell-annotations train.json val.json --livecell-images DIR --out OUT
    python -m kernel prepare --pseudo-labels submission.csv --images DIR --cell-types summary.json --out OUT
    python -m kernel prepare --annotated DIR [--masks DIR] [--cell-type astro] --out OUT

Run lengths of --competition and --pseudo-labels count along rows. Some other competitions' count along columns: these
are refused where that shows, which it does not in square images.
--livecell-annotations takes other COCO files, too, whose categories are cell types, as predict's coco.json, or CVAT's;
with --cell-type whatever they are.
--annotated takes images with masks of other programs or of `predict`, in whatever of these forms lies there:
NAME_masks.tif or NAME_cp_masks.png, label images in a folder masks or labels, a mask file for each cell in a folder
masks/NAME or ID/masks beside ID/images, Cellpose's NAME_seg.npy, ImageJ's ROIs (NAME.zip), GeoJSON (NAME.geojson),
OME-Zarr labels (NAME.ome.zarr). What was found is said in one line. Cell types come from --cell-type, or else the
classes in the file, a folder called as a type, or predict's images.csv.

The images stay where they are. What members are shown otherwise, at another scale, at other gray levels or as a plane
of a stack, is written to OUT/shown; give --annotated or --livecell-annotations the same --pixel-size, --zoom,
--match-gray, --channel, --z and --frame that predict was given, and --member-pixel-size for members whose files tell a
size (pixel_size_um). Where an image's pixels are known, annotations.json keeps the size that is shown, by which train
and validate tell members of another one.
validate's truth is the masks of --data, and prepared ones have their holes filled and
corrections applied: to score one fold by the competition's own masks, give it the competition's folder and
--folds-csv OUT/folds.csv."""

#: Sources that may say of an image that nothing is in it, or that nobody annotated it.
EMPTY_SOURCES = ("livecell_annotations", "pseudo_labels", "annotated")
#: Sources that `--cell-types` tells the images' types of.
TYPED_SOURCES = ("pseudo_labels", "annotated", "livecell_annotations")
#: Sources of which few images, or uncertain ones, are trained on rather than scored.
UNSPLIT_SOURCES = ("pseudo_labels", "annotated")
#: Sources of masks that were found on images as members are shown them, and how that is told.
SHOWN_SOURCES = ("annotated", "livecell_annotations")
SHOWN_OPTIONS = ("pixel_size", "zoom", "member_pixel_size", "match_gray", "channel", "z", "frame")
#: The sources, the options that belong to each, and whether these are needed.
SOURCE_OPTIONS = {
    "competition": {"astro_fix": False},
    "livecell_annotations": {"livecell_images": True},
    "pseudo_labels": {"images": True},
    "annotated": {"masks": False, "mask_form": False},
}


def split_name(options: argparse.Namespace) -> str:
    """The split that is asked for, by name."""
    is_whole = any(is_given(options, name) for name in UNSPLIT_SOURCES)
    return options.split or ("none" if is_whole else "group")


def written(options: argparse.Namespace) -> list[Path]:
    """The files in the prepared folder, and the folder of images in it."""
    return [options.out / name for name in (PREPARED_NAME, REPORT_NAME, FOLDS_NAME, SHOWN_FOLDER)]


RULES = CommandRules(
    effects=(
        *(Needs([other], [source]) for source, others in SOURCE_OPTIONS.items() for other in others),
        *(Needs([option], SHOWN_SOURCES) for option in SHOWN_OPTIONS),
        Excludes(["member_pixel_size"], ["zoom"], ", which counts instead of sizes"),
        Needs(["keep_empty"], EMPTY_SOURCES),
        Needs(["cell_types"], TYPED_SOURCES),
        Idle(
            ["folds", "or_next_best"],
            lambda options: split_name(options) == "none",
            "is for a split, and none is made (--split)",
        ),
        Idle(
            ["or_next_best"],
            lambda options: split_name(options) == SPLIT_NAMES[-1],
            f"has nothing to take after the split {SPLIT_NAMES[-1]}",
        ),
    ),
    defaults={"folds": FOLDS, "member_pixel_size": COMPETITION_PIXEL_UM},
    reads=(*SOURCE_OPTIONS, "astro_fix", "livecell_images", "images", "masks", "cell_types"),
    writes=written,
)


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser(
        "prepare",
        help="make COCO annotations and folds of the competition's, LIVECell's or other programs' cells",
        description=PREPARE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    add_replace(parser, "replace what --out holds of another source, or of images that are not among these")
    parser.add_argument(
        "--split",
        choices=(*SPLIT_NAMES, "none"),
        help="group: plates and wells stay together; stratified-group: samples "
        "stay together, cell types are balanced; stratified: only that; none: no folds.csv "
        "(default: group; none for pseudo-labels, which are trained on and never scored, and for --annotated)",
    )
    parser.add_argument("--folds", type=whole_number(), metavar="N", help=f"how many (default: {FOLDS})")
    parser.add_argument(
        "--or-next-best",
        action="store_true",
        help="where sample ids are missing or too few for the split: the "
        "next one that is possible, of group, stratified-group, stratified",
    )
    parser.add_argument(
        "--keep-empty",
        action="store_true",
        help="but with --competition: images that are listed without a cell have none, and are kept to be trained on "
        "and scored (a competition's train.csv says so by an empty annotation)",
    )
    parser.add_argument(
        "--workers",
        type=whole_number(),
        metavar="N",
        help="processes; they do not change the result (default: one per core)",
    )
    parser.set_defaults(run=run_prepare, rules=RULES)


def run_prepare(options: argparse.Namespace) -> None:
    """Prepare annotated images."""
    from kernel.runtime.limits import usable_processors

    source = with_samples(read_source(options), options.cell_types)
    split = split_name(options)
    report = prepare(
        source,
        options.out,
        None if split == "none" else split,
        options.folds,
        or_next_best=options.or_next_best,
        workers=usable_processors() if options.workers is None else options.workers,
        replace=options.replace,
    )
    print(report.describe())
    print(f"annotations.json, {'' if split == 'none' else 'folds.csv, '}report.json: {options.out}")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name one of the sources, for `read_source`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--competition", type=Path, metavar="DIR", help="train.csv and train/<id>.png")
    source.add_argument(
        "--livecell-annotations", type=Path, nargs="+", metavar="JSON", help="COCO files: LIVECell's, or of cell types"
    )
    source.add_argument("--pseudo-labels", type=Path, metavar="CSV", help="a submission.csv: its masks as annotations")
    source.add_argument("--annotated", type=Path, metavar="DIR", help="images with masks; sub-folders are searched")
    parser.add_argument(
        "--astro-fix",
        type=Path,
        metavar="DIR",
        help="with --competition: corrected masks of its astro images, <id>.png; where the third channel (of B, G, R: "
        "red) is zero, no mask keeps a pixel",
    )
    parser.add_argument(
        "--livecell-images", type=Path, metavar="DIR", help="with --livecell-annotations; its sub-folders are searched"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="with --pseudo-labels: the images that it is of")
    parser.add_argument(
        "--masks", type=Path, metavar="DIR", help="with --annotated: where the masks are (default: with the images)"
    )
    parser.add_argument(
        "--mask-form",
        choices=tuple(MASK_FORMS),
        help="with --annotated: the form to read, where images have masks in several",
    )
    parser.add_argument(
        "--cell-types",
        "--cell-type",
        action=StoreWritten,
        metavar="TYPE|FILE",
        help="with --pseudo-labels, --annotated or --livecell-annotations: the type of all images, or a CSV of id and "
        "cell_type, or the kernel's summary.json; a column sample_id of the CSV says which images belong together",
    )
    parser.add_argument(
        "--member-pixel-size",
        type=positive_number(),
        metavar="UM",
        help="with --annotated or --livecell-annotations: side of a pixel, in micrometres, that the members know, "
        f"where their files tell another one than the competition's (default: {COMPETITION_PIXEL_UM})",
    )
    sources = "With --annotated or --livecell-annotations: as for predict"
    add_scale_arguments(parser, f"{sources}, so that members learn from what they are shown.")
    add_gray_argument(parser, f"{sources}, so that members learn from what they are shown.")
    add_plane_arguments(parser, f"{sources}. Indices are counted from 0.", "(default: 0)")


def read_source(options: argparse.Namespace) -> Source:
    """The source that the command line names.

    Raises:
        InputError: an option of this source is missing; or as the sources' readers.
    """
    for source, others in SOURCE_OPTIONS.items():
        for other, needed in others.items():
            if is_given(options, source) and needed and not is_given(options, other):
                raise InputError(f"{flag(source)} needs {flag(other)} as well: see python -m kernel prepare --help")
    if options.frame == ALL_FRAMES:
        raise InputError(f"--frame {ALL_FRAMES}: masks are of one frame each; give its index")
    if options.competition:
        return read_competition(options.competition, options.astro_fix)
    showing = Showing(
        choice_of_texts(options.channel, options.z, options.frame),
        options.pixel_size,
        options.zoom,
        options.member_pixel_size,
        options.match_gray,
    )
    if options.livecell_annotations:
        return read_livecell(
            options.livecell_annotations,
            options.livecell_images,
            cell_types=options.cell_types,
            keep_empty=options.keep_empty,
            showing=showing,
        )
    if options.annotated:
        return read_annotated_folder(
            options.annotated,
            options.masks,
            form=options.mask_form,
            cell_types=options.cell_types,
            keep_empty=options.keep_empty,
            showing=showing,
        )
    if options.cell_types is None:
        raise InputError("--pseudo-labels needs --cell-types as well: see python -m kernel prepare --help")
    return read_pseudo_labels(options.pseudo_labels, options.images, options.cell_types, keep_empty=options.keep_empty)
