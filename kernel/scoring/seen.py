"""Whether a member has seen what it is scored on: the images at hand beside those that each file says it learned from.

A score on images that a member was trained on is no score on unseen ones. Equal pixels count, and nearly equal ones
(`kernel.data.pictures`), under whatever id. The same id with other pixels does not, but is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kernel.data.annotated import AnnotatedImage
from kernel.data.learned import read_member_record
from kernel.data.pictures import PictureIndex, picture_of
from kernel.scoring.predicting import PredictionJob
from kernel.scoring.predictions import load_seen, prediction_path
from kernel.scoring.scores import ImageResult, scores_of
from kernel.text import first_names

#: Images, and members, that a message names.
_NAMED = 10


@dataclass(frozen=True)
class SeenImages:
    """Who has learned from which images."""

    by_image: Mapping[str, tuple[str, ...]]  # of each image that was learned from: "member (as other id)", ...
    untold: tuple[str, ...]  # members whose files do not say what they learned from
    same_name: tuple[str, ...]  # images with the id of one learned from, and other pixels
    images: int  # all that were looked at

    def describe(self) -> list[str]:
        """A line for each image that a member has seen, the first ones, and what is not known."""
        lines = []
        if self.by_image:
            lines.append(
                f"{len(self.by_image)} of {self.images} images were learned from by members that they are to judge: a "
                "score on them is not one on unseen images"
            )
            shown = list(self.by_image.items())[:_NAMED]
            lines += [f"  {image_id}: seen by {', '.join(members)}" for image_id, members in shown]
            if len(self.by_image) > _NAMED:
                lines.append(f"  and {len(self.by_image) - _NAMED} more")
        if self.same_name:
            named = first_names(self.same_name, _NAMED)
            lines.append(f"of the same name as an image learned from, with other pixels, and taken as unseen: {named}")
        if self.untold:
            named = ", ".join(self.untold)
            lines.append(f"whether these images are unseen is not known of {named}: the files do not say")
        return lines

    def describe_results(self, results: Sequence[ImageResult]) -> list[str]:
        """The scores of the images that all members have not seen, and of the others; nothing where none was seen."""
        if not self.by_image:
            return []
        unseen = [result for result in results if result.image_id not in self.by_image]
        seen = [result for result in results if result.image_id in self.by_image]
        none = "  of these, unseen: none, so that nothing is known of unseen images"
        return [
            f"  of these, seen in training: {_describe(seen)}",
            f"  of these, unseen: {_describe(unseen)}" if unseen else none,
        ]

    def told_to(self, jobs: Sequence[PredictionJob]) -> list[PredictionJob]:
        """The jobs, each with who has seen its image, for what is stored of it."""
        return [
            replace(
                job,
                seen_by=self.by_image.get(job.image.image_id, ()),
                untold=tuple(name for name in self.untold if name in job.files.paths),
            )
            for job in jobs
        ]

    def describe_choice(self, image_ids: Sequence[str], before: np.ndarray, after: np.ndarray) -> list[str]:
        """What a choice is worth on the images that no member has seen; nothing where none was seen.

        Args:
            image_ids: n of them.
            before, after: (n,) scores with the old settings and with the chosen ones.
        """
        if not self.by_image:
            return []
        unseen = np.array([image_id not in self.by_image for image_id in image_ids], bool)
        if unseen.all():
            return []
        if not unseen.any():
            return ["all of these images were seen in training: what is chosen and expected on them holds for no other"]
        return [
            f"on the {np.count_nonzero(unseen)} unseen images alone: {before[unseen].mean():.4f} before, "
            f"{after[unseen].mean():.4f} after; on the {np.count_nonzero(~unseen)} seen in training: "
            f"{before[~unseen].mean():.4f} before, {after[~unseen].mean():.4f} after"
        ]

    def mark(self, results: Sequence[ImageResult]) -> list[ImageResult]:
        """The results, each with who has seen its image."""
        return [replace(result, seen_by=self.by_image.get(result.image_id, ())) for result in results]


def _describe(results: Sequence[ImageResult]) -> str:
    scores = scores_of(results)
    types = ", ".join(f"{cell_type} {score:.4f}" for cell_type, score in sorted(scores.per_type.items()))
    return f"{scores.overall:.4f}, of {scores.images} ({types})"


def stored_seen(folder: Path, images: Sequence[AnnotatedImage]) -> SeenImages:
    """`find_seen` of stored predictions, as it was when they were made.

    Raises:
        InputError: as `load_seen`.
    """
    return gather_seen({image.image_id: load_seen(prediction_path(folder, image.image_id)) for image in images})


def known_seen(jobs: Sequence[PredictionJob]) -> SeenImages:
    """`find_seen` of jobs that were told already (`SeenImages.told_to`), or of those of one member of theirs."""
    return gather_seen({job.image.image_id: (job.seen_by, job.untold) for job in jobs})


def gather_seen(found: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> SeenImages:
    """Of each image the members that have learned from it, and those of which that is not known, as one."""
    untold = dict.fromkeys(name for _, names in found.values() for name in names)
    return SeenImages({key: seen for key, (seen, _) in found.items() if seen}, tuple(untold), (), len(found))


def find_seen(jobs: Sequence[PredictionJob]) -> SeenImages:
    """Look who, of the members that are to predict an image, has learned from it. Reads headers and all pixels.

    Raises:
        InputError: an image cannot be read.
    """
    indices: dict[Path, PictureIndex | None] = {}
    for job in jobs:
        for path in job.files.paths.values():
            if path not in indices:
                record = read_member_record(path)
                indices[path] = None if record is None else PictureIndex(record.images)
    untold = dict.fromkeys(name for job in jobs for name, path in job.files.paths.items() if indices[path] is None)
    by_image: dict[str, tuple[str, ...]] = {}
    same_name: list[str] = []
    if any(index is not None and index.pictures for index in indices.values()):
        for job in tqdm(jobs, unit="image", desc="comparing", mininterval=1):
            found, is_named = seen_by(job.image, {name: indices[path] for name, path in job.files.paths.items()})
            if found:
                by_image[job.image.image_id] = found
            elif is_named:
                same_name.append(job.image.image_id)
    return SeenImages(by_image, tuple(untold), tuple(same_name), len(jobs))


def seen_by(image: AnnotatedImage, indices: Mapping[str, PictureIndex | None]) -> tuple[tuple[str, ...], bool]:
    """The members that have learned from an image's picture, and whether any learned from another of its name."""
    picture = picture_of(image.image_id, image.read())
    members, is_named = [], False
    for name, index in indices.items():
        found = index.find(picture) if index is not None else None
        if found is not None:
            members.append(name if found.image_id == image.image_id else f"{name} (as {found.image_id})")
        elif index is not None:
            is_named |= any(other.image_id == image.image_id for other in index.pictures)
    return tuple(members), is_named
