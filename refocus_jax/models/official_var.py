"""Import of official VAR and M-VAR state dicts as our networks, and export under the official names.

One table of entries (official name, path in our tree, layout) describes a network. Import and export read it in
opposite directions, so each is the inverse of the other, bit for bit. An import builds the network that names and
shapes describe. It then requires every array that such a network has, and accepts no others.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from refocus_jax.focus import GRID_SIZES
from refocus_jax.models.quantizer import MultiScaleQuantizer
from refocus_jax.models.tokenizer import Autoencoder, StructureTokenizer
from refocus_jax.models.transformer import Transformer

# What official files hold in addition to weights. All of it can be computed from the grids.
BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "patch_nums", "ema_vocab_hit_SV")
OFFICIAL_NORM_GROUPS = 32  # fixed in VAR's code; no array shows it
_OFFICIAL_LEVELS, _OFFICIAL_BLOCKS = 5, 2  # assumed where names do not show them, so that errors list what is missing


def is_transformer(names: Collection[str]) -> bool:
    """Whether these are names of a generator's arrays, of all or some of them."""
    return any(name.startswith(("blocks.0.", "pos_1LC", "word_embed.")) for name in names)


def is_tokenizer(names: Collection[str]) -> bool:
    """Whether these are names of a tokenizer's arrays, of all or some of them."""
    return any(name.startswith(("encoder.conv_in.", "quantize.", "decoder.conv_in.")) for name in names)


