"""ReFocus-VAR d36 with shared AdaLN on ImageNet at 512 px: 2363.3 M parameters with 8192 codes.

    python -m refocus_jax.main --config=configs/d36_512.py --workdir=runs/d36_512

Not trained by us: parameter count and shapes are tested, results are not known.
"""

from configs import common
from refocus_jax.focus import GRID_SIZES


def get_config(argument=None):
    c = common.get_config()
    common.resolution(c, 512, GRID_SIZES["var10_512"])
    common.depth(c, 36)
    c.generator.shared_modulation = True
    c.generator.gamma_init = 5e-6
    c.generator_optimizer.update(learning_rate=8e-5, final=0.01, weight_decay_end=0.08)
    c.mesh.fsdp = 4  # one device alone cannot hold the state; --config.mesh.fsdp=1 where it can
    return common.apply_arguments(c, argument, var_recipe=lambda c: common.var_epochs(c, 350, 768))
