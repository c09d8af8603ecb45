"""ReFocus-VAR d16 on ImageNet at 1024 px, 14 scales, 9,451 tokens.

    python -m refocus_jax.main --config=d16_1024 --workdir=runs/d16_1024

We have not trained it: parameter count and shapes are tested, results are not known.
"""

from refocus_jax.config import base
from refocus_jax.config.arguments import apply, depth, resolution
from refocus_jax.focus import GRID_SIZES


def get_config(argument=None):
    c = base.get_config()
    resolution(c, 1024, GRID_SIZES["var14_1024"], rho_max=48.0)  # the factors are up to four times those of 256 px
    depth(c, 16)
    return apply(c, argument)
