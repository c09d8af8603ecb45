"""Unfinished images on disk are verified batch by batch."""

import errno

import numpy as np
import pytest

from refocus_jax.evaluation.unfinished import Unfinished
from tests.fixtures.disk import full_disk

SHAPE = (12, 4, 4, 3)
IDENTITY = {"weights": {"student": "abc"}, "seed": 0}


def go_on(directory):
    return Unfinished(directory, SHAPE, IDENTITY)


@pytest.fixture
def batches():
    return np.random.default_rng(0).integers(1, 255, (3, 4, *SHAPE[1:]), np.uint8)


@pytest.fixture
def two_of_three(tmp_path, batches):
    unfinished = go_on(tmp_path)
    assert unfinished.done == 0
    for batch in batches[:2]:
        unfinished.add(batch)
    return tmp_path


def test_it_goes_on_where_it_stopped(two_of_three, batches):
    unfinished = go_on(two_of_three)
    assert unfinished.done == 8
    unfinished.add(batches[2])
    assert unfinished.done == 12 == go_on(two_of_three).done
    np.testing.assert_array_equal(unfinished.images, batches.reshape(SHAPE))
    unfinished.remove()
    assert not list(two_of_three.iterdir())


def cut(content):
    return content[:-1]


def cut_to_nothing(content):
    return b""


def zeros_at_the_end(content):
    return content[:-48] + bytes(48)


def flipped_early(content):
    return content[:5] + bytes([content[5] ^ 1]) + content[6:]


@pytest.mark.parametrize(("name", "damage", "left"), [
    ("unfinished.rgb", cut, 4), ("unfinished.rgb", cut_to_nothing, 0), ("unfinished.rgb", zeros_at_the_end, 4),
    ("unfinished.rgb", flipped_early, 0), ("unfinished.jsonl", cut_to_nothing, 0),
    ("unfinished.jsonl", lambda content: content[:-9], 4), ("unfinished.jsonl", lambda content: b"\xff" + content, 0),
    ("unfinished.jsonl", lambda content: content + b'{"images": 4}\n', 8),
    ("unfinished.jsonl", lambda content: content + b"5\n", 8)])
def test_what_is_damaged_is_drawn_again(two_of_three, batches, name, damage, left, caplog):
    path = two_of_three / name
    path.write_bytes(damage(path.read_bytes()))
    unfinished = go_on(two_of_three)
    assert unfinished.done == left and f"damaged after its first {left} images" in caplog.text
    unfinished.add(batches.reshape(SHAPE)[left:])
    np.testing.assert_array_equal(unfinished.images, batches.reshape(SHAPE))


def test_a_lost_file_loses_what_it_held(two_of_three):
    (two_of_three / "unfinished.rgb").unlink()
    assert go_on(two_of_three).done == 0


@pytest.mark.parametrize(("identity", "said"), [
    ({"weights": {"student": "abc"}, "seed": 1}, "seed was 0 and is 1"),
    ({"weights": {"student": "abd"}, "seed": 0}, "weights.student was 'abc' and is 'abd'"),
    ({"weights": {"student": "abc"}}, "seed was 0 and is None")])
def test_images_of_another_identity_are_not_mixed(two_of_three, identity, said):
    before = {path.name: path.read_bytes() for path in two_of_three.iterdir()}
    with pytest.raises(ValueError, match=f"holds unfinished samples of other settings: {said}. Finish them"):
        Unfinished(two_of_three, SHAPE, identity)
    assert {path.name: path.read_bytes() for path in two_of_three.iterdir()} == before


def test_a_full_disk_is_named_with_what_is_needed(two_of_three, batches):
    unfinished = go_on(two_of_three)
    with full_disk(500), pytest.raises(OSError, match=r"unfinished.rgb cannot be written \(File too large\); it needs "
                                                      "576 bytes; make room") as raised:
        unfinished.add(batches[2])
    assert raised.value.__cause__.errno == errno.EFBIG and unfinished.done == 8
    assert go_on(two_of_three).done == 8
