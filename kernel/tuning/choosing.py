"""Choosing one of many settings by images' scores, and estimating what that choice is worth on other images.

Nothing here depends on what is chosen: there is the score of each of n images at each of P points (settings), and with
the current settings. Images of one well resemble each other: ten of them tell less than ten wells. So signs, errors and
intervals are of units, which are wells, or images where nothing is known of these.

The choice (`choose_point`) works on paired differences of images, added up over each unit:

1. *Is there a gain at all?* A point counts only if it beats the current settings beyond noise, with all the points that
   were looked at taken into account: a sign-flip test of the mean difference with the maximum over the points as its
   statistic (Westfall and Young, Resampling-Based Multiple Testing, 1993; Nichols and Holmes, Human Brain Mapping 15,
   2002). Where no point is better and a unit's difference is as likely to be d as -d, any "gain" is reported with a
   chance of at most the significance level, however many points there are, if the points were fixed beforehand. If no
   point counts, the current settings stay.
2. *Where is the optimum?* At the best mean after smoothing over neighbouring points: a peak that its neighbours do not
   share is mostly luck.
3. *How little may be changed?* Of the points that count and are at most one standard error (of the paired difference)
   below that optimum, the nearest to the current settings is taken: the rule of one standard error (Breiman et al.,
   Classification and Regression Trees, 1984, 3.4.3), the simplest model being the least change.

What a choice scores on the images it was made on is too good. `cross_validate` therefore makes the whole choice again
without some of the images and scores it on those (Stone, J. R. Stat. Soc. B 36, 1974; Varma and Simon, BMC
Bioinformatics 7, 2006). Its intervals are of a bootstrap over units; that the folds share training images they do not
know: they are rather too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Generic, TypeVar

import numpy as np
from scipy.stats import bootstrap

#: The significance level: the chance to report a gain where there is none.
SIGNIFICANCE = 0.05
#: Sign flips drawn where there are more than so many in all (2^n), and the least p-value then.
FLIPS = 999
LEAST_P_VALUE = 1 / (FLIPS + 1)
RESAMPLES = 9999
FOLDS = 5
REPEATS = 10
#: The weight of a neighbour falls linearly with its distance along each axis, and is 0 from so many steps on.
SMOOTHING_REACH = 2
#: Sums of the same numbers in another order may differ by so much.
_ROUNDING = 1e-9

Point = TypeVar("Point")


@dataclass(frozen=True, eq=False)
class Candidates:
    """P points to choose from, all scored on the same n images; see `make_candidates`."""

    scores: np.ndarray  # (n, P) float64
    smoothed: np.ndarray  # (n, P) float64, over neighbouring points; an image's own scores only
    distances: np.ndarray  # (P,) float64, steps from the current settings, summed over the axes
    current: np.ndarray  # (n,) float64, scores with the current settings
    units: np.ndarray  # (n,) int64: images of one number belong to one unit


@dataclass(frozen=True)
class Choice:
    """What was chosen among P points."""

    point: int | None  # None: no gain, the current settings stay
    peak: int | None  # the best smoothed mean among the points that count
    p_value: float  # of the most convincing point, adjusted for all that were looked at
    counting: int  # how many points beat the current settings beyond noise
    units: int  # by how many it was made


@dataclass(frozen=True, eq=False)
class CrossValidation(Generic[Point]):
    """What choosing, as a procedure, gives on images that it has not seen."""

    scores: np.ndarray  # (n,) float64, each image's by the choices made without it, averaged over repeats
    folds: np.ndarray  # (repeats, n) int64, which images were held out together
    chosen: tuple[tuple[Point, ...], ...]  # by repeat, then by fold, in rising order of folds


@dataclass(frozen=True)
class Estimate:
    """A mean over images with its 95 % interval; NaN bounds for fewer than two units."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Assessment:
    """What a choice is worth."""

    images: int
    before: float  # mean score with the current settings
    after: float  # mean score with the chosen ones, on the images that they were chosen on: too good
    expected: Estimate  # mean score of choosing, on unseen images
    gain: Estimate  # `expected` less `before`, paired by image


