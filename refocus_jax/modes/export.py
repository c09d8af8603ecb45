"""`--mode=export`: writes a generator as files for PyTorch's VAR code, or as one file that draws by itself."""

import os

from ml_collections import ConfigDict

from refocus_jax.config import build
from refocus_jax.pretrained import pytorch, sampler_file
from refocus_jax.pretrained.choice import choose_generator
from refocus_jax.runtime import processes


def run(c: ConfigDict, workdir: str) -> None:
    """Writes `export.output`: VAR's files if `export.format` is var, a sampler if it is sampler.

    Raises:
      ValueError: VAR's code would decode the tokenizer's tokens differently, or there are several processes.
    """
    processes.check_alone("export")
    e, settings = c.export, build.sampling_settings(c)
    output = e.output or os.path.join(workdir, {"var": "student.safetensors", "sampler": "sampler.zip"}[e.format])
    generator, _ = choose_generator(c, workdir)
    if e.format == "var":
        print(pytorch.export(generator, output, e.allow_differences))
    else:
        sampler_file.export(generator, output, e.batch_size, settings)
        print(f"{output}: a sampler that draws {e.batch_size} images at a time, for "
              f"{', '.join(sampler_file.PLATFORMS)}")
