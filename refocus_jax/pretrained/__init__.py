"""Trained tokenizers and generators, for notebooks and later work.

    from refocus_jax import pretrained

    tokenizer = pretrained.load_tokenizer("runs/tiny")
    generator = pretrained.load_generator("runs/tiny")
    images = generator.images(generator.sample([0, 1, 2], seed=0, settings=pretrained.SamplingSettings(cfg=2.0)))

`load_generator("small")` loads a small model that comes with the package. With the official VAR's files:
`load_generator("var_d16.pth")`, with `vae_ch160v4096z32.pth` in the same folder.
"""

from refocus_jax.pretrained.loading import load_config, load_generator, load_tokenizer
from refocus_jax.pretrained.models import Generator, Tokenizer
from refocus_jax.pretrained.sampler_file import load_sampler
from refocus_jax.sampling.decode import Sample, SamplingSettings

__all__ = ["Generator", "Sample", "SamplingSettings", "Tokenizer", "load_config", "load_generator", "load_sampler",
           "load_tokenizer"]
