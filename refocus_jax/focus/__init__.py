"""Optics: resampling matrices, point-spread functions, radius schedules and focus views.

Nothing in this room depends on a neural network.
"""

from refocus_jax.focus.psf import blur, disk_kernel, gaussian_kernel
from refocus_jax.focus.schedule import GRID_SIZES, noise_stds, radii
from refocus_jax.focus.views import Pyramid, View, views

__all__ = ["GRID_SIZES", "Pyramid", "View", "blur", "disk_kernel", "gaussian_kernel", "noise_stds", "radii", "views"]
