"""ReFocus-VAR d16 on ImageNet at 1024 px, 14 scales, 9,451 tokens.

    python -m refocus_jax.main --config=configs/d16_1024.py --workdir=runs/d16_1024

Not trained by us: parameter count and shapes are tested, results are not known.
"""

from configs import common
from refocus_jax.focus import GRID_SIZES


def get_config(argument=None):
    c = common.get_config()
    common.resolution(c, 1024, GRID_SIZES["var14_1024"])
    common.depth(c, 16)
    return common.apply_arguments(c, argument)
