"""ReFocus-VAR d12 on ImageNet at 256 px: 136.3 M parameters with 8192 codes.

    python -m refocus_jax.main --config=d12 --workdir=runs/d12 --config.data.source=tfds:imagenet2012

We have not trained it: parameter count and shapes are tested, results are not known.
"""

from refocus_jax.config import base
from refocus_jax.config.arguments import STUDENTS, apply, depth, recipes


def get_config(argument=None):
    c = base.get_config()
    depth(c, 12)
    return apply(c, argument, architecture=STUDENTS, recipe=recipes(epochs=200, batch_size=768))
