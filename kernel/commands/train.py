"""`train`: train a member on annotated images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel.commands.common import ONE_DEVICE, add_data_arguments, add_replace, check_device, folds_file
from kernel.commands.options import number, whole_number
from kernel.commands.rules import CommandRules, Excludes, Idle, Needs, flag
from kernel.data.annotated import groups_of, list_annotated, list_around_fold
from kernel.data.pictures import PictureIndex, picture_of
from kernel.data.toml_files import read_toml
from kernel.errors import InputError
from kernel.log import LOG
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import ENCODER_NAMES, MASK_KINDS, MEMBER_KINDS, TIMM_PREFIX
from kernel.settings import CELL_TYPES, EVERY_USE
from kernel.text import first_names
from kernel.vendored import use_vendored_packages

if TYPE_CHECKING:
    from kernel.training.recipe import Recipe
    from kernel.training.run import TrainingRun

TRAIN_HELP = """\
Train a member. A recipe (TOML) says what and how; single settings can be given here instead. Beside the weights come
the settings (.json), a log (.jsonl), its curves (.png) and the state from which --resume goes on (.state).

    python -m kernel train --recipe R.toml --data prepared --fold 0 --out runs/cascade_0.safetensors

A manifest's member can be named in the place of kind and encoder; the batch is then what its size allows.

    python -m kernel train --member htc_resnet50 --data prepared --fold 0 --init livecell.safetensors --out ...

Of few images, as are corrected ones, a member that is there already is trained on, with a short recipe. `shipped` are
this project's own; a folder of manifest.json and weights will do as well. train-members --from takes all of them.

    python -m kernel train --from shipped --kind maskrcnn --data corrected --out ...

LIVECell's images or pseudo-labelled ones, prepared, are mixed in often at first and not at all towards the end; images
of the validation fold among them are left out.

    python -m kernel train ... --extra livecell pseudo

Several processes, on one machine or many, share the work: each step takes as many crops from every process.

    torchrun --nproc-per-node 2 -m kernel train ...

