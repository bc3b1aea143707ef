"""Pixels of any depth to 8 bits, at the gray levels that the members were trained on."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

#: What images of other depths than 8 bits are mapped to: the competition's mean, and a usual standard deviation there.
GRAY_MEAN = 128.0
GRAY_STD = 12.0
#: Between these the two are measured, so that hot pixels do not count.
USUAL_PERCENTILES = (0.5, 99.5)

#: A value that lies further from the median than so many times as others usually do is no measurement: a saved file's
#: memory that nobody has set, or a mark for "no value". The widest detectors span some 1e5 times their noise.
WILD_RATIO = 1e6
#: Of more values than these, a regular part is measured.
MEASURED_VALUES = 1 << 20
#: Mapped at a time, in bytes of float64: the floats of a whole image would take many times its own memory.
MAPPED_BYTES = 1 << 23

#: The fewest pixels of a block, and their least share of the image: chance makes no larger ones in a camera's noise.
BLOCK_PIXELS = 16
BLOCK_SHARE = 2e-4
#: With fewer equal neighbours than these outside of blocks, a constant area is no part of the picture's own.
RARE_EQUALS = 0.2
#: How far the pixels around a block lie from its value, where that decides: in standard deviations of the rest, and in
#: the smallest step between values. What fades into its surroundings is background that was cut off at zero, or cells
#: that are a little too bright.
BLOCK_JUMP_STDS = 1.0
BLOCK_JUMP_STEPS = 1.5
#: The same for single pixels of the lowest and the highest value; around them the picture is as it usually is, within
#: so many standard deviations of its mean. Around a halo that is saturated it is bright.
WILD_JUMP_STDS = 3.0
USUAL_STDS = 1.0
#: Around a block this much is left out with it: resampling mixes its value with the picture's.
BLOCK_RIM_PIXELS = 2
#: With less than this share of the image left, or fewer pixels, nothing is left out: the blocks are the picture.
LEFT_SHARE = 0.1
LEFT_PIXELS = 64


@dataclass(frozen=True)
class GrayScale:
    """A linear mapping to gray levels: GRAY_MEAN + GRAY_STD * (value - mean) / std."""

    mean: float
    std: float  # 0: all values become GRAY_MEAN
    low: float  # what minus infinity counts as
    high: float  # what infinity counts as


def to_eight_bit(pixels: np.ndarray) -> np.ndarray:
    """Gray or colour (H, W, C) of any real depth as (H, W, C) uint8; uint8 stays as it is.

    Other depths are mapped linearly to the gray levels of the competition's images, mean 128 and standard deviation 12,
    measured between the 0.5th and 99.5th percentile. Cameras of 10, 12 and 14 bits store their values in 16: dividing
    by the depth's full range would leave most images nearly black, and a stretch from the darkest to the brightest
    value gives a contrast that no member was trained on. Scale bars, borders and other constant blocks are not measured
    (`find_blocks`), nor are values beyond all measure (`wild_values`). The channels share one mapping, which keeps
    colours; a constant image becomes 128; not-a-number counts as the mean.
    """
    if pixels.dtype == np.uint8:
        return pixels
    mapped = np.empty(pixels.shape, np.uint8)
    if not pixels.size:
        return mapped
    scale = measure_gray_scale(pixels)
    rows = max(1, MAPPED_BYTES // (8 * pixels[0].size))
    for top in range(0, len(pixels), rows):
        values = pixels[top : top + rows].astype(np.float64)
        np.nan_to_num(values, copy=False, nan=scale.mean, posinf=scale.high, neginf=scale.low)
        if scale.std:
            with np.errstate(over="ignore"):  # a wild value becomes infinite, and then white or black
                values -= scale.mean
                values *= GRAY_STD / scale.std
        else:
            values[...] = 0
        values += GRAY_MEAN
        np.rint(values, out=values)
        mapped[top : top + rows] = np.clip(values, 0, 255, out=values)
    return mapped


def measure_gray_scale(pixels: np.ndarray) -> GrayScale:
    """The mean and standard deviation of an image (H, W, C), between its usual percentiles.

    What is not finite does not count, nor do values beyond all measure (`wild_values`), constant blocks
    (`find_blocks`), and a constant channel beside one that is not.
    """
    height, width, channels = pixels.shape
    every = 1
    while (height // every) * (width // every) * channels > MEASURED_VALUES:
        every += 2  # odd, since the mosaic of a colour camera has a period of 2
    sample = pixels[::every, ::every].astype(np.float64)
    finite = np.isfinite(sample)
    if not finite.any():
        return GrayScale(0.0, 0.0, 0.0, 0.0)
    finite &= ~wild_values(sample, finite)
    varying = [differs(sample[..., channel][finite[..., channel]]) for channel in range(channels)]
    if any(varying):
        sample, finite = sample[..., varying], finite[..., varying]
    whole = finite.all(axis=2)
    with np.errstate(over="ignore", invalid="ignore"):  # the distance of two large floats may be infinite
        left = whole & ~find_blocks(sample, whole)
    rest = sample[left].ravel()
    if left.sum() < max(LEFT_PIXELS, LEFT_SHARE * left.size) or not differs(rest):
        rest = sample[finite]
    return usual_scale(rest)


def wild_values(sample: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Which finite values of a float64 array are beyond all measure, as bool of its shape; see `WILD_RATIO`."""
    with np.errstate(over="ignore", invalid="ignore"):  # the distance of two large floats may be infinite
        distances = np.abs(sample - np.median(sample[finite]))
    others = distances[finite & (distances > 0)]
    if not others.size:
        return np.zeros(sample.shape, bool)
    usual = float(np.percentile(others, 50, method="lower"))
    return finite & (distances / WILD_RATIO > usual)


