"""What a member's file says of itself: which run wrote it, how far that was, and which images it has learned from.

It lies in the safetensors' metadata, so that it goes wherever the file goes; the tensors are as without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from kernel.data.pictures import Picture
from kernel.manifest.types import METADATA_KEY
from kernel.text import parse_json

#: What each entry of the metadata is.
_KINDS: Mapping[str, Any] = {
    "fingerprint": str,
    "step": int,
    "iterations": int,
    "images": list,
    "encoder": str | None,
    "stem_stride": int | None,
    "pixel_size_um": int | float | None,
}


@dataclass(frozen=True)
class MemberRecord:
    """The history of a weight file."""

    fingerprint: str  # of the run, as its state has it
    step: int  # after which it was written
    iterations: int  # of the run
    images: tuple[Picture, ...]  # learned from, by this run or by those whose weights it started from
    encoder: str | None = None  # one of timm's, which the weights do not tell; None: they tell it
    stem_stride: int | None = None  # of the first convolution, which the weights do not tell; None: it is not known
    pixel_size_um: float | None = None  # the side of a pixel that it knows; None: it is not known

    @property
    def is_finished(self) -> bool:
        return self.step == self.iterations

    def metadata(self) -> dict[str, str]:
        """What a safetensors file keeps."""
        content: dict[str, object] = {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "iterations": self.iterations,
            "images": [astuple(picture) for picture in self.images],
        }
        told = {"encoder": self.encoder, "stem_stride": self.stem_stride, "pixel_size_um": self.pixel_size_um}
        content |= {key: value for key, value in told.items() if value is not None}
        return {METADATA_KEY: json.dumps(content, ensure_ascii=True)}


def read_member_record(path: Path) -> MemberRecord | None:
    """The history that a weight file tells; None where it tells none, as files of other trainers."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
        if text is None:
            return None
        content = parse_json(text)
        if not all(isinstance(content.get(name), kind) for name, kind in _KINDS.items()):
            return None
        return MemberRecord(
            content["fingerprint"],
            content["step"],
            content["iterations"],
            tuple(Picture(*map(str, picture)) for picture in content["images"]),
            content.get("encoder"),
            content.get("stem_stride"),
            content.get("pixel_size_um"),
        )
    except (SafetensorError, ValueError, AttributeError, TypeError):  # it says nothing that can be read
        return None


def all_pictures(*parts: Iterable[Picture]) -> tuple[Picture, ...]:
    """The pictures of all parts, each once, in their order."""
    return tuple(dict.fromkeys(picture for part in parts for picture in part))