Ctrl-C stops after the step, with the state saved."""

#: The published ensemble.
DEFAULT_MANIFEST = Path("weights_manifest.json")

#: What a file of --init says of the detector, where nothing else does. Of its classes others may be wanted, and of the
#: stem's stride the smallest is.
TOLD_BY_WEIGHTS = ("kind", "encoder", "neck_channels", "fc_channels", "mask_channels", "neck_norm")

#: Settings of a recipe that can be given on the command line instead.
OVERRIDES = {
    "iterations": whole_number(),
    "batch_size": whole_number(),
    "accumulation": whole_number(),
    "optimizer": str,
    "learning_rate": number(),
    "encoder_rate": number(),
    "dtype": str,
    "heads_dtype": str,
    "ema_decay": number(),
    "flip_paste": number(),
    "zoom": number(),
    "contrast": number(),
    "extra_images": whole_number(),
    "extra_share": number(),
    "extra_until": number(),
    "evaluate_every": whole_number(),
    "checkpoint_every": whole_number(),
    "workers": whole_number(),
    "seed": whole_number(),
}


def training_files(options: argparse.Namespace) -> Iterable[Path]:
    """The weights, and what lies beside them."""
    from kernel.training.run import files_of_run  # torch takes seconds, which `--help` need not

    return files_of_run(options.out)


RULES = CommandRules(
    effects=(
        Needs(["folds_csv"], ["fold"]),
        Needs(["evaluate_every"], ["fold"]),
        Needs(["keep_classes"], ["init"]),
        Needs(["extra_images"], ["extra"]),
        Needs(["extra_share"], ["extra"]),
        Needs(["extra_until"], ["extra"]),
        Excludes(
            ["member", "encoder", "init", "keep_classes"],
            ["from_"],
            ", which says what is trained, and from which weights",
        ),
        Needs(["manifest"], ["member"], " (to enlist the result: --add-to)"),
        Idle(
            ["kind", "encoder"],
            lambda options: options.member,
            "is for a training without --member: --member says kind and encoder",
        ),
    ),
    reads=("data", "folds_csv", "recipe", "manifest", "extra", "init", "from_", "add_to"),
    writes=training_files,
)


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser(
        "train",
        help="train a member on annotated images",
        description=TRAIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_arguments(parser, "train on all folds but this one, which is evaluated on (recipe: evaluate_every)")
    parser.add_argument(
        "--recipe",
        type=Path,
        help="TOML file: what to train, and how (default: published finetuning; with --from, for few images)",
    )
    parser.add_argument("--member", metavar="NAME", help="train this member of --manifest: its kind and encoder")
    parser.add_argument("--manifest", type=Path, help=f"with --member (default: {DEFAULT_MANIFEST})")
    parser.add_argument(
        "--from",
        dest="from_",
        metavar="shipped|DIR",
        help="train on the first member (of --kind) of these: its weights with their classes, and its architecture",
    )
    parser.add_argument(
        "--extra",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="prepared folders to mix in (extra_images, ...)",
    )
    parser.add_argument("--out", type=Path, required=True, help="the weights to write, ending in .safetensors")
    parser.add_argument(
        "--init",
        type=Path,
        metavar="FILE",
        help="weights to start from (a detector's or an encoder's): what fits is taken; or the name that mmdet gives "
        "them, mask_rcnn_r50_fpn_1x_coco say, of a file in torch's cache; or imagenet, EfficientNet-lite0's weights of "
        "its package. What neither the recipe nor an option says of kind, encoder and widths is as in the file of a "
        "detector",
    )
    parser.add_argument(
        "--keep-classes", action="store_true", help="of --init, also take the layers that tell classes apart"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the state beside --out, if there is one")
    add_replace(parser, "overwrite an earlier result at --out")
    parser.add_argument("--kind", choices=MEMBER_KINDS, help="instead of the recipe's")
    parser.add_argument(
        "--encoder",
        metavar="NAME",
        help=f"instead of the recipe's: {', '.join(ENCODER_NAMES)}, or {TIMM_PREFIX}NAME for a network of timm",
    )
    for name, value_type in OVERRIDES.items():
        parser.add_argument(flag(name), type=value_type, help="instead of the recipe's")
    parser.add_argument("--device", help=ONE_DEVICE)
    parser.add_argument("--half", action="store_true", help="write the weights as float16: half the size")
    parser.add_argument("--add-to", type=Path, metavar="MANIFEST", help="put the finished member into this manifest")
    parser.add_argument(
        "--use-for",
        nargs="+",
        choices=EVERY_USE,
        help="what the manifest says it is used for (default: as --from or --member has it, or all cell types)",
    )
    parser.set_defaults(run=run_train, rules=RULES, in_processes=True)


def run_train(options: argparse.Namespace) -> None:
    """Train a member, and say how a manifest names it."""
    use_vendored_packages()
    from kernel.manifest.edit import add_to_manifest, manifest_entry
    from kernel.training.processes import is_first_process
    from kernel.training.trainer import train_detector

    recipe, use_for = choose_recipe(options)
    if options.add_to is not None:
        refuse_wrong_manifest(options, recipe, use_for)
    train_detector(make_run(options, recipe))
    if not is_first_process():
        return
    entry = manifest_entry(options.out, recipe.detector.kind, recipe.detector.encoder, use_for)
    print(f"weights: {options.out}\nas a member of a manifest:\n{json.dumps(entry, indent=2)}")
    if options.add_to is not None:
        add_to_manifest(options.add_to, entry)
        print(f"added to {options.add_to}")


def refuse_wrong_manifest(options: argparse.Namespace, recipe: Recipe, use_for: Sequence[str]) -> None:
    """Try to put the member into the manifest of --add-to, before hours are spent on it; nothing is written.

    Raises:
        InputError: there is no such file, it is wrong, or would be with the member; or no ensemble can use that.
    """
    from kernel.manifest.edit import check_addition, member_name
    from kernel.training.evaluation import check_class_count

    if not options.add_to.is_file():
        raise InputError(f"--add-to {options.add_to}: no such manifest")
    if recipe.detector.kind not in MASK_KINDS:
        check_class_count(recipe.detector.num_classes)
        refuse_other_stride(options.add_to, recipe)
    check_addition(
        options.add_to,
        {
            "name": member_name(options.out),
            "kind": recipe.detector.kind,
            "encoder": recipe.detector.encoder,
            "use_for": list(use_for),
            "dataset": None,
            "file": options.out.name,
            "sha256": "0" * 64,  # not known yet
        },
    )


def refuse_other_stride(manifest_path: Path, recipe: Recipe) -> None:
    """Raise InputError where a member of the manifest has a stem of another stride than what is to be trained."""
    detector, members = recipe.detector, read_manifest(manifest_path).members
    others = [member for member in members if member.stem_stride not in (None, detector.stem_stride)]
    if others:
        raise InputError(
            f"--add-to {manifest_path}: the stem of {first_names([member.name for member in others])} has the stride "
            f"{others[0].stem_stride}, and {detector.encoder} is trained with {detector.stem_stride}; these cannot "
            "be averaged: name another manifest"
        )


def choose_recipe(options: argparse.Namespace) -> tuple[Recipe, Sequence[str]]:
    """What to train and how, and what the manifest says that the member is used for.

    Raises:
        InputError: as `check_encoder`, `read_recipe`, `find_member`, `member_recipe` and `told_by_weights`.
    """
    from kernel.training.member_recipe import FINETUNE_RECIPE, find_member, member_recipe
    from kernel.training.recipe import check_encoder, read_recipe
    from kernel.training.retraining import start_member

    if options.encoder is not None:
        check_encoder(options.encoder, "--encoder")
    overrides = {key: getattr(options, key) for key in ("kind", "encoder", *OVERRIDES)}
    if options.from_ is not None:
        member = start_member(options.from_, options.kind)
        return member.recipe(options.recipe, overrides), options.use_for or member.entry.use_for
    path = options.recipe or FINETUNE_RECIPE
    member = None if options.member is None else find_member(options.manifest or DEFAULT_MANIFEST, options.member)
    if options.init is not None:
        stated = read_toml(path, "recipe").get("detector")
        named = overrides if member is None else {"kind": member.kind, "encoder": member.encoder}
        given = {key: value for key, value in named.items() if value is not None}
        told = told_by_weights(options.init, {**(stated if isinstance(stated, Mapping) else {}), **given})
        if told:
            LOG.info("as in %s: %s", options.init, ", ".join(f"{key} {value}" for key, value in told.items()))
        overrides |= told
    if member is not None:
        return member_recipe(member, path, overrides), options.use_for or member.use_for
    return read_recipe(path, overrides), options.use_for or CELL_TYPES


def told_by_weights(init: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights of --init say of the detector that is not known yet: of TOLD_BY_WEIGHTS.

    A mask network's file says no widths of a detector, nor a detector's those of a mask network.

    Args:
        init: a file, or a name that stands for one.
        known: what the recipe and the options say, by the fields of `DetectorSpec`.

    Raises:
        InputError: kind or encoder is not known, and they do not say it; or as `find_weights_to_start_from` and
            `read_checkpoint`.
    """
    from kernel.models.checkpoints import read_checkpoint, recognise_detector, refuse_worthless
    from kernel.training.initialise import IMAGENET, IMAGENET_ENCODER, find_weights_to_start_from

    path = find_weights_to_start_from(init)
    checkpoint = read_checkpoint(path)
    try:
        spec = recognise_detector(checkpoint, str(path))
    except InputError:  # an encoder's alone, or a detector of an older layout
        told: dict[str, Any] = {"encoder": IMAGENET_ENCODER} if str(init) == IMAGENET else {}
    else:
        refuse_worthless(checkpoint.state, str(path))
        is_alike = (spec.kind in MASK_KINDS) == (known.get("kind", spec.kind) in MASK_KINDS)
        keys = TOLD_BY_WEIGHTS if is_alike else ("kind", "encoder")
        told = {key: value for key, value in asdict(spec).items() if key in keys}
    missing = [flag(key) for key in ("kind", "encoder") if key not in {**known, **told}]
    if missing:
        raise InputError(
            f"--init {init}: it holds no whole detector whose kind and encoder are known here: give "
            f"{' and '.join(missing)}"
        )
    return {key: value for key, value in told.items() if key not in known}


