"""The photographs: their records, and that their splits share no pixel."""

import numpy as np
import pytest

from refocus_jax.data import photographs, sources


@pytest.mark.parametrize("split", sources.SPLITS)
def test_photos_are_one_rgb_record_per_class(split):
    source = sources.load("photos", split)
    records = [source[i] for i in range(len(source))]
    assert len(source) == len(source.class_names) >= 12
    assert [record["label"] for record in records] == list(range(len(source)))
    for record, name in zip(records, source.class_names, strict=True):
        height, width, channels = record["image"].shape
        assert record["image"].dtype == np.uint8 and channels == 3
        assert height >= 256 and width >= {"train": 128, "validation": 96}[split], name
        assert record["image"].std() > 5, f"{name} is nearly empty"
        assert (record["image"].max(axis=-1) < 8).mean() < 0.75, f"{name} is nearly black"


def test_photos_splits_share_no_pixel_and_lose_none():
    train, validation = sources.load("photos", "train"), sources.load("photos", "validation")
    assert train.class_names == validation.class_names
    for i, name in enumerate(train.class_names):
        whole = photographs.read_photograph(name)
        width = whole.shape[1]
        kept = np.arange(width)[photographs.photograph_columns(width, "train")]
        held_out = np.arange(width)[photographs.photograph_columns(width, "validation")]
        assert sorted([*kept, *held_out]) == list(range(width))
        assert 96 <= len(held_out) <= max(96, width // 4)
        np.testing.assert_array_equal(train[i]["image"], whole[:, kept])
        np.testing.assert_array_equal(validation[i]["image"], whole[:, held_out])


def test_retina_shows_no_black_border():
    assert (photographs.read_photograph("retina").max(axis=-1) < 30).mean() < 1e-3
