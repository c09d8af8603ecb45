"""Weights of the official VAR state dicts to our parameter trees and back, under their official names.

One table of entries (official name, path in our tree, layout) describes a network. Import and export read it
in opposite directions, so each is the other's inverse, bit for bit. Depths and options follow from the names
given; every name that such a network lacks or that is no part of it is an error.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


class Layout(NamedTuple):
    """How one array is laid out on either side."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_official: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda a: a, lambda a: a)
LINEAR = Layout(lambda a: a.T, lambda a: a.T)
CONVOLUTION = Layout(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
POSITIONS = Layout(lambda a: a[0], lambda a: a[None])  # (1, l, d)
TEMPERATURE = Layout(lambda a: a.reshape(-1), lambda a: a.reshape(1, -1, 1, 1))  # (1, heads, 1, 1)
MODULATION = Layout(lambda a: a.reshape(-1), lambda a: a.reshape(1, 1, 6, -1))  # (1, 1, 6, d)


class Entry(NamedTuple):
    """One array under both of its names."""

    name: str
    path: tuple
    layout: Layout


def _linear(name: str, path: tuple, layout: Layout = LINEAR) -> list[Entry]:
    return [Entry(f"{name}.weight", (*path, "kernel"), layout), Entry(f"{name}.bias", (*path, "bias"), SAME)]


def _convolution(name: str, path: tuple) -> list[Entry]:
    return _linear(name, path, CONVOLUTION)


def _norm(name: str, path: tuple) -> list[Entry]:
    path = (*path, "norm")
    return [Entry(f"{name}.weight", (*path, "scale"), SAME), Entry(f"{name}.bias", (*path, "bias"), SAME)]


def _attention_block(name: str, path: tuple) -> list[Entry]:
    return [*_norm(f"{name}.norm", (*path, "norm")), *_convolution(f"{name}.qkv", (*path, "qkv")),
            *_convolution(f"{name}.proj_out", (*path, "proj_out"))]


def _residual_block(name: str, path: tuple, shortcut: bool) -> list[Entry]:
    entries = []
    for i in "12":
        entries += _norm(f"{name}.norm{i}", (*path, f"norm{i}"))
        entries += _convolution(f"{name}.conv{i}", (*path, f"conv{i}"))
    return entries + (_convolution(f"{name}.nin_shortcut", (*path, "nin_shortcut")) if shortcut else [])


def _coder(name: str, direction: str, num_levels: int, num_blocks: int, has_shortcut) -> list[Entry]:
    """The encoder (direction 'down') or the decoder ('up')."""
    path = ("autoencoder", name)

    def residual(block_name, block_path):
        return _residual_block(block_name, block_path, has_shortcut(block_name, block_path))

    entries = _convolution(f"{name}.conv_in", (*path, "conv_in"))
    for level in range(num_levels):
        official, ours = f"{name}.{direction}.{level}", f"{direction}_{level}"
        for i in range(num_blocks):
            entries += residual(f"{official}.block.{i}", (*path, f"{ours}_block_{i}"))
            if level == num_levels - 1:
                entries += _attention_block(f"{official}.attn.{i}", (*path, f"{ours}_attn_{i}"))
        # Down-sampling follows every level but the last, up-sampling every level but the first.
        if direction == "down" and level < num_levels - 1:
            entries += _convolution(f"{official}.downsample.conv", (*path, f"{ours}_downsample"))
        elif direction == "up" and level > 0:
            entries += _convolution(f"{official}.upsample.conv", (*path, f"{ours}_upsample"))
    for i in "12":
        entries += residual(f"{name}.mid.block_{i}", (*path, f"mid_block_{i}"))
    entries += _attention_block(f"{name}.mid.attn_1", (*path, "mid_attn_1"))
    entries += _norm(f"{name}.norm_out", (*path, "norm_out"))
    return entries + _convolution(f"{name}.conv_out", (*path, "conv_out"))


def _tokenizer_entries(num_levels: int, num_blocks: int, num_phi: int, has_shortcut) -> list[Entry]:
    """`has_shortcut(name, path)` tells whether a residual block changes its channels."""
    entries = _coder("encoder", "down", num_levels, num_blocks, has_shortcut)
    entries += _coder("decoder", "up", num_levels, num_blocks + 1, has_shortcut)
    for name in ("quant_conv", "post_quant_conv"):
        entries += _convolution(name, ("autoencoder", name))
    for i in range(num_phi):
        # VAR has another class, and so another name, for a phi that all scales share.
        name = "quantize.quant_resi.qresi" + (f"_ls.{i}" if num_phi > 1 else "")
        entries += _convolution(name, ("quantizer", f"phi_{i}"))
    return [*entries, Entry("quantize.embedding.weight", ("quantizer", "codebook", "embedding"), SAME)]


def _transformer_entries(depth: int, qk_norm: bool, shared_modulation: bool) -> list[Entry]:
    """Paths of the blocks are ("blocks", layer, ...): not yet stacked."""
    entries = [Entry("class_emb.weight", ("class_embedding",), SAME),
               Entry("lvl_embed.weight", ("level_embedding",), SAME),
               Entry("pos_start", ("position_start",), POSITIONS), Entry("pos_1LC", ("position",), POSITIONS)]
    for official, ours in (("word_embed", "word_embed"), ("head_nm.ada_lin.1", "head_nm"), ("head", "head")):
        entries += _linear(official, (ours,))
    if shared_modulation:
        entries += _linear("shared_ada_lin.1", ("shared_ada_lin",))
    for layer in range(depth):
        name, path = f"blocks.{layer}", ("blocks", layer)
        entries += [Entry(f"{name}.attn.mat_qkv.weight", (*path, "qkv"), LINEAR),
                    Entry(f"{name}.attn.q_bias", (*path, "q_bias"), SAME),
                    Entry(f"{name}.attn.v_bias", (*path, "v_bias"), SAME)]
        for official, ours in (("attn.proj", "proj"), ("ffn.fc1", "fc1"), ("ffn.fc2", "fc2")):
            entries += _linear(f"{name}.{official}", (*path, ours))
        if qk_norm:
            entries.append(Entry(f"{name}.attn.scale_mul_1H11", (*path, "scale_mul"), TEMPERATURE))
        if shared_modulation:
            entries.append(Entry(f"{name}.ada_gss", (*path, "ada_gss"), MODULATION))
        else:
            entries += _linear(f"{name}.ada_lin.1", (*path, "ada_lin"))
    return entries


def _count(pattern: str, names: Iterable[str]) -> int:
    """One more than the largest index that `pattern` finds at the beginning of a name; 0 if there is none."""
    return max((int(match[1]) + 1 for match in map(re.compile(pattern).match, names) if match), default=0)


def _check(what: str, given: set[str], expected: set[str]) -> None:
    missing, unknown = sorted(expected - given), sorted(given - expected)
    if missing or unknown:
        raise ValueError(f"{what} does not fit the network that its names describe; missing: "
                         f"{', '.join(missing) or 'nothing'}; unknown: {', '.join(unknown) or 'nothing'}")


def _float32(array) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _import(what: str, arrays: Mapping[str, np.ndarray], entries: list[Entry]) -> dict[str, Any]:
    _check(what, set(arrays), {entry.name for entry in entries})
    return unflatten_dict({path: _float32(layout.to_ours(np.asarray(arrays[name])))
                           for name, path, layout in entries})


def _export(what: str, flat: Mapping[tuple, np.ndarray], entries: list[Entry]) -> dict[str, np.ndarray]:
    _check(what, set(map(_slashes, flat)), {_slashes(entry.path) for entry in entries})
    return {name: _float32(layout.to_official(np.asarray(flat[path]))) for name, path, layout in entries}


def _slashes(path: tuple) -> str:
    return "/".join(map(str, path))


def import_tokenizer(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of a `StructureTokenizer` from the weights of an official VQVAE, float32.

    Raises:
      ValueError: names are missing or unknown; it lists them all.
    """
    def has_shortcut(name, path):
        kernel = arrays.get(f"{name}.conv1.weight")
        return kernel is not None and kernel.shape[0] != kernel.shape[1]

    num_levels = _count(r"encoder\.down\.(\d+)\.", arrays)
    num_blocks = _count(r"encoder\.down\.\d+\.block\.(\d+)\.", arrays)
    num_phi = _count(r"quantize\.quant_resi\.qresi_ls\.(\d+)\.", arrays)
    num_phi = num_phi or int(any(name.startswith("quantize.quant_resi.qresi.") for name in arrays))
    return _import("the tokenizer's state dict", arrays,
                   _tokenizer_entries(num_levels, num_blocks, num_phi, has_shortcut))


def export_tokenizer(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `import_tokenizer`.

    Raises:
      ValueError: parameters are missing or unknown; it lists them all.
    """
    flat = flatten_dict(params)

    def has_shortcut(name, path):
        kernel = flat.get((*path, "conv1", "kernel"))
        return kernel is not None and kernel.shape[2] != kernel.shape[3]

    names = list(map(_slashes, flat))
    num_levels = _count(r"autoencoder/encoder/down_(\d+)_", names)
    num_blocks = _count(r"autoencoder/encoder/down_\d+_block_(\d+)/", names)
    num_phi = _count(r"quantizer/phi_(\d+)/", names)
    return _export("the tokenizer's parameter tree", flat,
                   _tokenizer_entries(num_levels, num_blocks, num_phi, has_shortcut))


def import_transformer(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of a `Transformer` from the weights of an official VAR, float32, blocks stacked.

    Raises:
      ValueError: names are missing or unknown; it lists them all.
    """
    depth = max(1, _count(r"blocks\.(\d+)\.", arrays))
    qk_norm = any(name.endswith(".scale_mul_1H11") for name in arrays)
    shared_modulation = any(name.startswith("shared_ada_lin.") for name in arrays)
    params = _import("the transformer's state dict", arrays,
                     _transformer_entries(depth, qk_norm, shared_modulation))
    blocks = [params["blocks"][layer] for layer in range(depth)]
    return {**params, "blocks": jax.tree.map(lambda *layers: np.stack(layers), *blocks)}


def export_transformer(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `import_transformer`.

    Raises:
      ValueError: parameters are missing or unknown; it lists them all.
    """
    blocks = flatten_dict(params.get("blocks", {}))
    depth = max((len(stacked) for stacked in blocks.values()), default=1)
    flat = flatten_dict({name: value for name, value in params.items() if name != "blocks"})
    for path, stacked in blocks.items():
        flat |= {("blocks", layer, *path): value for layer, value in enumerate(np.asarray(stacked))}
    return _export("the transformer's parameter tree", flat,
                   _transformer_entries(depth, ("scale_mul",) in blocks, "shared_ada_lin" in params))
