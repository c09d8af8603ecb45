"""Images by random access from sources, folders and files; what they are not is named."""

import os

import numpy as np
import pytest
from PIL import Image

from refocus_jax.data import pipeline
from refocus_jax.data.sources import ArraySource
from refocus_jax.evaluation import image_sets


def save(path, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images).save(path)


def test_crops_of_a_source_are_those_of_validation(images):
    big = np.repeat(np.repeat(images[:6], 2, 1), 2, 2)  # 16 px
    source = ArraySource(big, np.arange(6), tuple("abcdef"))
    found = image_sets.of_source(source, "it", image_size=8, resize_ratio=1.5, crops_per_image=3, limit=12)
    batches = pipeline.validation_batches(source, image_size=8, batch_size=12, resize_ratio=1.5, crops_per_image=3)
    np.testing.assert_array_equal(np.stack(list(found.images)), next(iter(batches))["image"])
    assert len(found) == 12
    assert found.says == "12 crops of it (6 images), short side to 12 by Lanczos, 8 x 8 pixels"
    with pytest.raises(ValueError, match="it has 6 crops to compare with; give more images, or more data.crops_per"):
        image_sets.of_source(source, "it", image_size=8, resize_ratio=0.0, crops_per_image=1, limit=50)


@pytest.mark.parametrize("name", ["arr_0", "x"])
def test_images_of_an_npz_are_those_it_holds(images, tmp_path, name):
    np.savez(tmp_path / "a.npz", **{name: images}, other=np.zeros(3))
    found = image_sets.of_path("setting", str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(found.images, images)
    assert found.says == "64 images of a.npz, 8 x 8 pixels" and image_sets.has_images(str(tmp_path / "a.npz"))
    cropped = image_sets.of_path("setting", str(tmp_path / "a.npz"), crop=(4, 0.0))
    np.testing.assert_array_equal(np.stack(list(cropped.images)), images[:, 2:6, 2:6])


def test_images_of_a_folder_are_found_at_any_depth(images, tmp_path):
    for i, image in enumerate(images[:12]):
        save(tmp_path / "ab"[i % 2] / "deep" / f"{i:02d}.png", image)
    save(tmp_path / ".hidden.png", images[0])
    (tmp_path / "notes.txt").write_text("no image")
    found = image_sets.of_path("setting", str(tmp_path))
    np.testing.assert_array_equal(np.stack(list(found.images)), images[[*range(0, 12, 2), *range(1, 12, 2)]])
    save(tmp_path / "b" / "wide.png", np.repeat(images[0], 2, axis=1))
    with pytest.raises(ValueError, match="wide.png is of 16 x 8 pixels, and the first image of 8 x 8; give images of"):
        list(image_sets.of_path("setting", str(tmp_path)).images)
    cropped = image_sets.of_path("setting", str(tmp_path), crop=(8, 1.5))
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
    assert f"12 images hold 16 bits, at most 3600 (in {tmp_path}/11.png); 4095 is taken for white" in caplog.text


def test_identity_tells_sets_apart(images, tmp_path):
    def identity(content):
        np.savez(tmp_path / "a.npz", x=content)
        os.utime(tmp_path / "a.npz", (0, 0))
        return image_sets.of_path("setting", str(tmp_path / "a.npz")).identity

    before, changed = identity(images), images.copy()
    assert identity(images) == before
    changed[-1, 0, 0, 0] ^= 1
    assert identity(changed) != before and identity(images[:63]) != before
    np.savez(tmp_path / "a.npz", x=images)  # another time
    assert image_sets.of_path("setting", str(tmp_path / "a.npz")).identity != before


@pytest.mark.parametrize(("arrays", "message"), [
    ({"y": np.zeros(3)}, "setting is .*a.npz, which is not taken: it has neither arr_0 nor x; give"),
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
    with pytest.raises(ValueError, match="setting is .*a.txt, which is no .npz file and no folder; give one"):
        image_sets.of_path("setting", str(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match="which has 0 images; give at least 10"):
        image_sets.of_path("setting", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="setting is /nowhere, but there is no such file or folder; correct"):
        image_sets.of_path("setting", "/nowhere")
