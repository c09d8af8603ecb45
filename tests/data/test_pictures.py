"""Pictures show the given images at the right places."""

import io

import numpy as np
from PIL import Image

from refocus_jax import focus
from refocus_jax.data import pictures


def test_to_uint8_rounds_and_clips():
    assert pictures.to_uint8(np.array([-2.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]


def test_grid_places_cells_row_by_row():
    cells = [[np.full((4, 6, 3), 10 * (2 * i + j), np.uint8) for j in range(2)] for i in range(3)]
    picture = pictures.grid(cells)
    gap = pictures.GAP
    assert picture.shape == (gap + 3 * (4 + gap), gap + 2 * (6 + gap), 3)
    for i in range(3):
        for j in range(2):
            top, left = gap + i * (4 + gap), gap + j * (6 + gap)
            assert (picture[top:top + 4, left:left + 6] == 10 * (2 * i + j)).all()


def test_labels_make_room_and_leave_ink():
    cells = [[np.zeros((8, 8, 3), np.uint8)]]
    plain, labelled = pictures.grid(cells), pictures.grid(cells, ["row"], ["column"])
    extra = np.array(labelled.shape) - plain.shape
    assert extra[0] > 8 and extra[1] > 8
    assert (labelled[:, :extra[1]] < 128).any() and (labelled[:extra[0]] < 128).any()


def test_enlarging_smoothly_or_as_it_is():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 200
    assert set(np.unique(pictures.enlarge(image, 8, smooth=False))) == {0, 200}
    assert len(np.unique(pictures.enlarge(image, 8, smooth=True))) > 2


def test_pyramid_has_three_rows_an_image_and_a_column_a_scale():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    views = focus.views(image, grid_sizes=(1, 2, 4), stride=4, rho_max=1.0)
    picture = pictures.focus_pyramid(views, (1, 2, 4), (1.0, 0.5, 0.0), 16)
    assert picture.shape[0] >= 6 * (16 + pictures.GAP) and picture.shape[1] >= 3 * (16 + pictures.GAP)
    # The last column of the last row is the residual of the finest scale: exactly grey.
    assert (picture[-16 - pictures.GAP:-pictures.GAP, -16 - pictures.GAP:-pictures.GAP] == 128).all()


def test_focus_pull_goes_from_coarse_to_fine():
    stages = [np.full((3, side, side, 3), value, np.float32) for side, value in ((4, -1.0), (8, 0.0), (16, 1.0))]
    strip, frames = pictures.focus_pull(stages, ["a", "b", "c"], (1, 2, 4))
    assert [int(np.median(frame)) for frame in frames] == [0, 128, 255]
    assert strip.shape[0] >= 3 * 16


def test_a_gif_has_all_frames_and_rests_at_the_last():
    frames = [np.full((4, 4, 3), value, np.uint8) for value in (0, 100, 200)]
    with Image.open(io.BytesIO(pictures.gif(frames))) as animation:
        durations = []
        for index, frame in enumerate(frames):
            animation.seek(index)
            durations.append(animation.info["duration"])
            np.testing.assert_allclose(np.asarray(animation.convert("RGB")), frame, atol=1)
        assert animation.n_frames == 3 and durations == [400, 400, 2000] and animation.info["loop"] == 0
