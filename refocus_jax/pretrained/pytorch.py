"""Exports a trained student and tokenizer to PyTorch's VAR code, or a student to that of M-VAR.

Writes the student and, as `student_tokenizer.safetensors` next to it, the tokenizer, under VAR's names and with VAR's
buffers, for a strict `load_state_dict`; and says how to construct VAR's classes for them. A tokenizer for which VAR's
code would compute different images is refused, and the error lists the lines of that code to change.
"""

import os
from pathlib import Path

from refocus_jax.models import official_var
from refocus_jax.models.quantizer import PHI_RATIO
from refocus_jax.models.tokenizer import StructureTokenizer
from refocus_jax.models.transformer import Transformer
from refocus_jax.pretrained.models import Generator
from refocus_jax.runtime import weight_files

OFFICIAL_MULTIPLIERS, OFFICIAL_BLOCKS = (1, 1, 2, 2, 4), 2  # fixed inside VAR's VQVAE


def differences(structure: StructureTokenizer) -> list[str]:
    """Lists the changes that VAR's code needs before it decodes this tokenizer's tokens; empty if none."""
    autoencoder, quantizer = structure.autoencoder, structure.quantizer
    found = []
    if not quantizer.residual:
        found.append("tokenizer.model.residual is False, so scales do not add up: in models/quant.py, VectorQuantizer2."
                     "get_next_autoregressive_input, `f_hat.add_(h)` must be `f_hat.copy_(h)`, at every scale")
    if autoencoder.norm_groups != official_var.OFFICIAL_NORM_GROUPS:
        found.append(f"tokenizer.model.norm_groups is {autoencoder.norm_groups}: in models/basic_vae.py, Normalize, "
                     f"num_groups must be that instead of {official_var.OFFICIAL_NORM_GROUPS}")
    if tuple(autoencoder.channel_multipliers) != OFFICIAL_MULTIPLIERS:
        found.append(f"tokenizer.model.channel_multipliers are {tuple(autoencoder.channel_multipliers)}: in "
                     f"models/vqvae.py, VQVAE, ch_mult must be that instead of {OFFICIAL_MULTIPLIERS}")
    if autoencoder.num_residual_blocks != OFFICIAL_BLOCKS:
        found.append(f"tokenizer.model.num_residual_blocks is {autoencoder.num_residual_blocks}: in models/vqvae.py, "
                     f"VQVAE, num_res_blocks must be that instead of {OFFICIAL_BLOCKS}")
    return found


def constructors(network: Transformer, structure: StructureTokenizer) -> str:
    """Returns the lines of PyTorch code that construct both networks."""
    quantizer, grids = structure.quantizer, tuple(network.grid_sizes)
    phi = f"share_quant_resi={quantizer.num_phi}" if quantizer.num_phi else "quant_resi=0"
    assert PHI_RATIO == 0.5  # VQVAE's default quant_resi
    # VAR's code has no mixers.
    construct = "var = VAR(vae, " if network.sees_prefix else "# var = M-VAR's transformer ("
    return (f"vae = VQVAE(vocab_size={quantizer.vocab_size}, z_channels={quantizer.latent_channels}, "
            f"ch={structure.autoencoder.channels}, {phi}, v_patch_nums={grids}, test_mode=True)\n"
            f"{construct}num_classes={network.num_classes}, depth={network.depth}, embed_dim={network.width}, "
            f"num_heads={network.num_heads}, shared_aln={network.shared_modulation}, attn_l2_norm={network.qk_norm}, "
            f"patch_nums={grids})")


def export(generator: Generator, out: str | os.PathLike, allow_differences: bool = False) -> str:
    """Writes both files.

    Args:
      generator: The generator to export.
      out: The file of the student.
      allow_differences: Whether to export a tokenizer that VAR's code decodes only after changes.

    Returns:
      The lines of PyTorch code that construct and load both networks, after the needed changes as comments.

    Raises:
      ValueError: VAR's code would decode the tokens differently, and `allow_differences` is not set.
    """
    structure = generator.tokenizer.model.structure
    found = differences(structure)
    if found and not allow_differences:
        raise ValueError("VAR's code would decode this tokenizer's tokens to other images:\n  " + "\n  ".join(found)
                         + "\nChange these lines there and set export.allow_differences=True, or train with VAR's "
                         "values")
    tokenizer_out = str(Path(out).with_name(f"{Path(out).stem}_tokenizer.safetensors"))
    lines = constructors(generator.network, structure)
    metadata = {"made_by": "refocus_jax", "pytorch": lines, "differences": "\n".join(found)}
    weight_files.write(out, official_var.export_transformer(generator.network, generator.params), metadata)
    weight_files.write(tokenizer_out, official_var.export_tokenizer(
        structure, generator.tokenizer.params["structure"]), metadata)
    loads = (f'vae.load_state_dict(safetensors.torch.load_file("{tokenizer_out}"), strict=True)\n'
             f'var.load_state_dict(safetensors.torch.load_file("{out}"), strict=True)')
    return "\n".join([*(f"# {line}" for line in found), lines, loads])
