"""Labels of an OME-Zarr image (0.4 or 0.5): the only label image in it, or the one that is called `cells`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kernel.data.mask_files.found import FoundMasks
from kernel.data.mask_files.label_arrays import cells_of_labels, refuse_shape
from kernel.data.mask_files.taken import FIRST_PLANE, TakenPlane
from kernel.errors import InputError
from kernel.images.stacks import zarr_oddity

#: The label image that `predict --export ome-zarr` writes.
OWN_LABEL = "cells"


def read_ome_zarr(path: Path, image_shape: tuple[int, int], _plane: TakenPlane = FIRST_PLANE) -> FoundMasks:
    """The cells of an OME-Zarr folder of one plane, at its full resolution; errors as a `MaskForm`'s reader."""
    import zarr

    try:
        root: Any = zarr.open_group(str(path), mode="r")  # its items may be anything
        labels = root["labels"]
        names = sorted(labels.group_keys())
        if len(names) > 1 and OWN_LABEL not in names:
            raise InputError(f"it has several label images ({', '.join(names)}), and none is called {OWN_LABEL}")
        if not names:
            raise InputError("it has no label image")
        image = labels[OWN_LABEL if OWN_LABEL in names else names[0]]
        described = image.attrs.get("ome", image.attrs)["multiscales"][0]["datasets"][0]["path"]
        array = image[described]
        if oddity := zarr_oddity(array):
            raise InputError(f"its label image {oddity}")
        refuse_shape(tuple(array.shape), image_shape)  # a few bytes may tell of any number of pixels
        values = np.asarray(array[...])
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError) as error:
        raise InputError(f"it is no OME-Zarr with labels ({type(error).__name__}: {error})") from error
    return cells_of_labels(values, image_shape)
