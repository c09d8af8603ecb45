"""Batches: shapes, the crop rule, determinism, sharding, and where batches start."""

import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from refocus_jax.data import pipeline, sources
from refocus_jax.data.crops import CropRule
from refocus_jax.data.records import ArraySource

ARGUMENTS = dict(image_size=8, batch_size=4, seed=3, resize_ratio=0.0, flip=True)
VALIDATION = dict(image_size=8, batch_size=4, resize_ratio=0.0)


def _with_rule(function, source, **arguments):
    """A function of a source and a crop rule, by the rule's numbers."""
    rule = {field.name: arguments.pop(field.name) for field in dataclasses.fields(CropRule) if field.name in arguments}
    return function(source, CropRule(**rule), **arguments)


training_batches = functools.partial(_with_rule, pipeline.training_batches)
validation_batches = functools.partial(_with_rule, pipeline.validation_batches)
passes = functools.partial(_with_rule, pipeline.passes)
spread_crops = functools.partial(_with_rule, pipeline.spread_crops)


def random_source(count=10, height=12, width=16):
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(count), tuple(map(str, range(count))))


def position_source(count=4, height=40, width=24):
    """Images whose first two channels are the row and column of each pixel."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
    return ArraySource([image] * count, np.arange(count), tuple(map(str, range(count))))


def take(dataset, count):
    return list(itertools.islice(iter(dataset), count))


def assert_same_batches(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


def as_process(monkeypatch, index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


# training


@pytest.mark.parametrize("resize_ratio", [0.0, 1.0, 1.125])
@pytest.mark.parametrize("size", [(12, 16), (5, 7), (30, 8), (1, 1), (1, 100)])
def test_training_batches_have_one_shape_for_every_image_size(size, resize_ratio):
    dataset = training_batches(
        random_source(3, *size), **ARGUMENTS | {"resize_ratio": resize_ratio, "batch_size": 8}
    )
    for batch in take(dataset, 2):
        assert batch["image"].shape == (8, 8, 8, 3) and batch["image"].dtype == np.uint8
        assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32


def test_training_crops_are_parts_of_their_own_image():
    source = random_source()
    for batch in take(training_batches(source, **ARGUMENTS), 5):
        for crop, label in zip(batch["image"], batch["label"], strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(source[label]["image"], (8, 8), axis=(0, 1))
            windows = np.moveaxis(windows, 2, -1)
            assert any((windows == view).all(axis=(2, 3, 4)).any() for view in (crop, crop[:, ::-1]))


@pytest.mark.parametrize(("count", "epoch"), [(1100, 1100), (600, 1200), (3, 1026)])
def test_every_epoch_is_whole_passes_in_a_new_order_with_new_crops(count, epoch):
    source = random_source(count, 8, 9)
    dataset = training_batches(source, **ARGUMENTS | {"batch_size": epoch})
    first, second = take(dataset, 2)
    for batch in (first, second):
        assert set(np.bincount(batch["label"], minlength=count)) == {epoch // count}
        assert list(batch["label"]) != sorted(batch["label"])
    assert list(first["label"]) != list(second["label"])
    order = [np.argsort(batch["label"], kind="stable") for batch in (first, second)]
    same = (first["image"][order[0]] == second["image"][order[1]]).all(axis=(1, 2, 3))
    # Two positions and two orientations: a quarter of the crops agree by chance.
    assert 0.15 < same.mean() < 0.35


def test_training_depends_on_the_seed_alone():
    source = random_source()
    first = take(training_batches(source, **ARGUMENTS), 6)
    assert_same_batches(first, take(training_batches(source, **ARGUMENTS), 6))
    other = take(training_batches(source, **ARGUMENTS | {"seed": 4}), 6)
    assert any(not np.array_equal(a["label"], b["label"]) for a, b in zip(first, other, strict=True))


def test_a_source_smaller_than_a_batch_fills_it():
    batch = take(training_batches(random_source(2), **ARGUMENTS | {"batch_size": 64}), 1)[0]
    assert set(batch["label"]) == {0, 1}


def joined(batches):
    return [{key: np.concatenate([batch[key] for batch in batches]) for key in ("image", "label")}]


@pytest.mark.parametrize(("first", "num_workers"), [(0, 0), (40, 0), (1013, 0), (1013, 2)])
def test_batches_of_any_size_go_on_at_any_example(first, num_workers, monkeypatch):
    """Batches may start in the middle of another batch, or span the border of two epochs of 1030 examples each."""
    whole = joined(take(training_batches(random_source(), **ARGUMENTS | {"batch_size": 1100}), 1))
    expected = [{key: value[first:first + 48] for key, value in whole[0].items()}]
    other = training_batches(random_source(), **ARGUMENTS | {"batch_size": 16}, num_workers=num_workers)
    iterator = other.starting_at(first)
    assert_same_batches(expected, joined([next(iterator) for _ in range(3)]))
    iterator.close()
    parts = []
    for index in range(2):
        as_process(monkeypatch, index, 2)
        other = training_batches(random_source(), **ARGUMENTS | {"batch_size": 24})
        parts.append(itertools.islice(other.starting_at(first), 2))
    assert_same_batches(expected, joined([part for batch in zip(*parts, strict=True) for part in batch]))


def test_flip_mirrors_half_of_the_crops_and_only_when_asked():
    source = position_source(height=8, width=8)
    for flip in (True, False):
        batches = take(training_batches(source, **ARGUMENTS | {"flip": flip, "batch_size": 100}), 4)
        first_column = np.concatenate([b["image"][:, 0, 0, 1] for b in batches])
        mirrored = (first_column == 7).mean()
        assert set(first_column) <= {0, 7}
        # Five standard deviations of 400 fair draws.
        assert abs(mirrored - 0.5) < 0.125 if flip else mirrored == 0


def test_random_crops_reach_every_position_uniformly():
    source = position_source(height=12, width=10)
    batches = take(training_batches(source, **ARGUMENTS | {"flip": False, "batch_size": 300}), 2)
    corners = np.concatenate([b["image"][:, 0, 0, :2] for b in batches])
    counts = np.zeros((5, 3))
    np.add.at(counts, tuple(corners.T), 1)
    # 15 positions, 40 expected in each, standard deviation about 6.
    assert counts.min() > 10 and counts.max() < 70


def test_processes_share_the_global_batches(monkeypatch):
    arguments = ARGUMENTS | {"batch_size": 6}
    whole = take(training_batches(random_source(), **arguments), 5)
    shares = []
    for index in range(3):
        as_process(monkeypatch, index, 3)
        shares.append(take(training_batches(random_source(), **arguments), 5))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(part["image"].shape == (2, 8, 8, 3) for part in parts)
        for name in ("image", "label"):
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), batch[name])


def test_worker_processes_change_nothing_but_the_speed():
    """Workers also run in a notebook, where flags are not parsed."""
    found = subprocess.run([sys.executable, "-c", "from tests.data.test_pipeline import print_labels; print_labels()"],
                           capture_output=True, text=True, check=True)
    expected = [batch["label"].tolist() for batch in take(training_batches(random_source(), **ARGUMENTS), 5)]
    assert found.stdout.strip() == str(expected)


def print_labels():
    with contextlib.closing(iter(training_batches(random_source(), **ARGUMENTS, num_workers=2))) as batches:
        print([batch["label"].tolist() for batch in itertools.islice(batches, 5)])


def test_photos_make_batches_of_every_class():
    source = sources.load("photos", "train")
    batch = take(training_batches(source, **ARGUMENTS | {"image_size": 64, "batch_size": 280}), 1)[0]
    assert set(batch["label"]) == set(range(len(source)))


# passes


PASSES = {name: value for name, value in ARGUMENTS.items() if name != "batch_size"}


def test_every_pass_crops_each_image_once_and_again():
    examples = passes(random_source(), **PASSES)
    crops = [[examples[10 * number + i] for i in range(10)] for number in range(8)]
    order = [crop["label"] for crop in crops[0]]
    assert sorted(order) == list(range(10)) and order != sorted(order)
    assert all([crop["label"] for crop in one] == order for one in crops)
    # 45 positions and two orientations of each image.
    assert len({crop["image"].tobytes() for one in crops for crop in one}) > 60
    again = passes(random_source(), **PASSES)
    assert_same_batches([crops[3][4]], [again[34]])
    other = passes(random_source(), **PASSES | {"seed": 4})
    assert [other[i]["label"] for i in range(10)] != order


def test_ctrl_c_does_not_stop_the_workers():
    """A terminal sends it to all processes; the run then saves, and ends its workers itself."""
    batches = training_batches(random_source(), **ARGUMENTS)
    workers = dataclasses.replace(batches, num_workers=1).starting_at(0)
    with contextlib.closing(workers):
        found = [next(workers)]
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGINT)
        found += list(itertools.islice(workers, 20))  # more than it had prepared
        assert worker.is_alive()
    assert_same_batches(found, take(batches, 21))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_blocks_have_one_size_and_are_filled_up(num_workers):
    examples = passes(random_source(), **PASSES)
    ranges = [range(0, 4), range(4, 8), range(8, 10), range(20, 21), range(30, 34)]
    batches = list(pipeline.blocks(examples, ranges, size=4, per_batch=2, num_workers=num_workers))
    assert [batch["image"].shape for batch in batches] == [(2, 4, 8, 8, 3)] * 3
    expected = [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9], [20, 20, 20, 20], [30, 31, 32, 33], [30, 31, 32, 33]
    for indices, image, label in zip(expected, *(np.concatenate([batch[name] for batch in batches])
                                                 for name in ("image", "label")), strict=True):
        np.testing.assert_array_equal(image, np.stack([examples[i]["image"] for i in indices]))
        assert label.tolist() == [examples[i]["label"] for i in indices]


# the crop rule


def test_native_resolution_leaves_an_image_of_the_right_size_unchanged():
    source = random_source(4, 8, 8)
    (batch,) = take(validation_batches(source, **VALIDATION), 2)
    np.testing.assert_array_equal(batch["image"], source.images[batch["label"]])


def test_resize_ratio_resizes_the_short_side_by_lanczos():
    source = random_source(1, 30, 40)
    arguments = dict(image_size=16, batch_size=1, resize_ratio=1.125)
    (batch,) = take(validation_batches(source, **arguments), 2)
    resized = np.asarray(Image.fromarray(source.images[0]).resize((24, 18), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(batch["image"][0], resized[1:17, 4:20])


def test_native_resolution_enlarges_only_what_is_smaller_than_the_crop():
    small = random_source(1, 4, 6)
    (batch,) = take(validation_batches(small, **VALIDATION | {"batch_size": 1}), 2)
    resized = np.asarray(Image.fromarray(small.images[0]).resize((12, 8), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(batch["image"][0], resized[:, 2:10])


# validation


def test_validation_is_finite_repeatable_and_complete():
    dataset = validation_batches(random_source(12), **VALIDATION)
    first, second = list(dataset), list(dataset)
    assert_same_batches(first, second)
    assert len(first) == 3
    assert sorted(np.concatenate([b["label"] for b in first])) == list(range(12))


def test_validation_counts_are_cut_to_whole_batches():
    source = random_source(11)
    assert len(list(validation_batches(source, **VALIDATION))) == 2
    assert len(list(validation_batches(source, **VALIDATION, limit=7))) == 1
    assert len(list(validation_batches(source, **VALIDATION, limit=1000, crops_per_image=3))) == 8
    labels = np.concatenate([b["label"] for b in validation_batches(source, **VALIDATION)])
    assert len(set(labels)) == 8


def test_a_prefix_of_validation_covers_all_images_before_it_repeats_one():
    source = random_source(6)
    batches = list(validation_batches(source, **VALIDATION | {"batch_size": 3}, crops_per_image=4))
    labels = np.concatenate([b["label"] for b in batches]).reshape(4, 6)
    assert all(sorted(row) == list(range(6)) for row in labels)


def test_validation_takes_the_same_crops_of_every_image():
    batches = list(validation_batches(position_source(4), **VALIDATION, crops_per_image=3))
    corners = np.stack([batch["image"][:, 0, 0, :2] for batch in batches])
    assert (corners == corners[:, :1]).all()
    assert corners[0, 0].tolist() == [16, 8] and len(np.unique(corners[:, 0], axis=0)) == 3


def test_a_limited_validation_of_sorted_classes_covers_the_classes():
    source = dataclasses.replace(random_source(100), labels=np.repeat(np.arange(5), 20))
    labels = np.concatenate([b["label"] for b in validation_batches(source, **VALIDATION, limit=40)])
    assert np.bincount(labels, minlength=5).min() >= 3


@pytest.mark.parametrize(("height", "width"), [(40, 24), (48, 8), (30, 30)])
def test_validation_crops_start_at_the_centre_and_spread_over_the_image(height, width):
    source = position_source(1, height, width)
    arguments = VALIDATION | {"batch_size": 1}
    batches = list(validation_batches(source, **arguments, crops_per_image=16))
    corners = np.array([batch["image"][0, 0, 0, :2] for batch in batches]).astype(int)
    assert corners[0].tolist() == [(height - 8) // 2, (width - 8) // 2]
    assert len({tuple(corner) for corner in corners}) == 16
    covered = np.zeros((height, width), bool)
    for top, left in corners:
        covered[top : top + 8, left : left + 8] = True
    assert covered.mean() > 0.6
    # Along each axis the widest gap is a ninth, in whole pixels; 16 random crops would leave about a fifth.
    for axis, free in enumerate((height - 8, width - 8)):
        positions = np.sort([0, *corners[:, axis], free])
        assert np.diff(positions).max() <= free / 9 + 1


def test_processes_share_the_validation_batches(monkeypatch):
    whole = list(validation_batches(random_source(11), **VALIDATION))
    shares = []
    for index in range(2):
        as_process(monkeypatch, index, 2)
        shares.append(list(validation_batches(random_source(11), **VALIDATION)))
    assert_same_batches(whole, [batch for parts in zip(*shares, strict=True) for batch in joined(parts)])


# refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 must be a positive multiple"),
        ({"image_size": 0}, "image_size is 0; give at least 1"),
        ({"resize_ratio": 0.5}, "resize_ratio is 0.5; give 0.*at least 1"),
        ({"resize_ratio": -1.0}, "resize_ratio"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        training_batches(random_source(), **ARGUMENTS | changes)
    with pytest.raises(ValueError, match=message):
        validation_batches(random_source(), **VALIDATION | changes)


def test_a_batch_that_the_processes_cannot_share_is_refused(monkeypatch):
    as_process(monkeypatch, 0, 3)
    with pytest.raises(ValueError, match="batch_size 4 must be a positive multiple of the process count, 3"):
        training_batches(random_source(), **ARGUMENTS)


def test_fewer_examples_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="3 validation examples .* one batch of 4"):
        validation_batches(random_source(3), **VALIDATION)
    with pytest.raises(ValueError, match="limit 2"):
        validation_batches(random_source(), **VALIDATION, limit=2)
    with pytest.raises(ValueError, match="crops_per_image is 0; give at least 1"):
        validation_batches(random_source(), **VALIDATION, crops_per_image=0)