def smooth(scores: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Weighted means of each image's scores over neighbouring points.

    Args:
        scores: (n, P), of n images at P points.
        positions: (P, A), where the points lie, in steps of each axis. On a grid the weights along an axis are
            1/4, 1/2, 1/4, and what lies beyond the edge is left out.

    Returns:
        (n, P) float64.
    """
    smoothed = np.empty_like(scores, dtype=np.float64)
    rows = max(1, 1_000_000 // max(len(positions), 1))  # 8 MB of weights at a time
    for start in range(0, len(positions), rows):
        weights = np.ones((min(rows, len(positions) - start), len(positions)))
        for axis in positions.T:
            weights *= np.maximum(1 - np.abs(axis[start : start + rows, None] - axis) / SMOOTHING_REACH, 0)
        smoothed[:, start : start + rows] = scores @ (weights / weights.sum(axis=1, keepdims=True)).T
    return smoothed


def make_candidates(
    scores: np.ndarray,
    current: np.ndarray,
    positions: np.ndarray,
    current_position: np.ndarray,
    units: np.ndarray | None = None,
) -> Candidates:
    """Points to choose from.

    Args:
        scores: (n, P) of n images at P points.
        current: (n,) of the same images with the current settings.
        positions: (P, A), where the points lie, in steps of each axis: a step is the least change worth telling apart.
        current_position: (A,), likewise; it need not be a point.
        units: (n,) ints, the unit of each image, as its well; None: each image is one.

    Raises:
        ValueError: the shapes disagree, or a score is not finite.
    """
    scores, current = np.asarray(scores, dtype=np.float64), np.asarray(current, dtype=np.float64)
    images, points = scores.shape
    units = np.arange(images) if units is None else units
    if not current.shape == units.shape == (images,) or positions.shape != (points, len(current_position)):
        raise ValueError(
            f"scores {scores.shape} and {len(current_position)} axes need current scores and units ({images},), got "
            f"{current.shape} and {units.shape}, and positions ({points}, {len(current_position)}), got "
            f"{positions.shape}"
        )
    if not (np.isfinite(scores).all() and np.isfinite(current).all()):
        raise ValueError("a score is not a finite number")
    distances = np.abs(positions - current_position).sum(axis=1)
    return Candidates(scores, smooth(scores, positions), distances, current, units)


def number_units(groups: Sequence[Hashable]) -> np.ndarray:
    """(n,) int64, the unit of each of n images by what it belongs to: numbers rise from image to image where each is
    alone."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def add_up(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(units, P) sums over the images of each unit, of values (n, P); units in rising order of their numbers (n,)."""
    numbers, places = np.unique(units, return_inverse=True)
    sums = np.zeros_like(values, shape=(len(numbers), values.shape[1]))
    np.add.at(sums, places, values)
    return sums


def adjusted_p_values(differences: np.ndarray, units: np.ndarray, seed: int) -> np.ndarray:
    """One-sided p-values, for each point, of the hypothesis that its mean difference is not above 0.

    They are adjusted for the number of points: each is the chance that the best of all points would look as good. Tried
    are all 2^m sign flips of the m units where these are few, else `FLIPS` random ones and the data as they are.

    Args:
        differences: (n, P), each image's score at each point less its score with the current settings.
        units: (n,) ints, the unit of each image: its images keep one sign.
        seed: of the random sign flips.

    Returns:
        (P,) float64.
    """
    sums = add_up(differences, units)
    count, points = sums.shape
    if not count or not points:
        return np.ones(points)
    if 2**count <= FLIPS + 1:
        signs = np.array(list(product((1.0, -1.0), repeat=count)))
    else:
        drawn = np.random.default_rng(seed).integers(0, 2, (FLIPS, count)) * 2.0 - 1
        signs = np.concatenate([np.ones((1, count)), drawn])
    # Rises with Student's t of the units' sums, and is cheaper: sign flips do not change the length of a column.
    lengths = np.sqrt((sums**2).sum(axis=0))
    statistics = signs @ (sums / np.where(lengths > 0, lengths, 1))  # (flips, P), the first row as observed
    largest = np.sort(statistics.max(axis=1))
    at_least = len(largest) - np.searchsorted(largest, statistics[0] - _ROUNDING)
    return at_least / len(largest)


def choose_point(
    candidates: Candidates,
    images: np.ndarray | None = None,
    *,
    significance: float = SIGNIFICANCE,
    seed: int = 0,
) -> Choice:
    """Choose a point by the three steps that the module describes.

    Fewer than five units can never tell a gain from noise at a significance of 0.05, since of 2^m sign flips one is
    always the data themselves; nor can five, where another point is worse on all of them.

    Args:
        candidates: the points, with the scores of n images.
        images: (m,) indices of the images to choose by; no other image is looked at. None: all.
        significance: the significance level.
        seed: of the sign flips, where these are drawn.
    """
    rows = slice(None) if images is None else images
    differences, units = candidates.scores[rows] - candidates.current[rows, None], candidates.units[rows]
    p_values = adjusted_p_values(differences, units, seed)
    counting = np.flatnonzero(p_values <= significance)
    least, count = float(p_values.min(initial=1.0)), len(np.unique(units))
    if not len(counting):
        return Choice(None, None, least, 0, count)
    smoothed = candidates.smoothed[rows][:, counting]
    means = smoothed.mean(axis=0)
    peak = int(means.argmax())
    behind = smoothed[:, [peak]] - smoothed
    near = np.flatnonzero(behind.mean(axis=0) <= standard_errors(behind, units) + _ROUNDING)
    order = np.lexsort((-means[near], candidates.distances[counting][near]))
    return Choice(int(counting[near[order[0]]]), int(counting[peak]), least, len(counting), count)


def standard_errors(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(P,) standard errors of the means over images of values (n, P); 0 for fewer than two units (n,)."""
    sums = add_up(values - values.mean(axis=0), units)
    if len(sums) < 2:
        return np.zeros(values.shape[1])
    return sums.std(axis=0, ddof=1) * np.sqrt(len(sums)) / len(values)


def scores_of_choice(candidates: Candidates, choice: Choice, images: np.ndarray | None = None) -> np.ndarray:
    """(n,) scores of `images` (indices; None: all) with what was chosen."""
    rows = slice(None) if images is None else images
    return candidates.current[rows] if choice.point is None else candidates.scores[rows, choice.point]


def draw_folds(
    images: int, seed: int, folds: int = FOLDS, repeats: int = REPEATS, groups: Sequence[str] = ()
) -> np.ndarray:
    """Distribute images at random over folds of equal size, anew for each repeat.

    Args:
        images: how many.
        seed: of the draw.
        folds: how many.
        repeats: how many draws.
        groups: what each image belongs to, which is held out as one; none: each is alone.

    Returns:
        (repeats, images) int64, the fold of each image. With no more images than folds there is one repeat, and each
        image is held out alone.
    """
    if groups:
        _, place = np.unique(np.array(groups), return_inverse=True)
        units = int(place.max()) + 1
        if units < images:
            return draw_folds(units, seed, folds, repeats)[:, place]
    if images <= folds:
        return np.arange(images)[None]
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(np.arange(images) % folds) for _ in range(repeats)])


def cross_validate(
    choose: Callable[[np.ndarray], Point],
    score: Callable[[Point, np.ndarray], np.ndarray],
    folds: np.ndarray,
) -> CrossValidation[Point]:
    """Hold out fold after fold, choose without it, and score what was chosen on it.

    Args:
        choose: from the indices (m,) of the images to choose on to what is chosen; it must look at no other image, and
            takes no images at all.
        score: from what was chosen and indices (m,) to the scores (m,) of these images with it.
        folds: (repeats, n) ints: images of one number are held out together; `draw_folds` makes some.
    """
    repeats, images = folds.shape
    scores, chosen = np.zeros(images), []
    for repeat in folds:
        points = []
        for fold in np.unique(repeat):
            held_out = np.flatnonzero(repeat == fold)
            points.append(choose(np.flatnonzero(repeat != fold)))
            scores[held_out] += score(points[-1], held_out)
        chosen.append(tuple(points))
    return CrossValidation(scores / repeats, folds, tuple(chosen))


def estimate_mean(values: np.ndarray, seed: int = 0, units: np.ndarray | None = None) -> Estimate:
    """The mean of values (n,), one per image, with the 95 % interval of a percentile bootstrap over units (n,).

    None: each image is one.
    """
    mean = float(np.mean(values)) if len(values) else float("nan")
    units = np.arange(len(values)) if units is None else units
    sums, sizes = add_up(np.stack([values, np.ones(len(values))], axis=1), units).T
    if len(sums) < 2:
        return Estimate(mean, float("nan"), float("nan"))
    bounds = bootstrap(
        (sums, sizes), _mean_of_sums, n_resamples=RESAMPLES, confidence_level=0.95, method="percentile", paired=True,
        batch=max(1, 10_000_000 // len(sums)), rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Estimate(mean, float(bounds.low), float(bounds.high))


def _mean_of_sums(sums: np.ndarray, sizes: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean over images, of sums over units of `sizes` images."""
    return np.sum(sums, axis=axis) / np.sum(sizes, axis=axis)


def assess(
    before: np.ndarray, after: np.ndarray, unseen: np.ndarray, seed: int = 0, units: np.ndarray | None = None
) -> Assessment:
    """What a choice is worth, from the scores (n,) of the same images.

    Args:
        before: with the current settings.
        after: with the chosen settings, which were chosen on these images.
        unseen: by cross-validation, as in `CrossValidation.scores`.
        seed: of the bootstrap.
        units: (n,) ints, the unit of each image; None: each image is one.
    """
    return Assessment(
        images=len(before),
        before=float(np.mean(before)) if len(before) else float("nan"),
        after=float(np.mean(after)) if len(after) else float("nan"),
        expected=estimate_mean(unseen, seed, units),
        gain=estimate_mean(unseen - before, seed, units),
    )
