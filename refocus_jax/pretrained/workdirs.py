"""Loads what a workdir has trained. It imports Orbax and all that a config builds: load it when it is asked for."""

from ml_collections import ConfigDict

from refocus_jax.config import build, saved, stages
from refocus_jax.pretrained import parameters
from refocus_jax.pretrained.models import Generator, Tokenizer
from refocus_jax.runtime import mesh as mesh_lib


def config(workdir: str) -> tuple[ConfigDict, tuple[str, ...]]:
    """Loads the config that a workdir was made with, for any devices, and the names of its classes."""
    c, class_names = saved.read(workdir)
    c.generator.model.attention = "prefix"  # runs on all devices; they may differ from those of the training
    return c, class_names


def tokenizer(workdir: str) -> Tokenizer:
    """Loads the tokenizers of the latest checkpoint, or those that `tokenizer.pretrained` named."""
    c, _ = config(workdir)
    found = parameters.tokenizer(c, c.tokenizer.pretrained or workdir, mesh_lib.make_mesh())
    return Tokenizer(model=build.tokenizer(c), params=found.params, step=found.step)


def generator(workdir: str, step: int | None = None) -> Generator:
    """Loads the student of a checkpoint, by default the latest, with its tokenizer.

    Raises:
      ValueError: They were not trained together.
    """
    c, class_names = config(workdir)
    found = parameters.student(c, len(class_names), workdir, mesh_lib.make_mesh(), step=step)
    own = tokenizer(workdir)
    stages.check_tokenizers(workdir, own.digests, c.tokenizer.pretrained)
    return Generator(network=build.student(c, len(class_names)), params=found.params, tokenizer=own,
                     class_names=class_names, step=found.step)
