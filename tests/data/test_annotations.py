from __future__ import annotations

import numpy as np
import pytest
from oracles import full_frames

from kernel.data.annotations import ImageAnnotations, read_annotations
from kernel.errors import InputError

HEADER = "id,annotation,width,height,cell_type,plate_time\n"
RING = "1 3 6 1 8 1 11 3"  # 3 x 3 with a hole, in rows of 5


def written(tmp_path, rows: str, header: str = HEADER):
    path = tmp_path / "train.csv"
    path.write_text(header + rows)
    return path


def test_rows_become_images_with_crops(tmp_path):
    found = read_annotations(written(tmp_path, f"a,{RING},5,4,astro,\nb,1 1,5,4,cort,x\na,20 1,5,4,astro,\n"))
    assert list(found) == ["a", "b"]
    image = found["a"]
    assert (image.cell_type, image.image_shape, len(image.rles)) == ("astro", (4, 5), 2)
    masks = image.masks()
    assert masks.sizes.tolist() == [8, 1]
    assert masks.windows.tolist() == [[0, 0, 3, 3], [3, 4, 4, 5]]
    assert masks.boxes_xyxy.tolist() == [[0, 0, 3, 3], [4, 3, 5, 4]]
    assert masks.labels.tolist() == [1, 1]
    assert image.masks(fill_holes=True).sizes.tolist() == [9, 1]


def test_wrong_annotations_are_left_out_unless_asked_for(tmp_path):
    path = written(tmp_path, "03b27b381a5f,1 1,5,4,cort,\nb,1 1,5,4,cort,\n")
    assert list(read_annotations(path)) == ["b"]
    assert list(read_annotations(path, exclude=())) == ["03b27b381a5f", "b"]


def test_nothing_annotated(tmp_path):
    assert read_annotations(written(tmp_path, "")) == {}
    assert len(ImageAnnotations("a", "cort", (4, 5), ()).masks(fill_holes=True)) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,1 1,5,4,neuron,\n", "row 2: cell type 'neuron'"),
        ("a,1 1,5,x,cort,\n", "row 2: width and height"),
        ("a,1 1,5\n", "row 2: each of"),
        ("a,1 1,5,4,cort,\na,1 1,4,5,cort,\n", "row 3: image 'a' is cort"),
    ],
)
def test_wrong_rows_are_told(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_annotations(written(tmp_path, rows))


def test_wrong_files_are_told(tmp_path):
    with pytest.raises(InputError, match="lacks the columns annotation"):
        read_annotations(written(tmp_path, "", header="id,width,height,cell_type\n"))
    with pytest.raises(InputError, match="cannot read annotations"):
        read_annotations(tmp_path / "none.csv")
    with pytest.raises(InputError, match="image 'a', annotation 1: a run leaves"):
        ImageAnnotations("a", "cort", (4, 5), ("20 2",)).masks()


def test_masks_of_an_image_are_full_size(tmp_path):
    masks = read_annotations(written(tmp_path, f"a,{RING},5,4,astro,\n"))["a"].masks()
    expected = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(full_frames(masks)[0], expected)
