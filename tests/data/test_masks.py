"""Images to edit and their masks."""

import numpy as np
import pytest
from PIL import Image

from refocus_jax.data import masks


@pytest.fixture
def wide(tmp_path) -> str:
    """An image of 12 x 8 pixels that becomes brighter to the right; as a mask, it hides the right half."""
    gradient = np.arange(12, dtype=np.uint8)[None].repeat(8, 0) * 20 + 18
    Image.fromarray(gradient).save(tmp_path / "wide.png")
    return str(tmp_path / "wide.png")


def test_boxes_are_pixels_of_the_middle_square():
    hidden, square = masks.read_mask("box:1,2,3,4", (8, 12), 8)
    assert square.nonzero()[0].tolist() == [2, 2, 3, 3] and square.nonzero()[1].tolist() == [1, 2, 1, 2]
    np.testing.assert_array_equal(hidden[:, 2:10], square)
    assert not hidden[:, :2].any() and not hidden[:, 10:].any()
    for mask in ("box:1,2,3,4", "outside:0,0,8,5"):
        hidden, square = masks.read_mask(mask, (22, 22), 8)
        for (row, column), value in np.ndenumerate(square):  # of each pixel, all that lies on it
            rows, columns = (slice(int(2.75 * i), int(np.ceil(2.75 * i + 2.75))) for i in (row, column))
            assert hidden[rows, columns].all() or not value
    np.testing.assert_array_equal(masks.read_mask("outside:1,2,3,4", (8, 8), 8)[1],
                                  ~masks.read_mask("box:1,2,3,4", (8, 8), 8)[1])


def test_mask_files_are_light_where_they_hide(wide, tmp_path):
    hidden, square = masks.read_mask(wide, (8, 12), 8)
    assert hidden.all(axis=0).tolist() == [False] * 6 + [True] * 6 and (hidden[:, 2:10] == square).all()
    hidden, square = masks.read_mask(wide, (80, 121), 8)  # the same shape, but for rounding
    assert hidden[0].nonzero()[0].tolist() == list(range(60, 121)) and square[0].tolist() == [False] * 4 + [True] * 4
    line = np.zeros((8, 8), np.uint8)
    line[:, 1] = 128
    Image.fromarray(line).save(tmp_path / "line.png")
    _, square = masks.read_mask(str(tmp_path / "line.png"), (8, 8), 2)  # each pixel hides all that it is part of
    assert square[0].tolist() == [True, False]
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(tmp_path / "nothing.png")
    assert not masks.read_mask(str(tmp_path / "nothing.png"), (8, 12), 8)[0].any()


@pytest.mark.parametrize("size", [4, 8, 20])
@pytest.mark.parametrize("mask", ["box:1,0,3,3", "outside:1,0,3,3", "file"])
def test_hidden_pixels_of_a_file_leave_no_trace(wide, mask, size):
    """Squares that are smaller than the file, larger, and of the same size."""
    mask, picture = wide if mask == "file" else mask, np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    hidden, square = masks.read_mask(mask, (8, 12), size)
    image, _ = masks.hide(picture, mask, size)
    assert image.shape == (size, size, 3) and hidden.any() and not hidden.all()
    for value in (0, 255, np.random.default_rng(1).integers(0, 256, picture.shape, np.uint8)):
        np.testing.assert_array_equal(masks.hide(np.where(hidden[..., None], value, picture), mask, size)[0], image)
    if size == 8:
        np.testing.assert_allclose(image[~square], picture[:, 2:10][~square] / 127.5 - 1, atol=1e-6)


def test_masks_and_images_are_refused(wide, tmp_path):
    for mask in ("box:1,2,3", "box:3,2,1,4", "outside:0,0,9,8", "box:a,b,c,d"):
        with pytest.raises(ValueError, match=f"edit.mask is '{mask}'; give .*LEFT < RIGHT <= 8"):
            masks.read_mask(mask, (8, 8), 8)
    (tmp_path / "text.png").write_text("no image")
    clear = np.zeros((8, 12, 4), np.uint8) + np.uint8([255, 255, 255, 0])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(np.eye(8, 12, dtype=np.uint8)).save(tmp_path / "ones.png")  # as segmentations are stored
    for mask, shape, message in (
            (str(tmp_path / "text.png"), (8, 12), "edit.mask=.*cannot be read as an image"),
            ("", (8, 12), "edit.mask is empty; give an image file"),
            (wide, (8, 8), "has 12 x 8 pixels and edit.image 8 x 8.*give a mask of the image's size"),
            (wide, (120, 80), "has 12 x 8 pixels and edit.image 80 x 120"),
            (str(tmp_path / "clear.png"), (8, 12), "edit.mask=.*has transparent pixels.*; give it without"),
            (str(tmp_path / "ones.png"), (8, 12), "is at most 1 of 255, .*set the pixels to paint to 255")):
        with pytest.raises(ValueError, match=message):
            masks.read_mask(mask, shape, 8)
    clear[..., 3] = 255
    Image.fromarray(clear).save(tmp_path / "opaque.png")
    assert masks.read_mask(str(tmp_path / "opaque.png"), (8, 12), 8)[0].all()
    with pytest.raises(ValueError, match="edit.image is nowhere.png, which cannot be opened"):
        masks.read_image("nowhere.png")
    for path, message in (("", "edit.image is empty"), (str(tmp_path / "text.png"), "cannot be read as an image")):
        with pytest.raises(ValueError, match=message):
            masks.read_image(path)


def test_hidden_pixels_have_no_say_in_what_is_white(tmp_path):
    """The largest value of 16 bits may be hidden: white must be given."""
    path = str(tmp_path / "deep.png")
    Image.fromarray(np.full((8, 8), 819, np.uint16)).save(path)
    with pytest.raises(ValueError, match="edit.image=.*has 16 bits and does not say.*; set data.sixteen_bit_max"):
        masks.read_image(path)
    assert (masks.read_image(path, 4095) == 51).all()
