"""Hands a trained student and tokenizer to PyTorch's VAR code.

    python -m refocus_jax.interop.var_torch export --workdir runs/d16 --out student.safetensors

writes the student and, as `student_tokenizer.safetensors` beside it, the tokenizer, under VAR's names and with VAR's
buffers, for a strict `load_state_dict`; it prints how VAR's classes have to be made for them. A tokenizer for which
VAR's own code would compute something else is refused, with the lines that differ.
"""

import argparse
import sys
from pathlib import Path

from refocus_jax import pretrained
from refocus_jax.interop import var_state_dict
from refocus_jax.models.quantizer import PHI_RATIO
from refocus_jax.models.tokenizer import StructureTokenizer
from refocus_jax.models.transformer import Transformer
from refocus_jax.runtime import weight_files

OFFICIAL_MULTIPLIERS, OFFICIAL_BLOCKS = (1, 1, 2, 2, 4), 2  # fixed inside VAR's VQVAE


def differences(structure: StructureTokenizer) -> list[str]:
    """What has to be changed in VAR's code before it decodes this tokenizer's tokens; empty if nothing."""
    autoencoder, quantizer = structure.autoencoder, structure.quantizer
    found = []
    if not quantizer.residual:
        found.append("tokenizer.residual is False, each scale stands alone: in models/quant.py, VectorQuantizer2."
                     "get_next_autoregressive_input, `f_hat.add_(h)` must be `f_hat.copy_(h)`, at every scale")
    if autoencoder.norm_groups != var_state_dict.OFFICIAL_NORM_GROUPS:
        found.append(f"tokenizer.norm_groups is {autoencoder.norm_groups}: in models/basic_vae.py, Normalize, "
                     f"num_groups must be that instead of {var_state_dict.OFFICIAL_NORM_GROUPS}")
    if tuple(autoencoder.channel_multipliers) != OFFICIAL_MULTIPLIERS:
        found.append(f"tokenizer.channel_multipliers are {tuple(autoencoder.channel_multipliers)}: in models/vqvae.py, "
                     f"VQVAE, ch_mult must be that instead of {OFFICIAL_MULTIPLIERS}")
    if autoencoder.num_residual_blocks != OFFICIAL_BLOCKS:
        found.append(f"tokenizer.num_residual_blocks is {autoencoder.num_residual_blocks}: in models/vqvae.py, VQVAE, "
                     f"num_res_blocks must be that instead of {OFFICIAL_BLOCKS}")
    return found


def constructors(network: Transformer, structure: StructureTokenizer) -> str:
    """The PyTorch lines that make both networks."""
    quantizer, grids = structure.quantizer, tuple(network.grid_sizes)
    phi = f"share_quant_resi={quantizer.num_phi}" if quantizer.num_phi else "quant_resi=0"
    assert PHI_RATIO == 0.5  # VQVAE's default quant_resi
    return (f"vae = VQVAE(vocab_size={quantizer.vocab_size}, z_channels={quantizer.latent_channels}, "
            f"ch={structure.autoencoder.channels}, {phi}, v_patch_nums={grids}, test_mode=True)\n"
            f"var = VAR(vae, num_classes={network.num_classes}, depth={network.depth}, embed_dim={network.width}, "
            f"num_heads={network.num_heads}, shared_aln={network.shared_modulation}, attn_l2_norm={network.qk_norm}, "
            f"patch_nums={grids})")


def export(workdir: str, out: str, allow_differences: bool = False) -> str:
    """Writes both files; returns what a PyTorch user has to know.

    Raises:
      ValueError: VAR's code would decode the tokens otherwise, and `allow_differences` is not set.
    """
    generator = pretrained.load_generator(workdir)
    structure = generator.tokenizer.model.structure
    found = differences(structure)
    if found and not allow_differences:
        raise ValueError("VAR's own code would make other images of this tokenizer's tokens:\n  " + "\n  ".join(found)
                         + "\nChange these lines there and give --allow-differences, or train with VAR's values")
    tokenizer_out = str(Path(out).with_name(f"{Path(out).stem}_tokenizer.safetensors"))
    lines = constructors(generator.network, structure)
    metadata = {"made_by": "refocus_jax", "pytorch": lines, "differences": "\n".join(found)}
    weight_files.write(out, var_state_dict.export_transformer(generator.network, generator.params), metadata)
    weight_files.write(tokenizer_out, var_state_dict.export_tokenizer(
        structure, generator.tokenizer.params["structure"]), metadata)
    loads = (f'vae.load_state_dict(safetensors.torch.load_file("{tokenizer_out}"), strict=True)\n'
             f'var.load_state_dict(safetensors.torch.load_file("{out}"), strict=True)')
    return "\n".join([*(f"# {line}" for line in found), lines, loads])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("export", help="a workdir's student and tokenizer, as files for PyTorch")
    command.add_argument("--workdir", required=True)
    command.add_argument("--out", required=True, help="the student's file, NAME.safetensors")
    command.add_argument("--allow-differences", action="store_true",
                         help="write a tokenizer that VAR's code only decodes after the changes that are printed")
    given = parser.parse_args(arguments)
    try:
        print(export(given.workdir, given.out, given.allow_differences))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
