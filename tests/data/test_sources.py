"""Sources: what every kind yields, that splits are disjoint, and what is refused."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from refocus_jax.data import sources
from refocus_jax.data.records import SourceSettings
from tests.fixtures.plain_images import coloured, values, write_image

FLOWERS = Path(__file__).parents[3] / "shared" / "data" / "flowers64.npz"


def write_npz(path, count=20, **changes):
    arrays = {"x": np.stack([coloured(i) for i in range(count)]), "y": np.arange(count) % 3} | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return f"npz:{path}"


# npz


def test_npz_holds_out_every_tenth_image(tmp_path):
    spec = write_npz(tmp_path / "a.npz", count=25)
    train, validation = sources.load(spec, "train"), sources.load(spec, "validation")
    assert values(validation) == [9, 19]
    assert sorted(values(train) + values(validation)) == list(range(25))
    assert train.class_names == validation.class_names == ("0", "1", "2")
    assert validation[1]["label"] == 19 % 3


def test_npz_uses_its_own_mask_and_class_names(tmp_path):
    classes = np.array(["red", "green", "blue", "none"])
    spec = write_npz(tmp_path / "a.npz", val=np.arange(20) >= 14, classes=classes, y=np.zeros(20, np.uint8))
    assert values(sources.load(spec, "validation")) == list(range(14, 20))
    assert values(sources.load(spec, "train")) == list(range(14))
    assert sources.load(spec, "train").class_names == ("red", "green", "blue", "none")
    spec = write_npz(tmp_path / "b.npz", classes=np.array(["a", "b", "caf\udce9"]))  # of a folder's name, say
    assert sources.load(spec, "train").class_names == ("a", "b", "caf\\xe9")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "lacks.*x"),
        ({"y": None}, "lacks.*y"),
        ({"x": np.zeros((20, 5, 6, 3), np.float32)}, "x must be uint8.*float32"),
        ({"x": np.zeros((20, 5, 6), np.uint8)}, "x must be uint8"),
        ({"x": np.zeros((20, 5, 6, 4), np.uint8)}, "x must be uint8"),
        ({"x": np.zeros((20, 0, 6, 3), np.uint8)}, "6 x 0 pixels are not supported"),
        ({"x": np.zeros((20, 1, 500, 3), np.uint8)}, "500 x 1 pixels are not supported"),
        ({"x": np.array([{}] * 20)}, "pickled objects, which are never loaded"),
        ({"y": np.zeros(20)}, "y must be integers"),
        ({"y": np.zeros(19, np.int32)}, "y must be integers"),
        ({"y": np.full(20, -1)}, "labels y run from -1"),
        ({"y": np.arange(20) * 10**12}, r"labels y run from 0 to 19000000000000, .*\[0, 100000\), if no classes"),
        ({"y": np.full(20, 2**64 - 1, np.uint64)}, "labels y run from 18446744073709551615"),
        ({"y": np.full(20, 2, np.uint8), "classes": np.array(["a", "b"])}, r"labels y run .* to 2.*\[0, 2\)"),
        ({"classes": np.arange(3)}, "classes must be strings"),
        ({"classes": np.array(["a", "b", "\ud800"])}, "surrogates not allowed"),
        ({"val": np.zeros(20)}, "val must be bool"),
        ({"val": np.zeros(3, bool)}, "val must be bool"),
        ({"val": np.ones(20, bool)}, "no train images; give it explicit splits that have some"),
        ({"classes": np.array(["a", "b", "a"])}, "classes must be strings .*, all different"),
        ({"y": np.arange(20) % 4 * 1000}, "of 3001 classes, 2997 have no image, .*or set data.num_classes=3001"),
        ({"x": np.zeros((0, 5, 6, 3), np.uint8), "y": np.zeros(0, np.uint8)}, "no train images"),
    ],
)
def test_npz_refuses_malformed_arrays(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"data.source is .*npz:.*a.npz.*{message}"):
        sources.load(write_npz(tmp_path / "a.npz", **changes), "train")


def test_npz_says_which_classes_are_empty_and_takes_as_many_as_the_setting_says(tmp_path, caplog):
    thousands = {"y": np.arange(20) % 4 * 1000}
    with_gaps = {"y": np.arange(20) % 4 * 2 // 3}  # 0, 0, 1, 2
    assert sources.load(write_npz(tmp_path / "a.npz", y=np.array([0, 1, 3, 4] * 5)), "train").class_names == (
        tuple("01234"))
    assert f"data.source npz:{tmp_path}/a.npz: of 5 classes, 1 have no image" in caplog.text
    spec = write_npz(tmp_path / "b.npz", **thousands)
    source = sources.load(spec, "train", SourceSettings(num_classes=4000))
    assert source.class_names == tuple(map(str, range(4000))) and source[1]["label"] == 1000
    with pytest.raises(ValueError, match=r"y run from 0 to 3000, .*\[0, 3000\), by data.num_classes; correct"):
        sources.load(spec, "train", SourceSettings(num_classes=3000))
    caplog.clear()
    sources.load(write_npz(tmp_path / "c.npz", **with_gaps), "train")
    assert not caplog.text


def test_npz_says_which_arrays_are_not_used(tmp_path, caplog):
    write_npz(tmp_path / "a.npz", labels=np.zeros(20), mask=np.zeros(20))
    for split in sources.SPLITS:
        sources.load(f"npz:{tmp_path}/a.npz", split)
    assert caplog.text.count("arrays labels, mask are not used; only x, y, classes and val are") == 1


def test_npz_refuses_other_files(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ValueError, match="data.source is npz:.*a.npy.*cannot be read as an .npz archive.*savez"):
        sources.load(f"npz:{tmp_path}/a.npy", "train")


@pytest.mark.skipif(not FLOWERS.exists(), reason="the shared flowers64.npz is not on this machine")
def test_flowers():
    train, validation = (sources.load(f"npz:{FLOWERS}", split) for split in sources.SPLITS)
    assert (len(train), len(validation)) == (3670 - 736, 736)
    assert train.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert train[0]["image"].shape == (64, 64, 3)


# folder


def test_folder_holds_out_every_tenth_file_of_each_class(tmp_path):
    for name, offset, count in (("b", 100, 11), ("a", 0, 20)):
        for i in range(count):
            write_image(tmp_path / name / f"{i:02d}.png", coloured(offset + i))
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    train, validation = (sources.load(f"folder:{tmp_path}", split) for split in sources.SPLITS)
    assert train.class_names == validation.class_names == ("a", "b")
    assert values(validation) == [9, 19, 109]
    assert [validation[i]["label"] for i in range(3)] == [0, 0, 1]
    assert sorted(values(train) + values(validation)) == [*range(20), *range(100, 111)]


@pytest.mark.parametrize("validation_name", ["val", "validation"])
def test_folder_uses_explicit_splits(tmp_path, validation_name):
    write_image(tmp_path / "train" / "cat" / "x.png", coloured(1))
    write_image(tmp_path / "train" / "dog" / "x.png", coloured(2))
    write_image(tmp_path / validation_name / "dog" / "x.png", coloured(3))
    train, validation = (sources.load(f"folder:{tmp_path}", split) for split in sources.SPLITS)
    assert (values(train), values(validation)) == ([1, 2], [3])
    assert validation.class_names == ("cat", "dog") and validation[0]["label"] == 1


def test_folder_skips_unreadable_files_and_moves_no_other_to_another_split(tmp_path, caplog):
    for i in range(200):
        write_image(tmp_path / "a" / f"{i:03d}.png", coloured(i))
    splits = [values(sources.load(f"folder:{tmp_path}", split)) for split in sources.SPLITS]
    (tmp_path / "a" / "005.png").write_bytes(b"not an image")
    (tmp_path / "a" / "019.png").write_bytes(b"")
    train, validation = (sources.load(f"folder:{tmp_path}", split) for split in sources.SPLITS)
    assert (values(train), values(validation)) == tuple([v for v in split if v not in (5, 19)] for split in splits)
    assert "005.png" in caplog.text and "019.png" in caplog.text and "018.png" not in caplog.text


def test_folder_says_once_what_it_does_not_take(tmp_path, caplog):
    for i in range(26):
        write_image(tmp_path / "a" / f"{i:02d}.png", coloured(i))
    (tmp_path / "a" / "27.png").symlink_to(tmp_path / "a" / "27.png")  # to itself
    (tmp_path / "a" / "x.heic").touch()
    sources.load_splits(f"folder:{tmp_path}")
    sources.load(f"folder:{tmp_path}", "train")
    assert sorted(record.getMessage().partition("\n")[0] for record in caplog.records) == [
        f"data.source folder:{tmp_path}: 26 images are taken. Left out: 1 with another suffix (a/x.heic)",
        f"data.source is a folder: of 27 image files in {tmp_path}, 1 cannot be read and will be skipped:"]
    kept = json.loads((tmp_path / ".refocus_manifest.json").read_text())
    assert kept["left_out"] == {"with another suffix": ["a/x.heic"]} and list(kept["unreadable"]) == ["a/27.png"]


def test_folder_reads_all_images_of_16_bits_alike(tmp_path, caplog):
    """The white level is that of the brightest image in both splits."""
    for name, value in (("train/a/x", 900), ("train/a/y", 2000), ("val/a/x", 4095)):
        write_image(tmp_path / f"{name}.png", np.full((4, 4), value, np.uint16))
    write_image(tmp_path / "train/a/z.png", coloured(7))
    spec = f"folder:{tmp_path}"
    train, validation = sources.load_splits(spec)
    assert (values(train), values(validation)) == ([56, 125, 7], [255])
    assert values(sources.load(spec, "train")) == [56, 125, 7]
    said = "3 images have 16 bits with values up to 4095 (in val/a/x.png); 4095 is taken as white"
    assert caplog.text.count(f"data.source folder:{tmp_path}: {said}") == 1
    sixteen = sources.load(spec, "train", SourceSettings(sixteen_bit_max=65535))
    assert values(sixteen) == [4, 8, 7] and sixteen.fingerprint != train.fingerprint
    with pytest.raises(ValueError, match="val/a/x.png has the value 4095, and data.sixteen_bit_max is 1023; set it"):
        sources.load(spec, "train", SourceSettings(sixteen_bit_max=1023))


def test_folder_works_with_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    for i in range(10):
        write_image(tmp_path / name / f"{i}{name}.png", coloured(i))
    (tmp_path / name / "bad.png").write_bytes(b"")
    for _ in range(2):  # the second time by the manifest
        train, validation = sources.load_splits(f"folder:{tmp_path}")
        assert train.class_names == ("caf\\xe9",)
        assert json.loads(json.dumps(train.class_names)) == ["caf\\xe9"] and "".join(train.class_names).encode()
        assert values(train) == list(range(9)) and values(validation) == [9]
    (tmp_path / name / f"0{name}.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"caf\\xe9/0caf\\xe9.png cannot be read as an image") as refusal:
        train[0]
    assert str(refusal.value).encode()


def test_settings_reach_the_folder(tmp_path):
    for i in range(20):
        write_image(tmp_path / "dog" / "poodle" / f"{i:02d}.png", coloured(i))
    for i in range(4):
        (tmp_path / "dog" / "poodle" / f"{i:02d}.png").write_bytes(b"")
    spec = f"folder:{tmp_path}"
    with pytest.raises(ValueError, match="4 cannot be read, more than the share data.max_unreadable=0.01"):
        sources.load(spec, "train", SourceSettings(class_depth=2))
    source = sources.load(spec, "train", SourceSettings(class_depth=2, max_unreadable=0.2))
    assert source.class_names == ("dog/poodle",) and len(source) == 14


def test_folder_ignores_what_is_not_named_like_an_image(tmp_path):
    write_image(tmp_path / "a" / "x.JPEG", coloured(77, 8, 8))
    write_image(tmp_path / "a" / "y.tif", coloured(88))
    for name in ("notes.txt", "Thumbs.db", "._x.JPEG", ".hidden.png", "png"):
        (tmp_path / "a" / name).write_bytes(b"not an image")
    (tmp_path / "a" / "folder.png").mkdir()
    assert values(sources.load(f"folder:{tmp_path}", "train")) == [77, 88]


def test_folder_refuses_a_class_without_a_readable_image(tmp_path):
    for i in range(200):
        write_image(tmp_path / "good" / f"{i}.png", coloured(i))
    (tmp_path / "bad").mkdir()
    with pytest.raises(ValueError, match=r"no image files \(.*.jpg, .*\) in bad; add some, or remove"):
        sources.load(f"folder:{tmp_path}", "train")
    (tmp_path / "bad" / "x.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="data.source is folder:.*no image in .*bad can be read; repair the images or"):
        sources.load(f"folder:{tmp_path}", "train")


def test_folder_names_a_file_that_was_damaged_later(tmp_path):
    write_image(tmp_path / "a" / "x.png", coloured(1))
    source = sources.load(f"folder:{tmp_path}", "train")
    (tmp_path / "a" / "x.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="a/x.png cannot be read as an image"):
        source[0]


def test_folder_refuses_what_is_not_the_layout(tmp_path):
    spec = f"folder:{tmp_path}"
    with pytest.raises(ValueError, match="no class folders"):
        sources.load(spec, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train, which has no class folders; the layouts are"):
        sources.load(spec, "train")
    write_image(tmp_path / "train" / "cat" / "x.png", coloured(1))
    write_image(tmp_path / "val" / "dog" / "x.png", coloured(1))
    with pytest.raises(ValueError, match="validation images of classes that train/ lacks \\(val/dog\\)"):
        sources.load(spec, "validation")


def test_folder_too_small_to_hold_out_is_an_error_for_validation_only(tmp_path):
    write_image(tmp_path / "cat" / "x.png", coloured(1))
    assert len(sources.load(f"folder:{tmp_path}", "train")) == 1
    with pytest.raises(ValueError, match="no validation images"):
        sources.load(f"folder:{tmp_path}", "validation")


# any kind


def test_a_fingerprint_is_of_content_and_not_of_the_place(tmp_path):
    for i in range(20):
        write_image(tmp_path / "one" / "a" / f"{i:02d}.png", coloured(i))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    found = [sources.load(f"folder:{tmp_path}/{name}", "train").fingerprint for name in ("one", "two")]
    assert found[0] == found[1] != sources.load(f"folder:{tmp_path}/one", "validation").fingerprint
    changed = tmp_path / "two" / "a" / "07.png"
    before = changed.stat()
    time.sleep(0.02)  # the clock of a file system ticks slowly
    changed.write_bytes((tmp_path / "one" / "a" / "08.png").read_bytes().ljust(before.st_size, b"\0"))
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sources.load(f"folder:{tmp_path}/two", "train").fingerprint != found[0]
    (tmp_path / "one" / "a").rename(tmp_path / "one" / "b")
    assert sources.load(f"folder:{tmp_path}/one", "train").fingerprint != found[0]


def test_a_fingerprint_of_arrays_is_of_every_pixel(tmp_path):
    spec = write_npz(tmp_path / "a.npz")
    before = sources.load(spec, "train").fingerprint
    x = np.stack([coloured(i) for i in range(20)])
    x[7, 4, 5, 2] += 1
    write_npz(tmp_path / "a.npz", x=x)
    assert sources.load(spec, "train").fingerprint != before
    write_npz(tmp_path / "b.npz")
    assert sources.load(f"npz:{tmp_path}/b.npz", "train").fingerprint == before


@pytest.mark.parametrize("kind", ["npz", "folder", "photos"])
def test_both_splits_can_be_opened_at_once(tmp_path, kind):
    for i in range(20):
        write_image(tmp_path / "folder" / "a" / f"{i:02d}.png", coloured(i))
    spec = {"npz": write_npz(tmp_path / "a.npz"), "folder": f"folder:{tmp_path}/folder", "photos": "photos"}[kind]
    for split, source in zip(sources.SPLITS, sources.load_splits(spec), strict=True):
        assert source.fingerprint == sources.load(spec, split).fingerprint


@pytest.mark.parametrize("spec", ["", "imagenet", "photos:all", "csv:a.csv"])
def test_unknown_kinds_are_refused(spec):
    with pytest.raises(ValueError, match="data.source is .*unknown; use .*folder:PATH"):
        sources.load(spec, "train")


@pytest.mark.parametrize(("spec", "remedy"), [("npz:", "npz:PATH"), ("folder", "folder:PATH"), ("tfds:", "tfds:NAME")])
def test_kinds_without_their_argument_are_refused(spec, remedy):
    with pytest.raises(ValueError, match=f"data.source is '{spec}', which names no data; write {remedy}"):
        sources.load(spec, "train")


def test_unknown_splits_are_refused():
    with pytest.raises(ValueError, match="split must be one of.*'test'"):
        sources.load("photos", "test")


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_missing_paths_are_named(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match=f"data.source is {kind}:.*absent, but there is no such"):
        sources.load(f"{kind}:{tmp_path}/absent", "train")
