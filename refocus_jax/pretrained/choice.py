"""Choice of the trained networks to use: those of a workdir, or those of files that the config names."""

import os

from ml_collections import ConfigDict

from refocus_jax.config import stages
from refocus_jax.pretrained.loading import MODEL, is_model_folder, load_generator, load_tokenizer, weight_file
from refocus_jax.pretrained.models import Generator, Tokenizer
from refocus_jax.runtime import bucket, weight_files


def has_started(workdir: str | os.PathLike) -> bool:
    """Returns whether a run has started in a workdir."""
    return os.path.exists(os.path.join(workdir, "config.json"))


def has_generator(c: ConfigDict, workdir: str) -> bool:
    """Returns whether there is a generator to choose."""
    return (is_model_folder(workdir) or stages.trained(workdir, "generator") is not None
            or weight_file(c.generator.init_from, MODEL) is not None)


def choose_generator(c: ConfigDict, workdir: str) -> tuple[Generator, dict]:
    """Loads the workdir's generator, or that of the files of `generator.init_from` if no run has started.

    Its checkpoint is that of `resume_step`.

    Returns:
      The generator, and a record of where it comes from.

    Raises:
      FileNotFoundError: Neither exists.
    """
    if has_started(workdir) or not weight_file(c.generator.init_from, MODEL):
        generator = load_generator(workdir, step=None if c.resume_step == -1 else c.resume_step)
        return generator, {"generator": bucket.address(workdir), "step": generator.step}
    if c.resume_step != -1:
        raise ValueError(f"resume_step is {c.resume_step}, and the generator is that of generator.init_from, which has "
                         "no steps; leave resume_step out")
    tokenizer = choose_tokenizer(c, workdir) if c.tokenizer.pretrained else None
    generator = load_generator(c.generator.init_from, tokenizer=tokenizer)
    return generator, {"generator": c.generator.init_from, "tokenizer": c.tokenizer.pretrained}


def choose_tokenizer(c: ConfigDict, workdir: str) -> Tokenizer:
    """Loads the workdir's tokenizer, or that of `tokenizer.pretrained` if no run has started there.

    Raises:
      FileNotFoundError: Neither exists.
    """
    source = c.tokenizer.pretrained
    if has_started(workdir) or not source:
        return load_tokenizer(workdir)
    if weight_files.is_weight_file(source):
        return load_tokenizer(source, grid_sizes=tuple(c.grid_sizes), norm_groups=c.tokenizer.model.norm_groups)
    return load_tokenizer(source)
