"""ReFocus-VAR d24 on ImageNet at 256 px: 1039.7 M parameters with 8192 codes.

    python -m refocus_jax.main --config=d24 --workdir=runs/d24 --config.data.source=tfds:imagenet2012

We have not trained it: parameter count and shapes are tested, results are not known.
"""

from refocus_jax.config import base
from refocus_jax.config.arguments import STUDENTS, apply, depth, recipes


def get_config(argument=None):
    c = base.get_config()
    depth(c, 24)
    c.generator.model.gamma_init = 1e-4
    c.generator.optimizer.update(learning_rate=8e-5, final=0.01)
    c.mesh.fsdp = 4  # a single device cannot hold the state; set --config.mesh.fsdp=1 on devices that can
    return apply(c, argument, architecture=STUDENTS, recipe=recipes(epochs=350, batch_size=768))
