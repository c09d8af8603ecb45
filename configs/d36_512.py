"""ReFocus-VAR d36 with shared AdaLN on ImageNet at 512 px: 2363.3 M parameters with 8192 codes.

    python -m refocus_jax.main --config=d36_512 --workdir=runs/d36_512

We have not trained it: parameter count and shapes are tested, results are not known.
"""

from refocus_jax.config import base
from refocus_jax.config.arguments import apply, depth, recipes, resolution
from refocus_jax.focus import GRID_SIZES


def get_config(argument=None):
    c = base.get_config()
    resolution(c, 512, GRID_SIZES["var10_512"], rho_max=24.0)  # the factors are twice those of 256 px
    depth(c, 36)
    c.generator.model.shared_modulation = True
    c.generator.model.gamma_init = 5e-6
    c.generator.optimizer.update(learning_rate=8e-5, final=0.01, weight_decay_end=0.08)
    c.mesh.fsdp = 4  # a single device cannot hold the state; set --config.mesh.fsdp=1 on devices that can
    return apply(c, argument, recipe=recipes(epochs=350, batch_size=768))
