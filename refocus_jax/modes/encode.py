"""`--mode=encode`: encodes the training images as tokens on disk, which stage 2 can then train on."""

import os

import jax
from ml_collections import ConfigDict

from refocus_jax.config import build, stages
from refocus_jax.pretrained import parameters
from refocus_jax.pretrained.prepare import prepare
from refocus_jax.runtime import bucket
from refocus_jax.runtime.digests import digests
from refocus_jax.training import encode


def run(c: ConfigDict, workdir: str) -> None:
    """Encodes `encode.passes` passes over the training images into `encode.output` or WORKDIR/tokens."""
    prepared = prepare(c, workdir)
    run, tokenizers = prepared.run, prepared.tokenizers
    output = bucket.open_data(c.encode.output or os.path.join(workdir, "tokens"), only_reads=False)
    if tokenizers is None:
        tokenizers = parameters.tokenizer(c, c.tokenizer.pretrained or workdir, run.mesh).params
    description = stages.token_description(c, run.train, digests(tokenizers))
    encode.write(output, description, run.train, run.crops, build.tokenizer(c), tokenizers,
                 num_workers=c.data.num_workers)
    if jax.process_index() == 0:
        print(f"{description.examples} examples in {bucket.address(output)}")
