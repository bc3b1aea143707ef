"""Files of many dimensions are read by their axes, with the size of their pixels, as the programs write them."""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO
from uuid import UUID

import cv2
import numpy as np
import pytest
import tifffile

from kernel.data.mask_files.ome_zarr import read_ome_zarr
from kernel.errors import InputError
from kernel.images.pixel_size import PixelSize, ome_pixel_size, pixel_size
from kernel.images.planes import PlaneChoice, choice_of_texts, count_frames
from kernel.images.reading import read_image
from kernel.images.stacks import BIOIO_READERS, open_stack, read_picture, zarr_oddity
from kernel.images.tiff_tags import TiffDirectory

ANY = PlaneChoice()
#: T, C, Z, Y, X; 8 bits, so that planes are shown as they are stored.
VALUES = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 11, 13)).astype(np.uint8)


def write_imagej(path: Path, **more: Any) -> None:
    tifffile.imwrite(
        path, VALUES.transpose(0, 2, 1, 3, 4), imagej=True, resolution=(1 / 0.65, 1 / 0.65),
        metadata={"axes": "TZCYX", "unit": "um"}, **more,
    )  # fmt: skip


def write_ome(path: Path, names: Sequence[str] = ("DAPI", "Phase", "GFP"), **more: Any) -> None:
    size = {"PhysicalSizeX": 650, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.65}
    tifffile.imwrite(
        path,
        VALUES,
        ome=True,
        metadata={"axes": "TCZYX", **size, "Channel": {"Name": [*names]}},
        **more,
    )


