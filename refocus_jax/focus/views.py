"""Focus views (Eqs. 1-4): the images that the token map of each scale describes."""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.focus import psf as psf_lib
from refocus_jax.focus import resample, schedule

DOWNSAMPLERS = ("bilinear", "stride", "area")


class View(NamedTuple):
    """The three views of one scale, each (b, s, s, 3) with side s = stride * grid size.

    Attributes:
      focused: L_k, the image blurred, then reduced (plus noise while the tokenizers train).
      downsampled: D_k, the image reduced without blur, hence aliased.
      residual: A_k = D_k - L_k.
    """

    focused: jax.Array
    downsampled: jax.Array
    residual: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pyramid:
    """Geometry and optics of a focus pyramid.

    Attributes:
      grid_sizes: Sides p_k of the token maps, coarse to fine.
      stride: Down-sampling factor f of the tokenizer. View k has side f p_k; the last view is the image.
      rho_max: Largest PSF radius, in pixels of the image.
      psf: 'disk', 'gaussian' or 'none'.
      schedule: 'cosine' or 'nyquist' (see `schedule.radii`).
      downsample: 'bilinear', 'stride' or 'area', for both L and D.
      noise_first: Standard deviation beta of the noise at the coarsest scale.
      noise_last: Standard deviation beta of the noise at the finest scale.
      implementation: How the blur is computed: 'auto', 'matrices' or 'convolution' (see `psf.blur`).
    """

    grid_sizes: tuple[int, ...]
    stride: int
    rho_max: float
    psf: str = "disk"
    schedule: str = "cosine"
    downsample: str = "bilinear"
    noise_first: float = 1e-3
    noise_last: float = 1e-2
    implementation: str = "auto"

    def __post_init__(self):
        grids = tuple(int(p) for p in self.grid_sizes)
        object.__setattr__(self, "grid_sizes", grids)
        if len(grids) < 2 or grids[0] < 1 or any(a >= b for a, b in itertools.pairwise(grids)):
            raise ValueError(f"grid_sizes are {grids}; give at least two sides, positive and strictly increasing")
        if self.psf not in psf_lib.PSFS:
            raise ValueError(f"focus.psf is {self.psf!r}; choose one of {psf_lib.PSFS}")
        if self.downsample not in DOWNSAMPLERS:
            raise ValueError(f"focus.downsample is {self.downsample!r}; choose one of {DOWNSAMPLERS}")
        if self.implementation not in psf_lib.IMPLEMENTATIONS:
            raise ValueError(f"focus.implementation is {self.implementation!r}; choose one of "
                             f"{psf_lib.IMPLEMENTATIONS}")
        self.radii()  # raises an error on values that the schedule does not accept

    @property
    def image_size(self) -> int:
        """Side of the image in pixels."""
        return self.stride * self.grid_sizes[-1]

    @property
    def downsample_factors(self) -> np.ndarray:
        """Factors s_k = image side / view side, which are not always integers."""
        return self.grid_sizes[-1] / np.asarray(self.grid_sizes, np.float64)

    def radii(self) -> np.ndarray:
        """PSF radius of each scale, in pixels of the image."""
        return schedule.radii(len(self.grid_sizes), self.rho_max, self.schedule, self.downsample_factors)

    def view(self, image_bhwc: jax.Array, scale: int, key: jax.Array | None = None) -> View:
        """The views of one scale, where 0 is the coarsest; see `views`."""
        size = self.image_size
        if image_bhwc.ndim != 4 or image_bhwc.shape[1:3] != (size, size):
            raise ValueError(f"image has shape {image_bhwc.shape}; stride {self.stride} and grid_sizes "
                             f"{self.grid_sizes} describe images (b, {size}, {size}, c)")
        side = self.stride * self.grid_sizes[scale]
        focused = psf_lib.blur(image_bhwc, self.psf, float(self.radii()[scale]), side, self.downsample,
                               self.implementation)
        downsampled = resample.resize(image_bhwc, side, self.downsample)
        if key is not None:
            std = schedule.noise_stds(len(self.grid_sizes), self.noise_first, self.noise_last)[scale]
            noise = jax.random.normal(jax.random.fold_in(key, scale), focused.shape, jnp.float32)
            focused = focused + float(std) * noise
        return View(focused, downsampled, downsampled - focused)

    def views(self, image_bhwc: jax.Array, key: jax.Array | None = None) -> list[View]:
        """The views of all K scales, coarse to fine.

        Without a key they are linear in the image. At the last scale L = D = image before the noise, so A is the
        (negative) noise alone.

        Args:
          image_bhwc: Images in [-1, 1], (b, image_size, image_size, c).
          key: With a key, noise with standard deviation beta_k is added to L_k.

        Returns:
          One `View` for each scale.

        Raises:
          ValueError: The image has another shape.
        """
        return [self.view(image_bhwc, scale, key) for scale in range(len(self.grid_sizes))]


def views(image_bhwc: jax.Array, *, grid_sizes, stride: int, rho_max: float, psf: str = "disk",
          schedule: str = "cosine", downsample: str = "bilinear", key: jax.Array | None = None) -> list[View]:
    """Focus views of images (b, h, w, c) in [-1, 1], in one call. The arguments are those of `Pyramid`."""
    pyramid = Pyramid(grid_sizes=tuple(grid_sizes), stride=stride, rho_max=rho_max, psf=psf, schedule=schedule,
                      downsample=downsample)
    return pyramid.views(image_bhwc, key)
