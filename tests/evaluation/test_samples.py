import errno
import json

import numpy as np
import pytest
from PIL import Image

from refocus_jax.data import sources
from refocus_jax.evaluation import samples
from refocus_jax.evaluation.samples import DrawSettings
from tests.fixtures.disk import full_disk

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


def draw(directory, painter=None, identity=None, origin=None, names=NAMES, **settings):
    settings = DrawSettings(**dict(batch_size=4) | settings)
    identity, origin = identity or {"weights": "abc"}, origin or {"step": 1}
    return list(samples.draw(painter or Painter(), settings, names, 4, directory, identity, origin))


def test_labels_are_shared_evenly_and_every_image_has_its_number(tmp_path):
    painter = Painter()
    assert draw(tmp_path, painter, count=10, seed=5, format="png") == [0, 4, 8, 10]
    assert painter.calls == [([0, 0, 0, 0], 0), ([1, 1, 1, 2], 4), ([2, 2, 2, 2], 8)]
    files = sorted(path.name for path in (tmp_path / "png").iterdir())
    assert files == [f"{i:06d}_{label:04d}.png" for i, label in enumerate([0] * 4 + [1] * 3 + [2] * 3)]
    for i, name in enumerate(files):
        with Image.open(tmp_path / "png" / name) as image:
            assert np.asarray(image)[0, 0].tolist() == [int(name[7:11]), i, 0]
    assert json.loads((tmp_path / "samples.png.json").read_text()) == {
        "step": 1, "weights": "abc", "classes": {"0": "ant", "1": "bee", "2": "cat"}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["png", "samples.png.json"]


def test_the_npz_is_adms_in_shuffled_order(tmp_path):
    draw(tmp_path, count=30, format="npz")
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
        assert tuple(arrays["classes"]) == NAMES
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
    """The origin is not part of the identity: sampling in a moved workdir continues."""
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "here", Painter(batches=1), count=8, identity={"sampling": {"cfg": 1.5}})
    with pytest.raises(ValueError, match="unfinished samples of other settings: sampling.cfg was 1.5 and is 2"):
        draw(tmp_path / "here", count=8, identity={"sampling": {"cfg": 2}})
    (tmp_path / "here").rename(tmp_path / "there")
    painter = Painter()
    draw(tmp_path / "there", painter, count=8, identity={"sampling": {"cfg": 1.5}}, origin={"generator": "there"})
    assert len(painter.calls) == 1
    assert json.loads((tmp_path / "there" / "samples.grid.json").read_text())["generator"] == "there"


@pytest.mark.parametrize(("format", "name"), [("grid", "samples.png"), ("png", "png"), ("npz", "samples.npz")])
def test_output_that_cannot_be_written_is_named_and_costs_no_image(format, name, tmp_path, monkeypatch):
    """The disk has room only for the images: they are not drawn again."""
    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    settings = dict(count=200, batch_size=200, format=format)
    with full_disk(200 * 48), monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", no_room)
        with pytest.raises(OSError, match=rf"{name} cannot be written \((No space left|File too large).*make room"):
            draw(tmp_path, **settings)
    rest = Painter()
    assert draw(tmp_path, rest, **settings) == [200] and not rest.calls
    assert {path.name for path in tmp_path.iterdir()} == {name, f"samples.{format}.json"}


def test_class_numbers():
    def numbers(*classes, names=NAMES):
        return samples.class_numbers("sample.classes", classes, names).tolist()

    assert numbers() == [0, 1, 2]
    assert numbers("cat", 1, "0") == [2, 1, 0]
    for wrong in (3, "dog", -1, 1.0, True):
        with pytest.raises(ValueError, match=f"edit.label has {wrong!r}; classes are 0 to 2, by name ant, bee, cat; g"):
            samples.class_numbers("edit.label", (wrong,), NAMES)


def test_numbers_that_are_names_of_other_classes_are_refused():
    """Folders 0 ... 11 are sorted 0, 1, 10, 11, 2, ...: number 10 is "8"."""
    names = sorted(map(str, range(12)))

    def number(given):
        return samples.class_numbers("sample.classes", (given,), names).tolist()

    assert number("10") == [2] and number("8") == [10] and number(0) == [0]
    with pytest.raises(ValueError, match="sample.classes has the number 10, which is also the name of another class; "
                                         "give '10' in quotes .*number 2.* or '8', the name of class number 10"):
        number(10)
    for given in (2, 3, 11):
        with pytest.raises(ValueError, match="also the name of another class"):
            number(given)
    assert samples.say_classes(np.array([10, 2]), names) == "2 classes: 10 '8', 2 '10'"


def test_a_drawn_npz_is_a_data_source_with_its_names(tmp_path):
    draw(tmp_path, count=30, format="npz", classes=("cat", "ant"))
    source = sources.load(f"npz:{tmp_path}/samples.npz", "train")
    assert source.class_names == NAMES and {source[i]["label"] for i in range(len(source))} == {0, 2}
    assert all(record["image"][0, 0, 0] == record["label"] for record in (source[i] for i in range(len(source))))


@pytest.mark.parametrize("settings, message", [
    (dict(count=0), "sample.count is 0"), (dict(batch_size=-1), "sample.batch_size is -1"),
    (dict(seed=-1), "sample.seed is -1"), (dict(seed=2**32), "sample.seed is"),
    (dict(format="jpg"), "sample.format is 'jpg'; choose one of"),
    (dict(count=2000), "choose 'png' or 'npz'")], ids=str)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DrawSettings(**settings)
