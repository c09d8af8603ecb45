"""Images with random access from sources, folders and files; errors name the cause."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from refocus_jax.data import pipeline
from refocus_jax.data.crops import CropRule
from refocus_jax.data.records import ArraySource
from refocus_jax.evaluation import image_sets
from refocus_jax.evaluation.image_sets import ImageSet


def save(path, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images).save(path)


def test_crops_of_a_source_are_those_of_validation(images):
    big = np.repeat(np.repeat(images[:6], 2, 1), 2, 2)  # 16 px
    source = ArraySource(big, np.arange(6), tuple("abcdef"))
    rule = CropRule(image_size=8, resize_ratio=1.5, crops_per_image=3)
    found = image_sets.of_source(source, "it", rule, 12)
    batches = pipeline.validation_batches(source, rule, batch_size=12)
    np.testing.assert_array_equal(np.stack(list(found.images)), next(iter(batches))["image"])
    assert len(found) == 12
    assert found.says == "12 crops of it (6 images), short side to 12 by Lanczos, 8 x 8 pixels"
    with pytest.raises(ValueError, match="it has 6 crops to compare with; give more images, or raise data.crops_per"):
        image_sets.of_source(source, "it", CropRule(image_size=8), 50)


@pytest.mark.parametrize("name", ["arr_0", "x"])
def test_images_of_an_npz_are_those_it_holds(images, tmp_path, name):
    np.savez(tmp_path / "a.npz", **{name: images}, other=np.zeros(3))
    found = image_sets.of_path("setting", str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(found.images, images)
    assert found.says == "64 images of a.npz, 8 x 8 pixels" and image_sets.has_images(str(tmp_path / "a.npz"))
    cropped = image_sets.of_path("setting", str(tmp_path / "a.npz"), CropRule(image_size=4))
    np.testing.assert_array_equal(np.stack(list(cropped.images)), images[:, 2:6, 2:6])


def test_images_of_a_folder_are_found_at_any_depth(images, tmp_path):
    for i, image in enumerate(images[:12]):
        save(tmp_path / "ab"[i % 2] / "deep" / f"{i:02d}.png", image)
    save(tmp_path / ".hidden.png", images[0])
    (tmp_path / "notes.txt").write_text("no image")
    found = image_sets.of_path("setting", str(tmp_path))
    np.testing.assert_array_equal(np.stack(list(found.images)), images[[*range(0, 12, 2), *range(1, 12, 2)]])
    save(tmp_path / "b" / "wide.png", np.repeat(images[0], 2, axis=1))
    with pytest.raises(ValueError, match="wide.png has 16 x 8 pixels, but the first image has 8 x 8; give images of"):
        list(image_sets.of_path("setting", str(tmp_path)).images)
    cropped = image_sets.of_path("setting", str(tmp_path), CropRule(image_size=8, resize_ratio=1.5))
    np.testing.assert_array_equal(cropped.images[0], images[0])  # it has the size already
    assert cropped.images[12].shape == (8, 8, 3)


def test_hidden_copies_never_count(images, tmp_path, caplog):
    for i, image in enumerate(images[:12]):
        for place in ("", ".ipynb_checkpoints/", "deep/.thumbnails/", "__MACOSX/deep/"):
            save(tmp_path / place / f"{i:02d}.png", image)
    (tmp_path / "gone.png").symlink_to(tmp_path / "gone.png")
    found = image_sets.of_path("setting", str(tmp_path))
    assert len(found) == len(found.images) == 12
    assert ".ipynb_checkpoints" in caplog.text and "deep/.thumbnails" in caplog.text and "gone.png" in caplog.text


def test_all_images_of_16_bits_in_a_folder_are_read_alike(tmp_path, caplog):
    for i in range(12):
        save(tmp_path / f"{i:02d}.png", np.full((8, 8), 300 * (i + 1), np.uint16))
    found = image_sets.of_path("setting", str(tmp_path))
    assert [int(image.max()) for image in found.images] == [round(300 * (i + 1) / 4095 * 255) for i in range(12)]
    assert (f"12 images have 16 bits with values up to 3600 (in {tmp_path}/11.png); 4095 is taken as white"
            in caplog.text)


def test_hidden_folders_never_count(images, tmp_path):
    for i, image in enumerate(images[:12]):
        for folder in ("a", "a/.ipynb_checkpoints", ".thumbnails", ".trash/a"):
            save(tmp_path / ".root" / folder / f"{i:02d}.png", image)
    assert len(image_sets.of_path("setting", str(tmp_path / ".root"))) == 12  # which may be hidden itself


def of_npz(folder, images):
    np.savez(folder / "a.npz", x=images)
    return image_sets.of_path("setting", str(folder / "a.npz"))


def of_folder(folder, images):
    shutil.rmtree(folder / "images", ignore_errors=True)
    for i, image in enumerate(images):
        save(folder / "images" / f"{i:02d}.png", image)
    return image_sets.of_path("setting", str(folder / "images"))


def of_cropped_folder(folder, images):
    of_folder(folder, images)
    return image_sets.of_path("setting", str(folder / "images"), CropRule(image_size=8))


def of_array(folder, images):
    return ImageSet(images, "images")


def of_array_source(folder, images):
    source = ArraySource(images, np.zeros(len(images), int), ("a",))
    return image_sets.of_source(source, "it", CropRule(image_size=8), 99)


@pytest.mark.parametrize("make", [of_npz, of_folder, of_cropped_folder, of_array, of_array_source])
def test_identity_tells_sets_apart(make, images, tmp_path):
    """The identity depends on every image and its place, not on a sample of the images."""
    def identity(content):
        return make(tmp_path, content).identity(tmp_path / "digests.json")

    images, seen = images[:40], []
    seen.append(identity(images))
    assert identity(images) == seen[0]
    for index in (0, 1, 20, 38, 39):
        changed = images.copy()
        changed[index, 0, 0, 0] ^= 1
        seen.append(identity(changed))
    swapped = images[[1, 0, *range(2, 40)]]
    seen += [identity(swapped), identity(images[:39])]
    assert len(set(map(json.dumps, seen))) == len(seen)


def test_identity_of_files_is_that_of_their_content(images, tmp_path):
    """The identity does not depend on the location or name of the folder, but on the crop."""
    memory, before = tmp_path / "digests.json", of_folder(tmp_path, images[:12]).identity(tmp_path / "digests.json")
    (tmp_path / "images").rename(tmp_path / "renamed")
    renamed = str(tmp_path / "renamed")
    assert image_sets.of_path("setting", renamed).identity(memory) == before
    for crop in (CropRule(image_size=8), CropRule(image_size=8, resize_ratio=1.5), CropRule(image_size=4)):
        assert image_sets.of_path("setting", renamed, crop).identity(memory) != before
    a, b = tmp_path / "renamed" / "00.png", tmp_path / "renamed" / "07.png"
    contents, times = [a.read_bytes(), b.read_bytes()], a.stat().st_mtime_ns
    for path, content in zip((b, a), contents, strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(times, times))
    assert image_sets.of_path("setting", renamed).identity(memory) != before


def test_identity_of_crops_is_that_of_their_rule(images, tmp_path):
    source = ArraySource(np.repeat(images[:12], 2, 1), np.zeros(12, int), ("a",))
    rule = CropRule(image_size=8, crops_per_image=2)
    rules = [(rule, 24), (rule, 23), *((dataclasses.replace(rule, **change), 24) for change in (
        {"image_size": 4}, {"resize_ratio": 1.5}, {"crops_per_image": 1}))]
    found = [json.dumps(image_sets.of_source(source, "it", *given).identity(tmp_path)) for given in rules]
    assert len(set(found)) == len(rules)


def test_formats_that_lose_detail_are_said(images, tmp_path):
    """Warnings go by content, whatever the files are called, and also if only some files need them."""
    assert of_folder(tmp_path, images[:12]).warnings() == []
    save(tmp_path / "images" / "00.png", images[0])
    for name in ("01.png", "02.jpg"):
        (tmp_path / "images" / name).unlink(missing_ok=True)
        Image.fromarray(images[1]).save(tmp_path / "images" / name, format="JPEG")
    said, = image_sets.of_path("setting", str(tmp_path / "images")).warnings()
    assert said.startswith("2 of 13 files are of formats that may lose detail (2 JPEG). This alone changes distances")


@pytest.mark.parametrize("make", [of_npz, of_folder])
def test_images_that_were_made_to_fit_are_said(make, images, tmp_path):
    make(tmp_path, images[:12])
    path = str(tmp_path / ("a.npz" if make is of_npz else "images"))
    assert image_sets.of_path("setting", path, CropRule(image_size=8)).warnings() == []
    said, = image_sets.of_path("setting", path, CropRule(image_size=4, resize_ratio=1.5)).warnings()
    assert said.startswith("12 of 12 images are not 4 x 4 pixels and were cropped or resized to fit")


@pytest.mark.parametrize(("arrays", "message"), [
    ({"y": np.zeros(3)}, "setting is .*a.npz, which cannot be used: it has neither arr_0 nor x; give"),
    ({"x": np.zeros((20, 8, 8, 3))}, r"x is float64 \(20, 8, 8, 3\); give uint8 \(n, h, w, 3\)"),
    ({"x": np.zeros((20, 8, 8), np.uint8)}, r"x is uint8 \(20, 8, 8\)"),
    ({"x": np.zeros((3, 8, 8, 3), np.uint8)}, "which has 3 images; give at least 10"),
])
def test_files_that_do_not_serve_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        image_sets.of_path("setting", str(tmp_path / "a.npz"))


def test_paths_that_do_not_serve_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="setting is .*a.txt, which is neither a folder nor an .npz file; give one"):
        image_sets.of_path("setting", str(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match="which has 0 images; give at least 10"):
        image_sets.of_path("setting", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="setting is /nowhere, but there is no such file or folder; correct"):
        image_sets.of_path("setting", "/nowhere")
