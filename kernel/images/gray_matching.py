"""Gray levels of 8 bits that members do not know: which images have them, and how they are brought to those known.

Images of other depths are brought there as they are read (`kernel.images.gray_levels`); of 8 bits this is asked for.
"""

from __future__ import annotations

import numpy as np

from kernel.images.gray_levels import GRAY_MEAN, GRAY_STD, measure_gray_scale, to_eight_bit

#: Means and standard deviations beyond these are far from what members know. The images of the competition, of LIVECell
#: and of T98G cells, which they find cells in, have means of 100 to 128 and standard deviations of 4 to 35.
NEAR_MEANS = (75.0, 180.0)
NEAR_STDS = (3.0, 60.0)
#: What members know, for messages.
KNOWN_GRAYS = "mean around 128, spread 4 to 35"
#: As near as this they are the same: what other depths were mapped to is not rounded once more.
SAME_GRAY = 0.5


def far_grays(image_bgr: np.ndarray) -> tuple[float, float] | None:
    """The mean and standard deviation of an image (H, W, 3) uint8, where they are far from what members know.

    None also for an image of one value, in which nothing is to be found at any gray level.
    """
    scale = measure_gray_scale(image_bgr)
    is_near = NEAR_MEANS[0] <= scale.mean <= NEAR_MEANS[1] and NEAR_STDS[0] <= scale.std <= NEAR_STDS[1]
    return None if is_near or not scale.std else (scale.mean, scale.std)


def matched_grays(pixels: np.ndarray) -> np.ndarray:
    """An image (H, W, C) uint8 at the gray levels that members know, by the mapping of other depths."""
    scale = measure_gray_scale(pixels)
    if abs(scale.mean - GRAY_MEAN) <= SAME_GRAY and abs(scale.std - GRAY_STD) <= SAME_GRAY:
        return pixels
    return to_eight_bit(pixels.astype(np.int16))


def grays_text(mean: float, std: float) -> str:
    """Gray levels for people."""
    return f"mean {mean:.0f}, spread {std:.2g}"
