"""Colour tables of palette images: for display over gray values, or the picture's own colours."""

from __future__ import annotations

import numpy as np

#: A table for display has an entry for each value of at least 8 bits.
DISPLAY_ENTRIES = 256
#: How far an entry may lie from the one before it, of 255, in a table of 256.
DISPLAY_STEP = 16
#: Rounding lets brightness fall by so much, of 255.
BRIGHTNESS_SLACK = 0.5
#: The darkest to the brightest entry at least, of 255: pure blue, the darkest colour there is, has 29.
DISPLAY_RANGE = 20
#: How bright red, green and blue are (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


def display_table(table: np.ndarray) -> int:
    """Whether a table (N, 3) of R, G, B, uint16 of the full range, colours gray values, as Fiji's and Bio-Formats' do.

    Then the stored values are what was measured: 1, or -1 where high values are shown dark; 0 for a picture's own
    colours. It is a display table if it is full (256 entries or more), has colours, and goes in small steps from dark
    to bright, or from bright to dark; the first and the last entry, which may mark under- and overexposure, aside. A
    picture's own colours jump from one entry to the next. A table of grays is none: the grays that it holds are the
    picture's, in whatever order.
    """
    if len(table) < DISPLAY_ENTRIES or (table == table[:, :1]).all():
        return 0
    inner = table[1:-1].astype(np.float64) / 257
    brightness = inner @ np.array(LUMA)
    if np.abs(np.diff(inner, axis=0)).max() > DISPLAY_STEP or abs(brightness[-1] - brightness[0]) < DISPLAY_RANGE:
        return 0
    direction = 1 if brightness[-1] > brightness[0] else -1
    return direction if (direction * np.diff(brightness)).min() >= -BRIGHTNESS_SLACK else 0
