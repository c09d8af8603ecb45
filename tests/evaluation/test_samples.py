import json

import numpy as np
import pytest
from PIL import Image

from refocus_jax.evaluation import samples
from refocus_jax.evaluation.samples import DrawSettings

NAMES = ("ant", "bee", "cat")


class Painter:
    """Images whose pixels are (label, number, 0); may be interrupted after some batches."""

    def __init__(self, batches: int | None = None):
        self.left, self.calls = batches, []

    def __call__(self, labels, start):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = self.left and self.left - 1
        self.calls.append((labels.tolist(), start))
        images = np.zeros((len(labels), 4, 4, 3), np.uint8)
        images[..., 0] = labels[:, None, None]
        images[..., 1] = start + np.arange(len(labels))[:, None, None]
        return images


def draw(directory, painter=None, record=None, **settings):
    settings = DrawSettings(**dict(batch_size=4) | settings)
    return list(samples.draw(painter or Painter(), settings, NAMES, 4, directory, record or {"step": 1}))


def test_labels_are_shared_evenly_and_every_image_has_its_own_number(tmp_path):
    painter = Painter()
    assert draw(tmp_path, painter, count=10, seed=5, format="png") == [0, 4, 8, 10]
    assert painter.calls == [([0, 0, 0, 0], 0), ([1, 1, 1, 2], 4), ([2, 2, 2, 2], 8)]
    files = sorted(path.name for path in (tmp_path / "png").iterdir())
    assert files == [f"{i:06d}_{label:04d}.png" for i, label in enumerate([0] * 4 + [1] * 3 + [2] * 3)]
    for i, name in enumerate(files):
        with Image.open(tmp_path / "png" / name) as image:
            assert np.asarray(image)[0, 0].tolist() == [int(name[7:11]), i, 0]
    assert json.loads((tmp_path / "samples.png.json").read_text()) == {"step": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["png", "samples.png.json"]


def test_the_npz_is_adms_in_shuffled_order(tmp_path):
    draw(tmp_path, count=30, format="npz")
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.shape == (30, 4, 4, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
    assert sorted(images[:, 0, 0, 1].tolist()) == list(range(30))
    assert len(set(labels[:10].tolist())) == 3 and (np.diff(labels) != 0).sum() > 10


def test_the_grid_has_a_row_for_every_class(tmp_path):
    draw(tmp_path, count=6, classes=("cat", 0))
    with Image.open(tmp_path / "samples.png") as picture:
        picture = np.asarray(picture)
    assert picture.shape[0] == 2 + 2 * (4 + 2)
    assert picture[2, -3].tolist() == [2, 2, 0] and picture[8, -3].tolist() == [0, 5, 0]
    draw(tmp_path, count=9, classes=("bee",))
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (20, 20)  # 3 x 3 of one class


@pytest.mark.parametrize("format", samples.FORMATS)
def test_an_interrupted_run_goes_on_and_ends_the_same(format, tmp_path):
    settings = dict(count=14, seed=3, format=format)
    draw(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "cut", Painter(batches=2), **settings)
    rest = Painter()
    assert draw(tmp_path / "cut", rest, **settings) == [8, 12, 14]
    assert rest.calls[0][1] == 8
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "cut" / path.relative_to(tmp_path / "whole")).read_bytes()
    assert not list((tmp_path / "cut").glob("unfinished*"))


def test_unfinished_samples_of_other_settings_are_not_mixed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, Painter(batches=1), count=8)
    with pytest.raises(ValueError, match="unfinished samples of other settings: step was 1 and is 2.*draw.output"):
        draw(tmp_path, record={"step": 2}, count=8)


def test_class_numbers():
    assert samples.class_numbers("draw.classes", (), NAMES).tolist() == [0, 1, 2]
    assert samples.class_numbers("draw.classes", ("cat", 1, "0"), NAMES).tolist() == [2, 1, 0]
    for wrong in (3, "dog", -1):
        with pytest.raises(ValueError, match=f"draw.classes has {wrong!r}; classes are 0 to 2, by name ant, bee, cat"):
            samples.class_numbers("draw.classes", (wrong,), NAMES)


@pytest.mark.parametrize("settings, message", [
    (dict(count=0), "draw.count is 0"), (dict(batch_size=-1), "draw.batch_size is -1"),
    (dict(seed=-1), "draw.seed is -1"), (dict(seed=2**32), "draw.seed is"),
    (dict(format="jpg"), "draw.format is 'jpg'; choose one of"), (dict(count=2000), "choose 'png' or 'npz'")], ids=str)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DrawSettings(**settings)