def write_ome_set(folder: Path, kind: str, root_uuid: str = "own") -> dict[Path, list[np.ndarray]]:
    """Two OME-TIFFs that tell of each other, as Micro-Manager and Bio-Formats write them; the pages of each.

    Args:
        folder: where to.
        kind: "frames", of two channels, one in each; "films", two frames in each; "halves", of three channels, the
            second of which is cut; "positions", an image in each.
        root_uuid: whose UUID the text of a file has: its "own", that of the "first" one in all, or "none".
    """
    sizes = {"frames": (2, 2), "films": (2, 4), "halves": (3, 2), "positions": (2, 1)}  # channels and frames
    channels, frames = sizes[kind]
    images = 2 if kind == "positions" else 1
    planes = [(image, c, t) for image in range(images) for t in range(frames) for c in range(channels)]
    parts = [planes[: len(planes) // 2 + (kind == "halves")], planes[len(planes) // 2 + (kind == "halves") :]]
    values = np.random.default_rng(1).integers(0, 255, (len(planes), 11, 13)).astype(np.uint8)
    names, uuids = ("set_0.ome.tif", "set_1.ome.tif"), (f"urn:uuid:{UUID(int=1)}", f"urn:uuid:{UUID(int=2)}")
    texts = []
    for image in range(images):
        data = "".join(
            f'<TiffData FirstC="{c}" FirstT="{t}" FirstZ="0" IFD="{page}" PlaneCount="1">'
            f'<UUID FileName="{name}">{uuid}</UUID></TiffData>'
            for name, uuid, part in zip(names, uuids, parts, strict=True)
            for page, (of, c, t) in enumerate(part)
            if of == image
        )
        labels = "".join(
            f'<Channel ID="Channel:{image}:{c}" Name="{label}" SamplesPerPixel="1"/>'
            for c, label in enumerate(("DAPI", "Phase", "GFP")[image : image + channels])
        )
        texts.append(
            f'<Image ID="Image:{image}"><Pixels ID="Pixels:{image}" DimensionOrder="XYCZT" Type="uint8" SizeX="13" '
            f'SizeY="11" SizeC="{channels}" SizeZ="1" SizeT="{frames}" PhysicalSizeX="{0.65 + image}" '
            f'PhysicalSizeY="{0.65 + image}">{labels}{data}</Pixels></Image>'
        )
    written: dict[Path, list[np.ndarray]] = {}
    for name, uuid, part in zip(names, uuids, parts, strict=True):
        told = {"own": f' UUID="{uuid}"', "first": f' UUID="{uuids[0]}"', "none": ""}[root_uuid]
        space = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
        text = f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{space}"{told}>{"".join(texts)}</OME>'
        written[folder / name] = [values[planes.index(plane)] for plane in part]
        with tifffile.TiffWriter(folder / name) as file:
            for number, page in enumerate(written[folder / name]):
                file.write(page, description=text if not number else None, metadata=None, contiguous=False)
    return written


def write_zarr(path: Path, zarr_format: int = 2) -> None:
    """OME-Zarr 0.4, as zarr's format 2 has it, or 0.5, as its format 3."""
    import zarr
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import write_image

    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space"} for name in "zyx"]
    write_image(
        VALUES, group, axes=axes, scale_factors=[], scale={"z": 2.0, "y": 0.65, "x": 0.65},
        axes_units=dict.fromkeys("zyx", "micrometer"), fmt=FormatV04() if zarr_format == 2 else FormatV05(),
    )  # fmt: skip


WRITERS = {
    "imagej.tif": write_imagej,
    "imagej in one page.tif": lambda path: write_imagej(path, truncate=True),
    "big.tif": lambda path: write_ome(path, bigtiff=True, byteorder=">"),
    "packed.ome.tif": lambda path: write_ome(path, compression="zlib", tile=(16, 16)),
    "image.ome.zarr": write_zarr,
    "newer.zarr": lambda path: write_zarr(path, 3),
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_plane_is_the_one_that_was_written(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    for t, c, z in np.ndindex(VALUES.shape[:3]):
        picture = read_picture(tmp_path / name, PlaneChoice(c, z, t))
        np.testing.assert_array_equal(picture.image_bgr, np.repeat(VALUES[t, c, z][..., None], 3, axis=2))
        assert picture.told == ""
        assert picture.pixel is not None
        assert (picture.pixel.y_um, picture.pixel.x_um) == pytest.approx((0.65, 0.65), rel=1e-6)
    largest = read_picture(tmp_path / name, PlaneChoice(1, "max", "all"), frame=1)
    np.testing.assert_array_equal(largest.image_bgr[..., 0], VALUES[1, 1].max(axis=0))
    default = read_picture(tmp_path / name, ANY)
    np.testing.assert_array_equal(default.image_bgr[..., 0], VALUES[0, 0, 2])
    assert all(text in default.told for text in ("frame 0 of 2", "channel 0 of 3", "z 2 of 4"))
    with pytest.raises(InputError, match=f"{name}.*no channel 3"):
        read_picture(tmp_path / name, PlaneChoice(channel=3))


def test_a_plane_is_read_without_the_pages_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stack.ome.tif"
    write_ome(path)
    read: list[int] = []

    class Counted(TiffDirectory):
        def __init__(self, stream: BinaryIO, order: str, big: bool, at: int):
            read.append(at)
            super().__init__(stream, order, big, at)

    monkeypatch.setattr("kernel.images.tiff_tags.TiffDirectory", Counted)
    for page, (t, c, z) in enumerate(np.ndindex(VALUES.shape[:3])):
        read.clear()
        read_picture(path, PlaneChoice(c, z, t))
        assert len(read) == page + 1


@pytest.mark.parametrize("where", ["together", "alone", "renamed"])
@pytest.mark.parametrize("root_uuid", ["own", "first", "none"])
@pytest.mark.parametrize("kind", ["frames", "films", "halves", "positions"])
def test_a_file_of_a_set_shows_its_own_planes(tmp_path: Path, kind: str, root_uuid: str, where: str) -> None:
    """Each of them tells of all planes: what tifffile makes of it is the same for all, and black where one is away."""
    for path, pages in write_ome_set(tmp_path, kind, root_uuid).items():
        place = path
        if where != "together":
            place = tmp_path / where / (path.name if where == "alone" else f"a {path.name}")
            place.parent.mkdir(exist_ok=True)
            shutil.copy(path, place)
        stack = open_stack(place, ANY)
        told = read_picture(place, ANY)
        assert "of the set of files that it belongs to, it alone is read" in told.told
        assert int(np.prod(stack.sizes)) == len(pages)
        for page, at in zip(pages, np.ndindex(stack.sizes), strict=True):
            np.testing.assert_array_equal(stack.read(at)[..., 0], page)
        np.testing.assert_array_equal(told.image_bgr[..., 0], pages[0])
        is_known = where != "renamed" or root_uuid != "none"
        second = kind == "positions" and path.name == "set_1.ome.tif" and is_known
        if where != "renamed" or root_uuid == "own" or kind != "positions":  # else the text tells of the first
            assert stack.pixel is not None and stack.pixel.y_um == pytest.approx(1.65 if second else 0.65)
        if kind == "halves" or not is_known:
            continue  # what is cut in a frame has no axes
        assert stack.axes == ("TC" if kind == "films" else "C")
        if where != "renamed" or root_uuid == "own":
            name = "GFP" if second else "Phase"
            np.testing.assert_array_equal(read_picture(place, PlaneChoice(name)).image_bgr[..., 0], pages[1])


def test_the_frames_of_a_file_of_a_set_are_its_own(tmp_path: Path) -> None:
    for path in write_ome_set(tmp_path, "films"):
        stack = open_stack(path, PlaneChoice(frame="all"))
        assert count_frames(stack.axes, stack.sizes, PlaneChoice(frame="all")) == 2
    for path in write_ome_set(tmp_path, "frames"):
        stack = open_stack(path, PlaneChoice(frame="all"))
        assert count_frames(stack.axes, stack.sizes, PlaneChoice(frame="all")) == 1
        with pytest.raises(InputError, match="no frame 1"):
            read_picture(path, PlaneChoice(0, frame=1))


def write_micro_manager_set(folder: Path, values: np.ndarray) -> list[Path]:
    """Frames (N, H, W) uint8 in two files, with the index by which tifffile finds the other one, and no OME-XML."""
    summary = json.dumps({"MicroManagerVersion": "2.0", "Prefix": "a", "Frames": len(values)}).encode()
    paths = [folder / "a_MMStack_Pos0.ome.tif", folder / "a_MMStack_Pos0_1.ome.tif"]
    height, width = values.shape[1:]
    for path, part in zip(paths, np.split(np.arange(len(values)), 2), strict=True):
        at = 40 + len(summary) + len(summary) % 2
        step = 162 + height * width + height * width % 2
        offsets = [at + step * number for number in range(len(part))]
        index = at + step * len(part)
        content = struct.pack("<2sHI", b"II", 42, at)
        content += struct.pack("<8I", 54773648, index, 483765892, 0, 99384722, 0, 2355492, len(summary)) + summary
        for number, offset in zip(part, offsets, strict=True):
            tags = {254: 0, 256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: offset + 162, 277: 1, 278: height}
            tags |= {279: height * width, 284: 1, 339: 1}
            following = offset + step if offset != offsets[-1] else 0
            content = content.ljust(offset, b"\0") + struct.pack("<H", 13)
            content += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
            content += struct.pack("<HHIII", 51123, 2, len(summary), 40, following) + values[number].tobytes()
        rows = [value for number, offset in zip(part, offsets, strict=True) for value in (0, 0, int(number), 0, offset)]
        path.write_bytes(content.ljust(index, b"\0") + struct.pack(f"<{2 + len(rows)}I", 3453623, len(part), *rows))
    return paths


def test_a_file_of_micro_managers_shows_its_own_planes(tmp_path: Path) -> None:
    frames = VALUES[0, 0]
    paths = write_micro_manager_set(tmp_path, frames)
    with tifffile.TiffFile(paths[1]) as file:
        assert file.series[0].shape == frames.shape and file.series[0].is_multifile
    for path, own in zip(paths, (frames[:2], frames[2:]), strict=True):
        for number, frame in enumerate(own):
            picture = read_picture(path, PlaneChoice(frame=number))
            np.testing.assert_array_equal(picture.image_bgr[..., 0], frame)
            assert "it alone is read" in picture.told
        with pytest.raises(InputError, match="no frame 2: it has 2"):
            read_picture(path, PlaneChoice(frame=2))


def test_a_renamed_file_whose_text_has_no_uuid_of_its_own(tmp_path: Path) -> None:
    """It names one file, which tifffile looks for by the name that it had."""
    write_ome(tmp_path / "a.ome.tif", tile=(16, 16))
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        text = file.ome_metadata or ""
    (uuid,) = re.findall(r' UUID="(urn:[^"]*)"', text)
    text = text.replace(f' UUID="{uuid}"', "")
    assert uuid in text or "<UUID" not in text
    text = re.sub(r"(<TiffData[^>]*)/>", rf'\1><UUID FileName="old.ome.tif">{uuid}</UUID></TiffData>', text)
    with tifffile.TiffWriter(tmp_path / "new.ome.tif") as writer:
        for number, page in enumerate(VALUES.reshape(-1, 11, 13)):
            writer.write(page, description=text if not number else None, metadata=None, contiguous=False)
    picture = read_picture(tmp_path / "new.ome.tif", PlaneChoice("phase", 1, 1))
    np.testing.assert_array_equal(picture.image_bgr[..., 0], VALUES[1, 1, 1])


def test_channels_by_the_names_of_ome(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.ome.tif")
    picture = read_picture(tmp_path / "a.ome.tif", PlaneChoice("phase", 0, 0))
    np.testing.assert_array_equal(picture.image_bgr[..., 0], VALUES[0, 1, 0])


def test_channels_by_wavelengths(tmp_path: Path) -> None:
    """In OME-TIFF, and in OME-Zarr, where writers may leave them numbers."""
    write_ome(tmp_path / "a.ome.tif", ["405", "488", "1"])
    write_zarr(tmp_path / "a.zarr")
    metadata = tmp_path / "a.zarr" / ".zattrs"
    told = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(told | {"omero": {"channels": [{"label": name} for name in (405, 488, 1)]}}))
    for name in ("a.ome.tif", "a.zarr"):
        for asked, channel in (("488", 1), ("1", 2), ("2", 2), ("0", 0)):
            picture = read_picture(tmp_path / name, choice_of_texts(asked, "0", "0"))
            np.testing.assert_array_equal(picture.image_bgr[..., 0], VALUES[0, channel, 0])
            assert ("channel 2 of 3 by its name 1 is taken" in picture.told) == (asked == "1")


@pytest.mark.parametrize("bits", [np.uint8, np.uint16, np.float32])
def test_one_plane_is_read_as_ever(tmp_path: Path, bits: type) -> None:
    plane = (VALUES[0, 0, 0].astype(bits) * (1 if bits == np.uint8 else 7)).astype(bits)
    tifffile.imwrite(tmp_path / "plane.tif", plane)
    tifffile.imwrite(tmp_path / "white.tif", plane, photometric="miniswhite")
    cv2.imwrite(str(tmp_path / "plane.png"), VALUES[0, 0, 0])
    for name in ("plane.tif", "white.tif", "plane.png"):
        picture = read_picture(tmp_path / name, ANY)
        np.testing.assert_array_equal(picture.image_bgr, read_image(tmp_path / name))
        assert picture.pixel is None or not picture.pixel.is_likely
        assert picture.told == ""


def test_planes_of_zero_is_white_and_of_colours(tmp_path: Path) -> None:
    colours = np.moveaxis(VALUES[0, :, :3], 0, -1)
    tifffile.imwrite(tmp_path / "rgb.tif", colours, photometric="rgb")
    picture = read_picture(tmp_path / "rgb.tif", PlaneChoice(z=1))
    np.testing.assert_array_equal(picture.image_bgr[..., ::-1], colours[1])
    tifffile.imwrite(tmp_path / "white.tif", VALUES[0, 0], photometric="miniswhite", metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(read_picture(tmp_path / "white.tif", ANY).image_bgr[..., 0], ~VALUES[0, 0, 2])


@pytest.mark.parametrize("pages", [True, False])
@pytest.mark.parametrize("bits", [np.uint8, np.uint16, np.uint32, np.int16, np.float32])
def test_planes_of_zero_is_white_are_compared_by_one_zero(tmp_path: Path, bits: type, pages: bool) -> None:
    """The brightest of their pixels, each plane with another range, are those of the stack with dark and bright mended.

    Stored as pages, and as planes behind each other.
    """
    white = np.stack([VALUES[0, 0, 0] // 4, 100 + VALUES[0, 0, 1] // 4]).astype(bits)
    bright = 255 - white if bits is np.uint8 else 1000 - white.astype(np.int32)
    tifffile.imwrite(tmp_path / "bright.tif", bright.astype(bits), metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "white.tif", white, photometric="miniswhite", metadata={"axes": "ZYX"}, rowsperstrip=8)
    if pages:
        with tifffile.TiffWriter(tmp_path / "white.tif", ome=True) as file:
            file.write(white, photometric="miniswhite", metadata={"axes": "ZYX"}, contiguous=False, compression="zlib")
    found, meant = (read_picture(tmp_path / name, PlaneChoice(z="max")) for name in ("white.tif", "bright.tif"))
    np.testing.assert_array_equal(found.image_bgr, meant.image_bgr)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_samples_are_channels_where_one_is_asked_for(tmp_path: Path, planar: str) -> None:
    samples = VALUES[0, :, 0] if planar == "separate" else np.moveaxis(VALUES[0, :, 0], 0, -1)
    tifffile.imwrite(tmp_path / "samples.tif", samples, photometric="rgb", planarconfig=planar)
    for channel in range(3):
        picture = read_picture(tmp_path / "samples.tif", PlaneChoice(channel))
        np.testing.assert_array_equal(picture.image_bgr[..., 2], VALUES[0, channel, 0])
    colours = read_picture(tmp_path / "samples.tif", ANY).image_bgr
    np.testing.assert_array_equal(colours[..., ::-1], np.moveaxis(VALUES[0, :, 0], 0, -1))


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_colours_of_a_plain_image_are_channels_where_one_is_asked_for(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"colour.{ending}"
    colours = np.empty((16, 24, 3), np.uint8)
    colours[...] = (50, 100, 200)  # blue, green, red
    assert cv2.imwrite(str(path), colours)
    for channel, value in enumerate((200, 100, 50)):
        for asked in (PlaneChoice(channel), choice_of_texts(str(channel), None, "all")):
            picture = read_picture(path, asked)
            assert picture.image_bgr.shape == colours.shape and picture.stored.shape == (16, 24, 1)
            assert abs(picture.image_bgr.astype(int) - value).max() <= 2
            assert not picture.told
    with pytest.raises(InputError, match="there is no channel 3: it has 3, counted from 0"):
        read_picture(path, PlaneChoice(3))
    assert read_picture(path, ANY).stored.shape == colours.shape
    assert cv2.imwrite(str(path), colours[..., 0])
    with pytest.raises(InputError, match="there is no channel 1: it has one"):
        read_picture(path, PlaneChoice(1))
    assert read_picture(path, PlaneChoice(0)).stored.shape == (16, 24, 1)


@pytest.mark.parametrize("more", [{}, {"compression": "zlib"}, {"byteorder": ">"}])
@pytest.mark.parametrize("axes", ["YXZ", "YZX", "XYZ", "ZXY", "yxz", "XY"])
def test_planes_that_lie_across_pages(tmp_path: Path, axes: str, more: dict[str, str]) -> None:
    """As tifffile writes an array as it is, with the axes that it is told: a page is of other axes than rows, columns.

    Where Y comes first, there are as many pages as planes.
    """
    stack = VALUES[0].reshape(-1, 11, 13)[:11].transpose(1, 2, 0)  # Y, X, Z of 11, 13, 11
    plane = stack[..., 5] if axes != "XY" else stack[..., 0]
    values = stack.transpose(["YXZ".index(axis) for axis in axes.upper()]) if axes != "XY" else plane.T
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", metadata={"axes": axes}, **more)
    picture = read_picture(tmp_path / "a.tif", ANY)
    np.testing.assert_array_equal(picture.image_bgr, np.repeat(plane[..., None], 3, axis=2))
    assert ("z 5 of 11 is taken" in picture.told) == (axes != "XY")


def test_colours_that_a_text_calls_channels(tmp_path: Path) -> None:
    """They are shown as every program shows them; samples that are no colours are channels."""
    colours = VALUES[0].transpose(1, 2, 3, 0)  # Z, Y, X, C
    tifffile.imwrite(tmp_path / "rgb.tif", colours[0], photometric="rgb", metadata={"axes": "YXC"})
    np.testing.assert_array_equal(read_picture(tmp_path / "rgb.tif", ANY).image_bgr[..., ::-1], colours[0])
    tifffile.imwrite(tmp_path / "stack.tif", colours, photometric="rgb", metadata={"axes": "ZYXC"})
    np.testing.assert_array_equal(read_picture(tmp_path / "stack.tif", ANY).image_bgr[..., ::-1], colours[2])
    gray = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "channels.tif", colours[0], metadata={"axes": "YXC"}, **gray)
    for name in ("rgb.tif", "channels.tif"):
        picture = read_picture(tmp_path / name, PlaneChoice(channel=1))
        np.testing.assert_array_equal(picture.image_bgr[..., 0], colours[0, ..., 1])
    assert "channel 0 of 3" in read_picture(tmp_path / "channels.tif", ANY).told


@pytest.mark.parametrize("axes", ["ZXC", "YXYX"])
def test_axes_without_a_plane_are_refused(tmp_path: Path, axes: str) -> None:
    values = VALUES[0, 0] if len(axes) == 3 else VALUES[0]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", metadata={"axes": axes})
    with pytest.raises(InputError, match=rf"a\.tif: its axes are {axes}, and one should be Y and one X"):
        read_picture(tmp_path / "a.tif", ANY)


def test_pages_without_a_meaning(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        for plane in VALUES[0, 0]:
            file.write(plane, metadata=None, contiguous=False)
    first = read_picture(tmp_path / "pages.tif", ANY)
    np.testing.assert_array_equal(first.image_bgr[..., 0], VALUES[0, 0, 0])
    for choice in (PlaneChoice(frame=3), PlaneChoice(z=3), PlaneChoice(channel=3)):
        picture = read_picture(tmp_path / "pages.tif", choice)
        np.testing.assert_array_equal(picture.image_bgr[..., 0], VALUES[0, 0, 3])


def test_without_tifffile_the_first_page_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_imagej(tmp_path / "stack.tif")
    monkeypatch.setattr("kernel.images.stacks.is_installed", lambda package: False)
    monkeypatch.setattr("kernel.images.tiff_decoding.is_installed", lambda package: False)
    picture = read_picture(tmp_path / "stack.tif", ANY)
    np.testing.assert_array_equal(picture.image_bgr[..., 0], VALUES[0, 0, 0])
    assert "tifffile" in picture.told and picture.pixel is None
    with pytest.raises(InputError, match="pip install tifffile"):
        read_picture(tmp_path / "stack.tif", PlaneChoice(z=1))


@pytest.mark.parametrize("samples", [False, True])
def test_a_plane_that_is_told_of_and_missing_is_refused(tmp_path: Path, samples: bool) -> None:
    """As where a recording was stopped: tifffile gives black planes for those that are not there."""
    path, values = tmp_path / "a.ome.tif", np.stack([VALUES[:, 0, 0]] * 3, axis=-1) if samples else VALUES[:, 0, 0]
    tifffile.imwrite(
        path, values, ome=True, photometric="rgb" if samples else None, metadata={"axes": "TYXS"[: values.ndim]}
    )
    assert path.read_bytes().count(b'SizeT="2"') == 1
    path.write_bytes(path.read_bytes().replace(b'SizeT="2"', b'SizeT="5"'))
    channel = 1 if samples else None
    assert np.array_equal(read_picture(path, PlaneChoice(channel, frame=1)).image_bgr[..., 0], VALUES[1, 0, 0])
    with pytest.raises(InputError, match=r"a\.ome\.tif lacks the plane at T 2,.* of 5 planes, and 3 are missing; copy"):
        read_picture(path, PlaneChoice(channel, frame=2))


def test_a_damaged_plane_is_refused(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.ome.tif", compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        where = file.pages[7].dataoffsets[0]
    data = bytearray((tmp_path / "a.ome.tif").read_bytes())
    data[where : where + 20] = bytes(20)
    (tmp_path / "a.ome.tif").write_bytes(data)
    places = np.unravel_index(7, VALUES.shape[:3])
    with pytest.raises(InputError, match=r"a\.ome\.tif"):
        read_picture(tmp_path / "a.ome.tif", PlaneChoice(int(places[1]), int(places[2]), int(places[0])))
    assert read_picture(tmp_path / "a.ome.tif", PlaneChoice(0, 0, 0)).image_bgr.any()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    (tmp_path / "head.tif").write_bytes(b"II*\0")
    for name in ("cut.tif", "head.tif"):
        with pytest.raises(InputError, match=name):
            read_picture(tmp_path / name, PlaneChoice(2, 3, 1))


@pytest.mark.parametrize(
    ("told", "size"),
    [
        (dict(resolution=(8000, 8000), resolutionunit="CENTIMETER"), (1.25, 1.25)),
        (dict(resolution=(25400, 12700), resolutionunit="INCH"), (2.0, 1.0)),
        (dict(resolution=(2, 2), imagej=True, metadata={"unit": "micron"}), (0.5, 0.5)),
        (dict(resolution=(2, 2), imagej=True, metadata={"unit": "\\u00B5m"}), (0.5, 0.5)),
        (dict(resolution=(2000, 2000), imagej=True, metadata={"unit": "mm"}), (0.5, 0.5)),
        (dict(resolution=(2, 2), imagej=True, metadata={"unit": "pixel"}), None),
        (dict(resolution=(2, 2), imagej=True), None),
        (dict(resolution=(2, 2), resolutionunit="NONE"), None),
        (dict(resolution=(0, 0), resolutionunit="INCH"), None),
        (dict(ome=True), None),
        (dict(ome=True, metadata={"PhysicalSizeX": 300, "PhysicalSizeXUnit": "nm"}), (0.3, 0.3)),
        (dict(ome=True, metadata={"PhysicalSizeX": 0.3, "PhysicalSizeXUnit": "pixel"}), None),
    ],
)
def test_the_size_of_a_pixel(tmp_path: Path, told: dict[str, Any], size: tuple[float, float] | None) -> None:
    """Rows and columns, in micrometres."""
    tifffile.imwrite(tmp_path / "a.tif", VALUES[0, 0, 0], **told)
    pixel = open_stack(tmp_path / "a.tif", ANY).pixel
    assert (None if pixel is None else (pixel.y_um, pixel.x_um)) == (None if size is None else pytest.approx(size))


def test_a_pixel_of_a_printer_is_no_microscopes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VALUES[0, 0, 0], resolution=(300, 300), resolutionunit="INCH")
    pixel = open_stack(tmp_path / "a.tif", ANY).pixel
    assert pixel is not None and not pixel.is_likely and PixelSize(0.6, 0.6, "").is_likely


def test_sizes_that_are_none() -> None:
    for value in ("x", None, "nan", "inf", 0, -1, ""):
        assert pixel_size(value, 1, "um", "um", "a test") is None
    assert pixel_size(1, 1, "", "um", "a test") is None
    for xml in ("", "<OME/>", "<OME", "<OME><Image><Pixels/></Image></OME>"):
        assert ome_pixel_size(xml) is None
    assert str(PixelSize(0.5, 0.5, "")) == "0.5 um" and str(PixelSize(1, 0.5, "")) == "0.5 x 1 um"


def test_a_zarr_of_more_pixels_than_any_memory_holds_is_refused(tmp_path: Path) -> None:
    """Chunks that are not there need no bytes."""
    import zarr

    write_zarr(tmp_path / "a.zarr")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="a", zarr_format=2)
    (place, *_) = (scale["path"] for scale in group.attrs["multiscales"][0]["datasets"])
    shape = (*VALUES.shape[:-2], 1 << 31, 1 << 31)
    group.create_array(place, shape=shape, chunks=(*VALUES.shape[:-2], 64, 64), dtype="u1", overwrite=True)
    with pytest.raises(InputError, match=r"a\.zarr: its pixels do not fit into the memory; replace it"):
        read_picture(tmp_path / "a.zarr", ANY)


def test_folders_of_zarr_that_are_no_image(tmp_path: Path) -> None:
    import zarr

    group = zarr.open_group(str(tmp_path / "plate.zarr"), mode="w")
    group.attrs["plate"] = {"wells": []}
    with pytest.raises(InputError, match="plate of many images"):
        read_picture(tmp_path / "plate.zarr", ANY)
    zarr.open_group(str(tmp_path / "other.zarr"), mode="w")
    with pytest.raises(InputError, match="no multiscales"):
        read_picture(tmp_path / "other.zarr", ANY)
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(InputError, match=r"empty\.zarr"):
        read_picture(tmp_path / "empty.zarr", ANY)


@pytest.mark.parametrize(
    ("dtype", "codecs", "told"),
    [
        ("|O", {"filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]}, "holds .* where pixels should be"),
        ("|O", {"filters": [{"id": "vlen-utf8"}], "compressor": {"id": "pickle"}}, "holds .* where pixels should be"),
        ("<c8", {"fill_value": [0.0, 0.0]}, "holds complex64 where pixels should be"),
    ],
)
def test_an_array_whose_reading_would_run_code_is_refused_before_it_is_read(
    dtype: str, codecs: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numcodecs.pickles import Pickle

    def decode(*_: Any) -> np.ndarray:
        (tmp_path / "mark").touch()
        return np.zeros((4, 4), np.uint16)

    monkeypatch.setattr(Pickle, "decode", decode)  # as before 0.16.6, where it ran what is written
    write_zarr_by_hand(tmp_path / "a.zarr", {"dtype": dtype, **codecs})
    with pytest.raises(InputError, match=told):
        read_picture(tmp_path / "a.zarr", ANY)
    with pytest.raises(InputError, match=f"its label image {told}"):
        read_ome_zarr(tmp_path / "a.zarr", (4, 4))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "told",
    [
        {"filters": [{"id": "shuffle"}, {"id": "pickle"}]},
        {"compressor": {"id": "pickle", "protocol": 5}},
        {"codecs": ({"name": "sharding_indexed", "configuration": {"codecs": ({"name": "numcodecs.pickle"},)}},)},
    ],
)
def test_numbers_that_were_pickled_are_refused(told: dict[str, Any]) -> None:
    """Zarr from 3.1 on refuses the first two of these by itself."""
    array = SimpleNamespace(dtype=np.dtype("u2"), metadata=SimpleNamespace(to_dict=lambda: told))
    assert "holds pickles, which run code" in zarr_oddity(array)
    told |= {"filters": None, "compressor": None, "codecs": (), "attributes": {"name": "pickle"}}
    assert zarr_oddity(array) == ""


def write_zarr_by_hand(path: Path, more: dict[str, Any]) -> None:
    """OME-Zarr 0.4 of 4 x 4 pixels with the label `cells`; `more` describes the arrays of both."""
    described = {"zarr_format": 2, "shape": [4, 4], "chunks": [4, 4], "order": "C", "fill_value": 0}
    axes = [{"name": name, "type": "space"} for name in "yx"]
    scales = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]}
    for folder in (path, path / "labels" / "cells"):
        (folder / "0").mkdir(parents=True)
        (folder / ".zgroup").write_text('{"zarr_format": 2}', encoding="utf-8")
        (folder / ".zattrs").write_text(json.dumps(scales), encoding="utf-8")
        array = described | {"filters": None, "compressor": None} | more
        (folder / "0" / ".zarray").write_text(json.dumps(array), encoding="utf-8")
        (folder / "0" / "0.0").write_bytes(bytes(32))
    (path / "labels" / ".zgroup").write_text('{"zarr_format": 2}', encoding="utf-8")


def test_several_images_as_bioformats2raw_lays_them_out(tmp_path: Path) -> None:
    import zarr

    zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
    write_zarr(tmp_path / "a.zarr" / "0")
    picture = read_picture(tmp_path / "a.zarr", PlaneChoice(1, 2, 0))
    np.testing.assert_array_equal(picture.image_bgr[..., 0], VALUES[0, 1, 2])
    assert "its first image" in picture.told


@pytest.mark.parametrize("ending", list(BIOIO_READERS))
def test_what_to_install_for_a_microscopes_own_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    (tmp_path / f"cells{ending}").write_bytes(b"anything")
    monkeypatch.setattr("kernel.images.stacks.is_installed", lambda package: package == "bioio")
    with pytest.raises(InputError, match=f"pip install bioio {BIOIO_READERS[ending]}"):
        read_picture(tmp_path / f"cells{ending}", ANY)


class FakeDims:
    order = "TCZYX"

    def __init__(self, channels: int = 3):
        self.channels = channels

    def __getitem__(self, letter: str) -> tuple[int, ...]:
        return (self.channels if letter == "C" else VALUES.shape["TCZYX".index(letter)],)


class FakeImage:
    """As `bioio.BioImage`: of its attributes those that are used, with the types that it has there."""

    scenes = ("Image:0", "Image:1")
    channel_names = [np.str_("DAPI"), np.str_("Phase"), np.str_("GFP")]  # noqa: RUF012
    physical_pixel_sizes = SimpleNamespace(Z=1.0, Y=0.62, X=0.62)

    dims = FakeDims()

    def __init__(self, path: Path, reader: object):
        if path.read_bytes() == b"damaged":
            raise UnsupportedFileFormatError("bioio-czi does not support the image")
        if path.read_bytes() == b"one channel":
            self.channel_names = [np.str_("488")]
            self.dims = FakeDims(channels=1)

    def get_image_dask_data(self, order: str, **places: int) -> Any:
        assert order == "YX"
        return SimpleNamespace(compute=lambda: VALUES[places["T"], places["C"], places["Z"]])


class UnsupportedFileFormatError(Exception):
    pass


def test_a_microscopes_own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By stand-ins of bioio, which is not among what tests need."""
    for name, content in {
        "bioio": {"BioImage": FakeImage},
        "bioio_base": {},
        "bioio_base.exceptions": {"UnsupportedFileFormatError": UnsupportedFileFormatError},
        "bioio_czi": {"Reader": object},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("kernel.images.stacks.is_installed", lambda package: True)
    (tmp_path / "a.CZI").write_bytes(b"whole")
    picture = read_picture(tmp_path / "a.CZI", PlaneChoice("phase", "max", 1))
    np.testing.assert_array_equal(picture.image_bgr[..., 0], VALUES[1, 1].max(axis=0))
    assert picture.pixel == PixelSize(0.62, 0.62, "bioio-czi") and "first of its 2 scenes" in picture.told
    (tmp_path / "one.czi").write_bytes(b"one channel")
    picture = read_picture(tmp_path / "one.czi", choice_of_texts("488", "1", "1"))
    np.testing.assert_array_equal(picture.image_bgr[..., 0], VALUES[1, 0, 1])
    (tmp_path / "b.czi").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"b\.czi by bioio-czi"):
        read_picture(tmp_path / "b.czi", ANY)
