"""ReFocus-VAR d16 on ImageNet at 256 px: 314.5 M parameters with 8192 codes.

    python -m refocus_jax.main --config=d16 --workdir=runs/d16 --config.data.source=tfds:imagenet2012

We have not trained it: parameter count and shapes are tested, results are not known.
"""

from refocus_jax.config import base
from refocus_jax.config.arguments import STUDENTS, apply, depth, recipes


def get_config(argument=None):
    c = base.get_config()
    depth(c, 16)
    return apply(c, argument, architecture=STUDENTS, recipe=recipes(epochs=200, batch_size=768))