def usual_scale(values: np.ndarray) -> GrayScale:
    """The scale of finite values (N,), N > 0, clipped to their usual percentiles."""
    low, high = (float(bound) for bound in np.percentile(values, USUAL_PERCENTILES))
    if low == high:  # nearly constant: what differs shows all the same
        low, high = float(values.min()), float(values.max())
    half = high / 2 - low / 2  # of large floats the difference, or a square, would be infinite
    if half == 0:
        return GrayScale(low, 0.0, low, high)
    usual = (np.clip(values, low, high) / 2 - low / 2) / half
    return GrayScale(low + 2 * half * float(usual.mean()), 2 * half * float(usual.std()), low, high)


def differs(values: np.ndarray) -> bool:
    """Whether values (N,) are not all the same."""
    return values.size > 0 and bool(values.min() != values.max())


def find_blocks(sample: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """What is no part of the picture in an image (H, W, C) of float64, as (H, W) bool.

    That is scale bars and lettering, the borders that stitching, registration or a padded crop leave, saturated areas:
    areas of exactly one value, at least two pixels thick, that end abruptly, or that are constant in an image that has
    no equal neighbours else; with a rim. And pixels of the lowest or the highest value that lie far from those around
    them. `whole` (H, W) are the pixels that are finite.
    """
    found = np.zeros(whole.shape, bool)
    gray = np.where(whole, sample.mean(axis=2), np.nan)
    if not differs(gray[whole]):
        return found
    lowest, highest = gray[whole].min(), gray[whole].max()
    areas, constant = constant_areas(sample, whole)
    others = whole & ~constant & (gray != lowest) & (gray != highest)
    if others.sum() < max(LEFT_PIXELS, LEFT_SHARE * others.size):
        return found
    scale = usual_scale(gray[others])
    step, equal_share = neighbour_steps(gray, constant)
    for window, inside in areas:
        value = gray[window][inside][0]
        around = values_around(gray[window], inside, constant[window], BLOCK_RIM_PIXELS)
        abrupt = around.size and np.median(np.abs(around - value)) > max(
            BLOCK_JUMP_STDS * scale.std, BLOCK_JUMP_STEPS * step
        )
        if abrupt or (equal_share < RARE_EQUALS and lowest < value < highest):
            found[window] |= grown(inside, BLOCK_RIM_PIXELS)
    for value in (lowest, highest):
        inside = gray == value
        around = values_around(gray, inside, constant, 1)
        usual = float(np.median(around)) if around.size else value
        wild = abs(usual - value) > max(WILD_JUMP_STDS * scale.std, BLOCK_JUMP_STEPS * step)
        if wild and abs(usual - scale.mean) < USUAL_STDS * scale.std:
            found |= inside
    return found


def constant_areas(
    sample: np.ndarray, whole: np.ndarray
) -> tuple[list[tuple[tuple[slice, slice], np.ndarray]], np.ndarray]:
    """The larger areas of one value in an image (H, W, C), where they are at least two pixels thick.

    Returns for each a window, wider than the area by its rim, and (h, w) bool in it; and all of them as (H, W) bool.
    """
    constant = np.zeros(whole.shape, bool)
    if min(whole.shape) < 2:
        return [], constant
    across = (sample[:, 1:] == sample[:, :-1]).all(axis=2) & whole[:, 1:]
    down = (sample[1:] == sample[:-1]).all(axis=2) & whole[1:]
    # Squares of 2 x 2 equal pixels, by their top left corner: those that touch are of the same value.
    squares = (across[1:] & across[:-1] & down[:, 1:] & down[:, :-1]).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(squares, connectivity=4)
    fewest = max(BLOCK_PIXELS, BLOCK_SHARE * whole.size)
    areas = []
    margin = BLOCK_RIM_PIXELS
    for label in 1 + np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= fewest / 2):
        x, y, width, height = (int(value) for value in stats[label, :4])
        window = np.s_[max(0, y - margin) : y + height + 1 + margin, max(0, x - margin) : x + width + 1 + margin]
        inside = np.zeros(constant[window].shape, np.uint8)
        corners = labels[window] == label
        inside[: corners.shape[0], : corners.shape[1]] = corners
        inside = cv2.dilate(inside, np.ones((2, 2), np.uint8), anchor=(1, 1)) > 0  # from corners to pixels
        if inside.sum() >= fewest:
            areas.append((window, inside))
            constant[window] |= inside
    return areas, constant


def neighbour_steps(gray: np.ndarray, constant: np.ndarray) -> tuple[float, float]:
    """The smallest step between neighbours in (H, W), and the share of equal ones outside of constant areas."""
    steps = np.abs(np.diff(gray, axis=1))
    free = steps[~(constant[:, 1:] | constant[:, :-1]) & np.isfinite(steps)]
    return float(steps[steps > 0].min(initial=np.inf)), float((free == 0).mean()) if free.size else 1.0


def values_around(gray: np.ndarray, inside: np.ndarray, constant: np.ndarray, rim: int) -> np.ndarray:
    """What is around an area, that far; other areas only where nothing else is."""
    around = grown(inside, rim) & ~inside & np.isfinite(gray)
    free = around & ~constant
    return gray[free if free.any() else around]


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask (H, W) bool with all that is at most so many pixels away, diagonals too."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1,) * 2, np.uint8)) > 0