class Layout(NamedTuple):
    """Conversion of one array between the two memory layouts.

    Attributes:
      to_ours: From the official layout to ours.
      to_official: From our layout to the official one.
    """

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_official: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda a: a, lambda a: a)
LINEAR = Layout(lambda a: a.T, lambda a: a.T)
CONVOLUTION = Layout(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
POSITIONS = Layout(lambda a: a[0], lambda a: a[None])  # (1, l, d)
TEMPERATURE = Layout(lambda a: a.reshape(-1), lambda a: a.reshape(1, -1, 1, 1))  # (1, heads, 1, 1)
TAPS = Layout(lambda a: a[:, 0].T, lambda a: a.T[:, None])  # (c, 1, taps)
MODULATION = Layout(lambda a: a.reshape(-1), lambda a: a.reshape(1, 1, 6, -1))  # (1, 1, 6, d)


class Entry(NamedTuple):
    """One array under both of its names.

    Attributes:
      name: Its name in the official state dict.
      path: Its path in our parameter tree.
      layout: How to convert it.
    """

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


def _coder(name: str, direction: str, num_levels: int, num_blocks: int, paths: Iterable[tuple]) -> list[Entry]:
    """Entries of the encoder (direction 'down') or the decoder ('up')."""
    path = ("autoencoder", name)

    def residual(block_name, block_path):
        # There is a shortcut only where the number of channels changes.
        return _residual_block(block_name, block_path, (*block_path, "nin_shortcut", "kernel") in paths)

    entries = _convolution(f"{name}.conv_in", (*path, "conv_in"))
    for level in range(num_levels):
        official, ours = f"{name}.{direction}.{level}", f"{direction}_{level}"
        for i in range(num_blocks):
            entries += residual(f"{official}.block.{i}", (*path, f"{ours}_block_{i}"))
            if level == num_levels - 1:
                entries += _attention_block(f"{official}.attn.{i}", (*path, f"{ours}_attn_{i}"))
        # Down-sampling follows every level except the last, up-sampling every level except the first.
        if direction == "down" and level < num_levels - 1:
            entries += _convolution(f"{official}.downsample.conv", (*path, f"{ours}_downsample"))
        elif direction == "up" and level > 0:
            entries += _convolution(f"{official}.upsample.conv", (*path, f"{ours}_upsample"))
    for number in "12":
        entries += residual(f"{name}.mid.block_{number}", (*path, f"mid_block_{number}"))
    entries += _attention_block(f"{name}.mid.attn_1", (*path, "mid_attn_1"))
    entries += _norm(f"{name}.norm_out", (*path, "norm_out"))
    return entries + _convolution(f"{name}.conv_out", (*path, "conv_out"))


def _tokenizer_entries(module: StructureTokenizer, paths: Iterable[tuple]) -> list[Entry]:
    """Entries of the tokenizer; `paths` are the paths of the module's parameters."""
    num_levels, num_blocks = len(module.autoencoder.channel_multipliers), module.autoencoder.num_residual_blocks
    entries = _coder("encoder", "down", num_levels, num_blocks, paths)
    entries += _coder("decoder", "up", num_levels, num_blocks + 1, paths)
    for name in ("quant_conv", "post_quant_conv"):
        entries += _convolution(name, ("autoencoder", name))
    for i in range(module.quantizer.num_phi):
        # VAR uses another class, hence another name, for a phi that all scales share.
        name = "quantize.quant_resi.qresi" + (f"_ls.{i}" if module.quantizer.num_phi > 1 else "")
        entries += _convolution(name, ("quantizer", f"phi_{i}"))
    return [*entries, Entry("quantize.embedding.weight", ("quantizer", "codebook", "embedding"), SAME)]


# The arrays of M-VAR's mixer: official name, path, layout.
_MIXER = (("in_proj.weight", ("in_proj", "kernel"), LINEAR), ("out_proj.weight", ("out_proj", "kernel"), LINEAR),
          ("conv1d.weight", ("convolution",), TAPS), ("conv1d.bias", ("convolution_bias",), SAME),
          ("dt_bias", ("dt_bias",), SAME), ("A_log", ("a_log",), SAME), ("D", ("skip",), SAME),
          ("norm.weight", ("norm_scale",), SAME))


def _transformer_entries(network: Transformer) -> list[Entry]:
    """Entries of the transformer. Blocks are not stacked here: their paths are ("blocks", layer, ...)."""
    entries = [Entry("class_emb.weight", ("class_embedding",), SAME),
               Entry("lvl_embed.weight", ("level_embedding",), SAME),
               Entry("pos_start", ("position_start",), POSITIONS), Entry("pos_1LC", ("position",), POSITIONS)]
    for official, ours in (("word_embed", "word_embed"), ("head_nm.ada_lin.1", "head_nm"), ("head", "head")):
        entries += _linear(official, (ours,))
    if network.shared_modulation:
        entries += _linear("shared_ada_lin.1", ("shared_ada_lin",))
    for layer in range(network.depth):
        name, path = f"blocks.{layer}", ("blocks", layer)
        entries += [Entry(f"{name}.attn.mat_qkv.weight", (*path, "qkv"), LINEAR),
                    Entry(f"{name}.attn.q_bias", (*path, "q_bias"), SAME),
                    Entry(f"{name}.attn.v_bias", (*path, "v_bias"), SAME)]
        for official, ours in (("attn.proj", "proj"), ("ffn.fc1", "fc1"), ("ffn.fc2", "fc2")):
            entries += _linear(f"{name}.{official}", (*path, ours))
        if "mixer" in network.block.branches:
            entries += [Entry(f"{name}.mamba.{official}", (*path, "mixer", *ours), layout)
                        for official, ours, layout in _MIXER]
        if network.qk_norm:
            entries.append(Entry(f"{name}.attn.scale_mul_1H11", (*path, "scale_mul"), TEMPERATURE))
        if network.shared_modulation:
            entries.append(Entry(f"{name}.ada_gss", (*path, "ada_gss"), MODULATION))
        else:
            entries += _linear(f"{name}.ada_lin.1", (*path, "ada_lin"))
    return entries


def _count(pattern: str, names: Iterable[str]) -> int:
    """One more than the largest index that `pattern` finds at the beginning of a name; 0 if there is none."""
    return max((int(match[1]) + 1 for match in map(re.compile(pattern).match, names) if match), default=0)


def _size(arrays: Mapping[str, np.ndarray], default: int, *places: tuple[str, int]) -> int:
    """Length of the axis at the first of these places (name, axis) that exists, else the default."""
    for name, axis in places:
        if name in arrays and np.ndim(arrays[name]) > axis:
            return np.shape(arrays[name])[axis]
    return default


def _weights(names: Iterable[str]) -> list[str]:
    """Returns the names of weights, without those of buffers."""
    return [name for name in names if name.rsplit(".", 1)[-1] not in BUFFERS]


def _shapes(init: Callable, *shapes: Any) -> dict[tuple, np.ndarray]:
    """Shapes of a network's parameters by path, as zeros that take no memory; `init(key, *shapes)` is only traced."""
    tree = jax.eval_shape(init, jax.random.key(0), *shapes)["params"]
    return {path: np.broadcast_to(np.float32(0), like.shape) for path, like in flatten_dict(tree).items()}


def _fill(what: str, arrays: Mapping[str, np.ndarray], entries: list[Entry],
          template: Mapping[tuple, np.ndarray]) -> dict:
    """Puts the arrays into our parameter tree.

    Args:
      what: Name of the network, for the error message.
      arrays: Arrays by official name; buffers do not count. Each is read once.
      entries: The entries of the network; the arrays must be exactly these.
      template: Arrays of the shapes of the result, by path in our tree, where blocks are stacked.

    Returns:
      The parameter tree, float32.

    Raises:
      ValueError: Arrays are missing, unknown or of another shape; it lists them all.
    """
    names, given = {entry.name for entry in entries}, set(_weights(arrays))
    problems: dict[str, list[str]] = {"missing": sorted(names - given), "unknown": sorted(given - names),
                                      "of another shape": []}
    filled = {path: _empty(like.shape) for path, like in template.items()}
    for name, path, layout in sorted(entries):
        if name not in given:
            continue
        place, layer = (("blocks", *path[2:]), path[1]) if path[0] == "blocks" else (path, ...)
        array, expected = np.asarray(arrays[name]), layout.to_official(template[place][layer]).shape
        if array.shape == expected:
            _copy(layout.to_ours(array), filled[place][layer])
        else:
            problems["of another shape"].append(f"{name} {array.shape} instead of {expected}")
    if any(problems.values()):
        raise ValueError(f"{what} does not fit the network that its names describe; "
                         + "; ".join(f"{kind}: {', '.join(found) or 'nothing'}" for kind, found in problems.items()))
    return unflatten_dict(filled)


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    """Allocates float32 numbers at a multiple of 64 bytes, where jax on a CPU can use them without a copy."""
    count = math.prod(shape)
    allocated = np.empty(count + 16, np.float32)
    begin = -allocated.ctypes.data % 64 // 4
    return allocated[begin:begin + count].reshape(shape)


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    """Copies a matrix, or several, in blocks that fit into the cache: numpy transposes large ones several times slower.

    Arrays with fewer axes are copied at once.
    """
    rows, columns = source.shape[-2:] if source.ndim > 1 else (1, 1)
    for row in range(0, rows, 32):
        for column in range(0, columns, 256):
            block = (..., slice(row, row + 32), slice(column, column + 256)) if source.ndim > 1 else ...
            target[block] = source[block]


def _float32(array) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _unstack(flat: Mapping[tuple, Any]) -> dict[tuple, Any]:
    """Splits the arrays of stacked blocks into one array per layer."""
    result = {path: value for path, value in flat.items() if path[0] != "blocks"}
    for path, stacked in flat.items():
        if path[0] == "blocks":
            result |= {("blocks", layer, *path[1:]): value for layer, value in enumerate(np.asarray(stacked))}
    return result


def import_tokenizer(arrays: Mapping[str, Any], grid_sizes: Sequence[int] | None = None,
                     norm_groups: int = OFFICIAL_NORM_GROUPS) -> tuple[StructureTokenizer, dict[str, Any]]:
    """Builds VAR's tokenizer from the arrays of an official VQVAE.

    Args:
      arrays: Arrays by official name, with or without buffers.
      grid_sizes: Sides of the token maps, by default the ten of VAR; no array shows them.
      norm_groups: Groups of each GroupNorm; no array shows them.

    Returns:
      The tokenizer and its parameters, float32.

    Raises:
      ValueError: Arrays are missing, unknown or of another shape (it lists them all), or an argument does not fit the
        arrays.
    """
    if is_transformer(arrays) and not is_tokenizer(arrays):
        raise ValueError("these are the arrays of a generator (blocks.0. ...), but a tokenizer is needed; give VAR's "
                         "vae_ch160v4096z32.pth or a file like it")
    hits = _size(arrays, 0, ("quantize.ema_vocab_hit_SV", 0))
    names = _weights(arrays)
    grid_sizes = tuple(grid_sizes or GRID_SIZES["var10"])
    if hits and hits != len(grid_sizes):
        raise ValueError(f"grid_sizes are {grid_sizes}, but the tokenizer counts the codes of {hits} scales; give "
                         f"grid_sizes of {hits}")
    channels = _size(arrays, 160, ("encoder.conv_in.weight", 0), ("encoder.conv_in.bias", 0))
    if channels % norm_groups:
        raise ValueError(f"norm_groups is {norm_groups}, which does not divide the tokenizer's {channels} channels; "
                         "give the number it was trained with")
    num_levels = _count(r"encoder\.down\.(\d+)\.", names) or _OFFICIAL_LEVELS
    multipliers = tuple(max(1, _size(arrays, channels, (f"encoder.down.{i}.block.0.conv1.weight", 0),
                                     (f"encoder.down.{i}.block.0.conv1.bias", 0)) // channels)
                        for i in range(num_levels))
    num_phi = _count(r"quantize\.quant_resi\.qresi_ls\.(\d+)\.", names)
    num_phi = num_phi or int(any(name.startswith("quantize.quant_resi.qresi.") for name in names))
    latent_channels = _size(arrays, 32, ("quant_conv.bias", 0), ("quantize.embedding.weight", 1))
    module = StructureTokenizer(
        autoencoder=Autoencoder(
            channels=channels, channel_multipliers=multipliers,
            num_residual_blocks=_count(r"encoder\.down\.\d+\.block\.(\d+)\.", names) or _OFFICIAL_BLOCKS,
            latent_channels=latent_channels, norm_groups=norm_groups),
        quantizer=MultiScaleQuantizer(
            grid_sizes=grid_sizes, vocab_size=_size(arrays, 4096, ("quantize.embedding.weight", 0)),
            latent_channels=latent_channels, num_phi=num_phi, residual=True),
        pyramid="var")
    side = module.autoencoder.stride * grid_sizes[-1]
    template = _shapes(module.init, [jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)] * len(grid_sizes))
    return module, _fill("the tokenizer", arrays, _tokenizer_entries(module, template), template)


def export_tokenizer(module: StructureTokenizer, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of VAR's VQVAE, including buffers: the inverse of `import_tokenizer`."""
    flat = flatten_dict(params)
    arrays = {name: _float32(layout.to_official(np.asarray(flat[path])))
              for name, path, layout in _tokenizer_entries(module, flat)}
    scales, codes = len(module.quantizer.grid_sizes), module.quantizer.vocab_size
    return arrays | {"quantize.ema_vocab_hit_SV": np.zeros((scales, codes), np.float32)}


def _infer_grid_sizes(arrays: Mapping[str, Any]) -> tuple[int, ...]:
    """Reads grid sizes from the level of every token if the file holds it, else from the number of tokens."""
    if "lvl_1L" in arrays:
        counts = np.unique(np.asarray(arrays["lvl_1L"]), return_counts=True)[1]
        return tuple(round(n ** 0.5) for n in counts)
    length = _size(arrays, 680, ("pos_1LC", 1))
    for grid_sizes in GRID_SIZES.values():
        if sum(p * p for p in grid_sizes) == length:
            return grid_sizes
    raise ValueError(f"the transformer has positions for {length} tokens, which fits none of the usual grids; give "
                     "grid_sizes")


def infer_transformer(arrays: Mapping[str, Any], grid_sizes: Sequence[int] | None = None,
                      num_heads: int | None = None) -> Transformer:
    """Reads from names and shapes which network the arrays of an official VAR or M-VAR belong to.

    Args:
      arrays: As in `import_transformer`.
      grid_sizes: As in `import_transformer`.
      num_heads: As in `import_transformer`.

    Raises:
      ValueError: It is a tokenizer, an argument does not fit the arrays, or there is no such network.
    """
    if is_tokenizer(arrays) and not is_transformer(arrays):
        raise ValueError("these are the arrays of a tokenizer (encoder. ...), but a generator is needed; give VAR's "
                         "var_d16.pth or a file like it")
    grid_sizes = tuple(grid_sizes or _infer_grid_sizes(arrays))
    names = _weights(arrays)
    depth = _count(r"blocks\.(\d+)\.", names) or 1
    width = _size(arrays, 64 * depth, ("pos_1LC", 2), ("pos_start", 2), ("class_emb.weight", 1))
    temperatures = [name for name in sorted(names) if name.endswith(".scale_mul_1H11")]
    num_heads = num_heads or _size(arrays, depth, *((name, 1) for name in temperatures))
    if width % num_heads:
        raise ValueError(f"num_heads is {num_heads}, which does not divide the transformer's width {width}; give the "
                         "number it was trained with")
    return Transformer(
        grid_sizes=grid_sizes, vocab_size=_size(arrays, 4096, ("head.weight", 0), ("head.bias", 0)),
        latent_channels=_size(arrays, 32, ("word_embed.weight", 1)),
        num_classes=_size(arrays, 1001, ("class_emb.weight", 0)) - 1, depth=depth, width=width, num_heads=num_heads,
        architecture="mvar" if any(".mamba." in name for name in names) else "var", qk_norm=bool(temperatures),
        shared_modulation=any(name.startswith("shared_ada_lin.") for name in names))


def import_transformer(arrays: Mapping[str, Any], grid_sizes: Sequence[int] | None = None,
                       num_heads: int | None = None) -> tuple[Transformer, dict[str, Any]]:
    """Builds the transformer of an official VAR or M-VAR from its arrays.

    Args:
      arrays: Arrays by official name, with or without buffers.
      grid_sizes: Sides of the token maps, by default as the buffers show them, or else the usual ones with that many
        tokens.
      num_heads: Number of attention heads, by default as the arrays of QK-norm show it, or else the number of blocks,
        which is VAR's rule.

    Returns:
      The transformer and its parameters, float32, with stacked blocks.

    Raises:
      ValueError: Arrays are missing, unknown or of another shape (it lists them all), or an argument does not fit the
        arrays.
    """
    network = infer_transformer(arrays, grid_sizes, num_heads)
    template = _transformer_shapes(network)
    return network, _fill("the transformer", arrays, _transformer_entries(network), template)


def _transformer_shapes(network: Transformer) -> dict[tuple, np.ndarray]:
    inputs = jax.ShapeDtypeStruct((1, network.offsets[-1] - network.offsets[1], network.latent_channels), jnp.float32)
    return _shapes(network.init, jax.ShapeDtypeStruct((1,), jnp.int32), inputs)


def export_transformer(network: Transformer, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of VAR or M-VAR, including buffers: the inverse of `import_transformer`."""
    flat = _unstack(flatten_dict(params))
    arrays = {name: _float32(layout.to_official(np.asarray(flat[path])))
              for name, path, layout in _transformer_entries(network)}
    sizes = np.diff(network.offsets)
    level = np.repeat(np.arange(len(network.grid_sizes)), sizes)
    seen = np.greater_equal if network.sees_prefix else np.equal
    buffers: dict[str, np.ndarray] = {
        "lvl_1L": level[None],
        "attn_bias_for_masking": np.where(seen(level[:, None], level[None]), 0, -np.inf).astype(np.float32)[None, None]}
    for layer in range(network.depth):
        buffers[f"blocks.{layer}.attn.zero_k_bias"] = np.zeros(network.width, np.float32)
        if not network.sees_prefix:
            buffers[f"blocks.{layer}.attn.patch_nums"] = sizes.astype(np.int32)
    return arrays | buffers
