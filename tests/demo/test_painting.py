"""Uploads and masks of the tab Edit."""

import numpy as np
import pytest
from PIL import Image

from refocus_jax.data import masks
from refocus_jax.demo import painting


def test_an_upload_is_read(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    np.testing.assert_array_equal(painting.read(str(tmp_path / "a.png")), picture)
    assert painting.canvas(picture).shape == (512, 512, 3)


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match="the file cannot be read as an image: it does not begin like a"):
        painting.read(str(tmp_path / "a.png"))


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (5000, 4000)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="5000 x 4000 pixels are not supported.*at most 16 million"):
        painting.read(str(tmp_path / "a.png"))


def test_all_that_a_brush_has_touched_is_masked():
    layers = np.zeros((2, 4, 4, 4), np.uint8)
    layers[0, 1, 2, 3], layers[1, 3, 0, 3] = 255, 1
    layers[0, 0, 0, :3] = 255  # transparent
    assert np.argwhere(painting.brush_mask(list(layers))).tolist() == [[1, 2], [3, 0]]
    for nothing in ([], list(layers[:, :1, :1])):
        with pytest.raises(ValueError, match="nothing is painted; paint"):
            painting.brush_mask(nothing)


def test_a_box_in_percent():
    mask = painting.box_mask(25, 75, 0, 50)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 255, 128, 383) and mask.sum() == 256 * 256
    assert painting.box_mask(0, 100, 0, 100).all()
    for edges in ((50, 50, 0, 100), (60, 50, 0, 100), (0, 100, 9, 9)):
        with pytest.raises(ValueError, match="let both begin before they end"):
            painting.box_mask(*edges)


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (50, 30)])
def test_a_painted_box_hides_what_a_box_of_edit_hides(shape):
    picture = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    image, mask = masks.hide_square(picture, painting.box_mask(25, 75, 50, 100), 8)
    expected, expected_mask = masks.hide(picture, "box:2,4,6,8", 8)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_array_equal(image, expected)


def test_the_known_part_is_shown_with_grey():
    shown = painting.known(np.full((1, 2, 3), 200, np.uint8), np.array([[True, False]]))
    assert shown.dtype == np.uint8 and shown[0, :, 0].tolist() == [128, 200]
