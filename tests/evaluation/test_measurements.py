"""Every image is measured once and in order."""

import jax
import numpy as np
import pytest

from refocus_jax.evaluation import measurements
from refocus_jax.evaluation.image_sets import ImageSet
from refocus_jax.runtime import mesh as mesh_lib
from tests.fixtures import extractor as small_extractor
from tests.fixtures.disk import full_disk


class Count:
    """Measure the first pixel, and remember how many images were passed at a time."""

    def __init__(self):
        self.sizes = []

    def __call__(self, image_bhwc):
        self.sizes.append(len(image_bhwc))
        return {"first": image_bhwc[:, 0, 0], "sum": image_bhwc.sum(axis=(1, 2, 3), dtype=np.float32)}


@pytest.mark.parametrize(("count", "sizes"), [(12, [4, 4, 4]), (13, [4, 4, 4, 4]), (3, [4])])
def test_all_images_are_measured_in_batches_of_one_size(images, count, sizes):
    measure = Count()
    blocks = list(measurements.of_all(images[:count], measure, 4))
    assert measure.sizes == sizes
    np.testing.assert_array_equal(np.concatenate([b["first"] for b in blocks]), images[:count, 0, 0])


def test_processes_share_the_images(images, monkeypatch):
    """The two processes together measure every image, in order."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(measurements.processes, "gather", lambda rows: rows)
    parts = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        measure = Count()
        parts.append([rows["first"] for rows in measurements.of_all(images[:16], measure, 4)])
        assert measure.sizes == [4, 4]
    together = np.concatenate([np.concatenate(pair) for pair in zip(*parts, strict=True)])
    np.testing.assert_array_equal(together, images[:16, 0, 0])


@pytest.fixture
def keep(images, tmp_path):
    """Measure ten images or reuse stored results; return them and the number of measured batches."""
    def keep(made_with, images=images[:10], measure=None):
        measure = measure or Count()
        return measurements.keep(tmp_path, "things", made_with, ImageSet(images, "ten"), measure, 4), len(measure.sizes)

    return keep


def test_measurements_are_kept_for_what_they_depend_on(keep, images, capsys, monkeypatch):
    found, measured = keep({"a": 1})
    assert found["first"].shape == (10, 3) and found["sum"].dtype == np.float32 and measured == 3
    assert "there already" not in capsys.readouterr().out
    again, measured = keep({"a": 1})
    assert measured == 0 and "things of ten: found in " in capsys.readouterr().out
    np.testing.assert_array_equal(again["sum"], found["sum"])
    assert keep({"a": 2})[1] == 3
    monkeypatch.setattr(measurements.refocus_jax, "__version__", "another")
    assert keep({"a": 1})[1] == 3


@pytest.mark.parametrize("change", [
    lambda x: np.concatenate([x[:-1], x[-1:] ^ 1]), lambda x: x[[1, 0, *range(2, len(x))]], lambda x: x[:-1]])
def test_other_images_are_measured_again(keep, images, change):
    """Any of the files may be changed, or two may be swapped."""
    keep({}), keep({})
    assert keep({}, change(images[:10]))[1] == 3


def cut(content):
    return content[:-4]


def flip(content):
    return content[:-7] + bytes([content[-7] ^ 4]) + content[-6:]


@pytest.mark.parametrize(("name", "damage"), [
    ("sum.npy", cut), ("sum.npy", flip), ("sum.npy", None), ("first.npy", flip), ("identity.json", cut),
    ("identity.json", None), ("new.npy", None)])
def test_what_has_changed_since_it_was_kept_is_made_again(keep, tmp_path, name, damage, caplog):
    found = keep({})[0]
    expected = {column: np.array(values) for column, values in found.items()}
    path, = tmp_path.glob(f"things_*/{'sum.npy' if name == 'new.npy' else name}")
    if name == "new.npy":
        path.with_name(name).write_bytes(path.read_bytes())
    elif damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    again, measured = keep({})
    assert measured == 3 and "has changed since it was written and is made again" in caplog.text
    assert again.keys() == expected.keys()
    for column, values in expected.items():
        np.testing.assert_array_equal(again[column], values)
    assert keep({})[1] == 0


def test_a_full_disk_is_named_with_what_is_needed(keep, images):
    with full_disk(200), pytest.raises(OSError, match=r"sum.npy cannot be written \(File too large\); it needs 2560 "
                                                      "bytes; make room"):
        keep({}, np.repeat(images, 10, axis=0))
    assert keep({}, np.repeat(images, 10, axis=0))[1] == 160


def test_interrupted_measurements_are_not_taken_for_whole(keep, images, tmp_path):
    class Broken(Count):
        def __call__(self, image_bhwc):
            if self.sizes:
                raise KeyboardInterrupt
            return super().__call__(image_bhwc)

    with pytest.raises(KeyboardInterrupt):
        keep({}, measure=Broken())
    found, _ = keep({})
    np.testing.assert_array_equal(found["first"], images[:10, 0, 0])
    assert [path.name.partition("_")[0] for path in tmp_path.iterdir()] == ["things"]


def test_features_of_all_images(images, tmp_path):
    extractor = small_extractor.load("inception", mesh_lib.make_mesh())
    assert measurements.dimensions(extractor) == {"pool": 6, "spatial": 4, "logits": 5}
    found = measurements.of_features(ImageSet(images, "images"), extractor, tmp_path)
    expected = extractor(images)
    for name in ("pool", "spatial", "logits"):
        np.testing.assert_allclose(found[name], getattr(expected, name), atol=1e-6)
    assert set(measurements.columns(small_extractor.load("efficientnet_lite0", extractor.mesh)(images[:2]))) == {
        "pool", "logits"}
