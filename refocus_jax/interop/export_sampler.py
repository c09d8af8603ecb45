"""A trained sampler as one file, independent of our models: StableHLO for CPU, TPU and CUDA, and the weights.

    python -m refocus_jax.interop.export_sampler --workdir runs/d16 --out sampler.zip --batch 4

    sampler = export_sampler.load("sampler.zip")
    tokens, images = sampler(labels=[0, 1, 2, 3], seed=0, start=0)     # K maps (4, p, p) int32; (4, h, w, 3) in [-1, 1]

The file holds `sampler.stablehlo` (jax.export), `weights.npz` and `settings.json`: whoever has jax can call it, with
the weights in their order as first argument. jax promises to read it for at least six months.
"""

import argparse
import dataclasses
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from refocus_jax import pretrained
from refocus_jax.sampling import decode

PLATFORMS = ("cpu", "tpu", "cuda")


def export(generator: pretrained.Generator, out: str | os.PathLike, batch: int,
           settings: decode.SamplingSettings) -> None:
    """Writes the sampler of one batch size; the file appears complete or not at all."""
    model = generator.tokenizer.model
    # Only what sampling reads: no encoder, no alias tokenizer.
    structure = generator.tokenizer.params["structure"]
    autoencoder = {name: structure["autoencoder"][name] for name in ("decoder", "post_quant_conv")}
    params = {"student": generator.params, "structure": {**structure, "autoencoder": autoencoder}}
    leaves, tree = jax.tree.flatten(params)

    def run(leaves, labels, seed, start):
        params = jax.tree.unflatten(tree, leaves)
        drawn = decode.sample(generator.network, params["student"], model.structure.quantizer,
                              params["structure"]["quantizer"], labels, decode.sample_keys(seed, labels, start),
                              settings)
        return drawn.tokens, model.decode(params, drawn.f_hat[-1])

    scalar = jax.ShapeDtypeStruct((), jnp.uint32)
    abstract = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    program = jax_export.export(jax.jit(run), platforms=PLATFORMS)(
        abstract, jax.ShapeDtypeStruct((batch,), jnp.int32), scalar, scalar)
    weights = io.BytesIO()
    np.savez(weights, **{f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(leaves)})
    content = {"batch": batch, "num_classes": generator.network.num_classes, "class_names": generator.class_names,
               "sampling": dataclasses.asdict(settings), "platforms": PLATFORMS}
    temporary = Path(f"{out}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("sampler.stablehlo", program.serialize())
            archive.writestr("weights.npz", weights.getvalue())
            archive.writestr("settings.json", json.dumps(content, indent=2))
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> Callable[[Sequence[int], int, int], tuple[list[jax.Array], jax.Array]]:
    """The sampler of a file: (labels, seed=0, start=0) to token maps and images in [-1, 1].

    They are those of `Generator.sample`; it takes as many labels as the file's batch, and `start` is the number of the
    first.

    Raises:
      ValueError: the file is damaged or no exported sampler.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = json.loads(archive.read("settings.json"))
            program = jax_export.deserialize(bytearray(archive.read("sampler.stablehlo")))
            with np.load(io.BytesIO(archive.read("weights.npz")), allow_pickle=False) as weights:
                leaves = [jnp.asarray(weights[name]) for name in sorted(weights.files)]
            if len(program.in_avals) != len(leaves) + 3:
                raise ValueError("it is of another version of the program; export it again")
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged file does to the readers
        raise ValueError(f"{path} is no sampler that export_sampler wrote, or it is damaged: {error}") from error
    call = jax.jit(program.call)

    def sampler(labels: Sequence[int], seed: int = 0, start: int = 0):
        labels = np.asarray(labels)
        if labels.shape != (content["batch"],) or labels.min() < 0 or labels.max() > content["num_classes"]:
            raise ValueError(f"labels are {labels.tolist()}; this sampler takes {content['batch']} of 0 to "
                             f"{content['num_classes'] - 1}")
        return call(leaves, jnp.asarray(labels, jnp.int32), *(jnp.asarray(n, jnp.uint32) for n in (seed, start)))

    return sampler


def main(arguments: list[str] | None = None) -> None:
    defaults = decode.SamplingSettings(top_k=0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="a workdir, or an official VAR file")
    parser.add_argument("--out", required=True, help="the file to write, NAME.zip")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--cfg", type=float, default=defaults.cfg)
    parser.add_argument("--top-k", type=int, default=defaults.top_k, help="0 is off")
    parser.add_argument("--top-p", type=float, default=defaults.top_p, help="0 is off")
    parser.add_argument("--smooth", action="store_true")
    given = parser.parse_args(arguments)
    try:
        if given.batch < 1:
            raise ValueError(f"--batch is {given.batch}; give at least 1")
        export(pretrained.load_generator(given.workdir), given.out, given.batch,
               decode.SamplingSettings(given.cfg, given.top_k, given.top_p, given.smooth))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{given.out}: a sampler of {given.batch} images at a time for {', '.join(PLATFORMS)}")


if __name__ == "__main__":
    main()