def make_run(options: argparse.Namespace, recipe: Recipe) -> TrainingRun:
    """The training run: its images, read, and where it starts and writes.

    Raises:
        InputError: as `list_annotated`, `list_around_fold`, `read_extra_images`, `read_entries_as` and `check_device`.
    """
    from kernel.training.extra import read_entries_as, read_extra_images
    from kernel.training.initialise import find_weights_to_start_from
    from kernel.training.retraining import start_member
    from kernel.training.run import TrainingRun
    from kernel.training.samples import leave_out_pictures

    folds_csv = folds_file(options)
    if options.fold is None:
        entries, validation = list_annotated(options.data), []
    else:
        entries, validation = list_around_fold(options.data, options.fold, folds_csv)
    init = None if options.init is None else find_weights_to_start_from(options.init)
    if options.from_ is not None:
        init = start_member(options.from_, options.kind).weights
    # A member to train on knows its classes already; others learn those of the images.
    classes = entries[0].class_names if entries and options.from_ is None else CELL_TYPES
    held_out = PictureIndex(picture_of(entry.image_id, entry.read()) for entry in validation)
    settings, extra = recipe.training, []
    if options.extra and entries:
        extra = read_extra_images(
            options.extra,
            settings.extra_images,
            settings.seed,
            classes,
            recipe.detector.num_classes,
            {entry.image_id for entry in validation},
            groups_of(validation),
        )
        extra = leave_out_pictures(extra, held_out, "--extra")
    return TrainingRun(
        spec=recipe.detector,
        settings=settings,
        images=leave_out_pictures(
            read_entries_as(entries, classes, recipe.detector.num_classes), held_out, options.data
        ),
        out=options.out,
        init=init,
        keep_classes=options.keep_classes or options.from_ is not None,
        device=check_device(options.device),
        half=options.half,
        validation=validation,
        resume=options.resume,
        replace=options.replace,
        extra=extra,
    )
