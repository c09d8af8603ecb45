"""The student: VAR's transformer (docs/var_facts.md) or M-VAR's (docs/mvar.md), with stacked blocks.

Training (all scales at once), the teacher (the last scales again) and cached sampling (one scale at a time) use the
same `Block` and differ only in the functions that they pass to it, through which tokens see each other.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.models.attention import KeysValues, attention, merge_heads, scale_offsets, split_heads
from refocus_jax.models.mamba import Mixer, State, init_state
from refocus_jax.models.sharding import keep_divided

MAX_LOG_SCALE = float(np.log(100.0))  # VAR's cap on the learned temperature of QK-norm
NORM_EPSILON = 1e-6
# The branches of every block, in their order. Tokens see earlier scales by attention to them (VAR), or by a mixer,
# while attention stays within their own scale (M-VAR).
ARCHITECTURES = {"var": ("prefix attention", "feed-forward"),
                 "mvar": ("scale attention", "mixer", "feed-forward")}
# What a layer keeps of earlier scales.
Cache = KeysValues | State


def layer_norm(x: jax.Array) -> jax.Array:
    """LayerNorm without affine parameters, in float32, over the last axis."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + NORM_EPSILON)


def _l2_normalize(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _scaled_normal(std: float, *factors: tuple[int, float]) -> Callable:
    """Normal initializer. Each (columns, factor) of `factors` scales the next group of columns of the last axis."""
    def init(key, shape, dtype=jnp.float32):
        value = std * jax.random.normal(key, shape, dtype)
        if factors:
            value = value * jnp.concatenate([jnp.full((n,), f, dtype) for n, f in factors]).reshape(
                (1,) * (len(shape) - 1) + (-1,))
        return value
    return init


class Block(nn.Module, kw_only=True):
    """Adaptive-LayerNorm block: branches one after another, each with scale, shift and gate.

    Attributes:
      branches: The branches, one of the values of `ARCHITECTURES`. The first is attention.
      width: Width d.
      num_heads: Number of attention heads.
      depth: Number of blocks of the network; it sets the initial standard deviation of the output layers.
      qk_norm: Whether queries and keys are normalized, with a learned temperature.
      shared_modulation: Whether all blocks share the modulations, to which each adds a vector of its own.
      gamma_init: Initial factor on the rows of the modulation that make the gates.
      dtype: Compute dtype.
    """

    width: int
    num_heads: int
    depth: int
    qk_norm: bool
    shared_modulation: bool
    gamma_init: float
    branches: tuple[str, ...] = ARCHITECTURES["var"]
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Creates the parameters."""
        d, std = self.width, (1 / (3 * self.width)) ** 0.5
        dense = dict(dtype=self.dtype, kernel_init=_scaled_normal(std))
        out = dict(dtype=self.dtype, kernel_init=_scaled_normal(std / (2 * self.depth) ** 0.5))
        self.qkv = self.param("qkv", _scaled_normal(std), (d, 3 * d))
        self.q_bias = self.param("q_bias", nn.initializers.zeros, (d,))
        self.v_bias = self.param("v_bias", nn.initializers.zeros, (d,))
        if self.qk_norm:
            self.scale_mul = self.param("scale_mul", nn.initializers.constant(np.log(4.0)), (self.num_heads,))
        self.proj = nn.Dense(d, **out)
        self.fc1 = nn.Dense(4 * d, **dense)
        self.fc2 = nn.Dense(d, **out)
        if "mixer" in self.branches:
            self.mixer = Mixer(width=d, dtype=self.dtype)
        # M-VAR scales the gates of its first two branches only.
        count = 3 * len(self.branches)
        gates, others = (2 * d, self.gamma_init), ((count - 2) * d, 0.5)
        if self.shared_modulation:
            # One vector per block is added to modulations that all blocks share.
            self.ada_gss = self.param("ada_gss", _scaled_normal(d**-0.5, gates, others), (count * d,))
        else:
            self.ada_lin = nn.Dense(count * d, dtype=self.dtype, kernel_init=_scaled_normal(std, gates, others))

    def modulation(self, condition: jax.Array) -> jax.Array:
        """Modulations of the branches.

        Args:
          condition: The class embedding (b, d), or the shared modulations (b, 6 d).

        Returns:
          Modulations (b, m, d), three per branch: the gates of all branches in order, then their scales, then their
          shifts.
        """
        if self.shared_modulation:
            value = condition.astype(jnp.float32) + self.ada_gss[None]
        else:
            value = self.ada_lin(nn.silu(condition))
        return value.reshape(value.shape[0], -1, self.width)

    def _queries_keys_values(self, h_bld: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        bias = jnp.concatenate([self.q_bias, jnp.zeros_like(self.q_bias), self.v_bias])
        qkv = h_bld @ self.qkv.astype(self.dtype) + bias.astype(self.dtype)[None, None]
        q, k, v = (split_heads(part, self.num_heads) for part in jnp.split(qkv, 3, axis=-1))
        if self.qk_norm:
            temperature = jnp.exp(jnp.minimum(self.scale_mul, MAX_LOG_SCALE))
            q = (_l2_normalize(q) * temperature[None, :, None, None]).astype(self.dtype)
            k = _l2_normalize(k).astype(self.dtype)
        else:
            q = q * (0.25 * q.shape[-1] ** -0.5)
        return q, k, v

    def __call__(self, x_bld: jax.Array, modulation_bmd: jax.Array, attend: Callable,
                 keep_ib: jax.Array | None = None, between: Callable | None = None,
                 mix: Callable | None = None) -> tuple[jax.Array, Any]:
        """Runs the block.

        Args:
          x_bld: Input.
          modulation_bmd: Result of `modulation`.
          attend: Function attend(q, k, v) -> (out, kept) of arrays (b, n, l, h), with q already scaled.
          keep_ib: Stochastic-depth factors of the branches: 0 or 1 / keep probability, per sample.
          between: Function of the state that runs after the attention branch, for the teacher's cross-attention.
          mix: Function mix(mixer, h) -> (out, kept) of the module `Mixer` and its input (b, l, d), if there is one.

        Returns:
          The output (b, l, d), and what its tokens keep for later scales: the second result of `mix` if there is a
          mixer, else that of `attend`.
        """
        modulations, count, kept = [m[:, None] for m in jnp.moveaxis(modulation_bmd, 1, 0)], len(self.branches), None
        for i, branch in enumerate(self.branches):
            gate, scale, shift = modulations[i::count]
            h = (layer_norm(x_bld) * (1 + scale) + shift).astype(self.dtype)
            if branch == "feed-forward":
                h = self.fc2(nn.gelu(self.fc1(h), approximate=True))
            elif branch == "mixer":
                assert mix is not None
                h, kept = mix(self.mixer, h)
            else:
                out, kept = attend(*self._queries_keys_values(h))
                h = self.proj(merge_heads(out))
            keep = 1.0 if keep_ib is None else keep_ib[i][:, None, None]
            x_bld = x_bld + (keep * gate * h).astype(x_bld.dtype)
            if i == 0 and between is not None:
                x_bld = between(x_bld)
        return x_bld, kept


# What a block keeps of its forward pass, by the name of the setting.
REMAT = {"none": jax.checkpoint_policies.everything_saveable, "blocks": jax.checkpoint_policies.nothing_saveable,
         "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


class Captured(NamedTuple):
    """Inner state of the last M blocks of a base network, from which the teacher continues.

    Attributes:
      modulations: Modulations of the blocks, (M, b, m, d).
      class_embedding: Class embedding, which conditions the head, (b, d).
      inputs: Input of the first of the blocks, (b, L, d).
      caches: What the blocks keep, stacked: VAR the keys and values of all tokens, (M, b, n, L, h); M-VAR the mixers'
        states before the scale at which the teacher begins.
      outputs: Outputs of the blocks, (M, b, L, d).
    """

    modulations: jax.Array
    class_embedding: jax.Array
    inputs: jax.Array
    caches: Cache
    outputs: jax.Array


class Transformer(nn.Module, kw_only=True):
    """The transformer of VAR or M-VAR over K token maps.

    The parameter `blocks` holds the parameters of all blocks, stacked along a leading layer axis. `_run` passes them to
    `jax.lax.scan`, with `jax.checkpoint` around its body, and not to `flax.linen.scan` and `flax.linen.remat`, because
    several callers need the stacked arrays themselves and run the blocks in different ways:

      - `__call__` scans the first blocks and the last M separately, over slices of the stack, and records the inner
        state of the last M (`Captured`).
      - The teacher runs the last M blocks again, one at a time, with cross-attention inside each (`teacher.teach`).
      - The sampler scans the whole stack with what layers keep of earlier scales, or runs the blocks one at a time
        (`sampling.decode.decode_scale`).
      - `official_var` stacks the arrays of an official checkpoint, which has separate blocks, and splits them again.

    All who run blocks apply the unbound module `block` to the parameters of one layer. `jax.lax.scan` traces its body
    once for all layers.

    Attributes:
      grid_sizes: Sides of the token maps, coarse to fine.
      vocab_size: Number V of codes.
      latent_channels: Length of the tokenizer's codes.
      num_classes: Number of classes without the null class, which has the index num_classes.
      depth: Number of blocks.
      width: Width d.
      num_heads: Number of attention heads.
      architecture: One of `ARCHITECTURES`.
      qk_norm: Whether queries and keys are normalized, with a learned temperature.
      shared_modulation: Whether all blocks share the modulations, to which each adds a vector of its own.
      gamma_init: Initial factor on the rows of the modulation that make the gates.
      drop_path_rate: Stochastic-depth rate of the last block; the rate grows linearly from 0 at the first.
      remat: What the backward pass computes again, one of `REMAT`: nothing, whole blocks, or everything in them except
        the matrix products.
      attention: One of `attention.IMPLEMENTATIONS`, for all scales at once. Cached sampling does not use it.
      dtype: Compute dtype.
    """

    grid_sizes: Sequence[int]
    vocab_size: int
    latent_channels: int
    num_classes: int
    depth: int
    width: int
    num_heads: int
    architecture: str = "var"
    qk_norm: bool = True
    shared_modulation: bool = False
    gamma_init: float = 1e-3
    drop_path_rate: float = 0.0
    remat: str = "none"
    attention: str = "prefix"
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        """Checks the architecture.

        Raises:
          ValueError: There is no such architecture, or its modulations cannot be shared.
        """
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"generator.architecture is {self.architecture!r}; choose one of "
                             f"{', '.join(ARCHITECTURES)}")
        if self.architecture != "var" and self.shared_modulation:
            raise ValueError(f"generator.model.shared_modulation is True, which is not defined for "
                             f"generator.architecture {self.architecture!r}; set it False, or choose 'var'")
        super().__post_init__()

    @property
    def offsets(self) -> tuple[int, ...]:
        """Index of the first token of each scale, then the total length; see `attention.scale_offsets`."""
        return scale_offsets(self.grid_sizes)

    @property
    def block(self) -> Block:
        """One unbound block, whose parameters are slices of `blocks`."""
        return Block(width=self.width, num_heads=self.num_heads, depth=self.depth, qk_norm=self.qk_norm,
                     shared_modulation=self.shared_modulation, gamma_init=self.gamma_init,
                     branches=ARCHITECTURES[self.architecture], dtype=self.dtype, parent=None)

    @property
    def sees_prefix(self) -> bool:
        """Whether attention sees all earlier scales, not only the token's own."""
        return "prefix attention" in self.block.branches

    def setup(self):
        """Creates the parameters."""
        d, std = self.width, (1 / (3 * self.width)) ** 0.5
        normal = _scaled_normal(std)
        self.class_embedding = self.param("class_embedding", normal, (self.num_classes + 1, d))
        self.position_start = self.param("position_start", normal, (self.grid_sizes[0] ** 2, d))
        self.position = self.param("position", normal, (self.offsets[-1], d))
        self.level_embedding = self.param("level_embedding", normal, (len(self.grid_sizes), d))
        self.word_embed = nn.Dense(d, dtype=self.dtype, kernel_init=normal)
        if self.shared_modulation:
            self.shared_ada_lin = nn.Dense(6 * d, dtype=self.dtype, kernel_init=normal)
        self.blocks = self.param("blocks", self._init_blocks)
        self.head_nm = nn.Dense(2 * d, dtype=self.dtype, kernel_init=_scaled_normal(0.5 * std))
        self.head = nn.Dense(self.vocab_size, dtype=self.dtype, kernel_init=_scaled_normal(0.02 * std),
                             dot_general=_float32_output)

    def _init_blocks(self, key: jax.Array):
        x = jnp.zeros((1, 1, self.width))
        condition = jnp.zeros((1, self.width * (6 if self.shared_modulation else 1)))

        def init_block(key):
            def touch(block):
                return block(x, block.modulation(condition), lambda q, k, v: (v, None),
                             mix=lambda mixer, h: mixer(h, self.init_cache(1), (1,), 1))
            return nn.init(touch, self.block)(key)["params"]

        return jax.vmap(init_block)(jax.random.split(key, self.depth))

    def start(self, labels_b: jax.Array) -> jax.Array:
        """Input of the first scale, (b, p_1^2, d)."""
        n = self.offsets[1]
        x = self.class_embedding[labels_b][:, None] + self.position_start[None]
        return (x + (self.level_embedding[:1] + self.position[:n])[None]).astype(self.dtype)

    def words(self, inputs_blc: jax.Array, first_scale: int, num_scales: int) -> jax.Array:
        """Input of some consecutive scales after the first.

        Args:
          inputs_blc: Cumulative latent before each of these scales, resized to its side and flattened.
          first_scale: Index of the first of them.
          num_scales: How many scales.

        Returns:
          The input, (b, l, d).
        """
        start, stop = self.offsets[first_scale], self.offsets[first_scale + num_scales]
        grids = self.grid_sizes[first_scale:first_scale + num_scales]
        level = np.repeat(np.arange(first_scale, first_scale + num_scales), np.square(grids))
        place = self.level_embedding[level] + self.position[start:stop]
        return (self.word_embed(inputs_blc) + place[None]).astype(self.dtype)

    def conditions(self, labels_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Modulations of all blocks (N, b, m, d), and the class embedding (b, d), which conditions the head.

        They are computed for all blocks in advance, layer by layer. So a sampler computes them only once, and the
        gradient of the class embedding is summed in the same order, however the blocks are run.
        """
        embedding = keep_divided(self.class_embedding[labels_b])
        condition = embedding
        if self.shared_modulation:
            condition = self.shared_ada_lin(nn.silu(embedding)).astype(jnp.float32)

        def modulation(params):
            return keep_divided(self.block.apply({"params": params}, condition, method="modulation"))

        return jax.lax.map(modulation, self.blocks), embedding

    def logits(self, x_bld: jax.Array, class_embedding_bd: jax.Array) -> jax.Array:
        """Logits (b, l, V), float32, of the output of the last block."""
        scale, shift = jnp.split(self.head_nm(nn.silu(class_embedding_bd))[:, None], 2, axis=-1)
        x_bld = (layer_norm(keep_divided(x_bld)) * (1 + scale) + shift).astype(self.dtype)
        return keep_divided(self.head(x_bld).astype(jnp.float32))

    def init_cache(self, batch: int) -> Cache:
        """What a layer keeps before the first scale; keys and values have room for all tokens. All zeros."""
        if self.sees_prefix:
            shape = (batch, self.num_heads, self.offsets[-1], self.width // self.num_heads)
            return KeysValues(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        return init_state(self.width, batch, self.dtype)

    def exchange(self, first_scale: int, past: Any, num_before: int) -> tuple[Callable, Callable]:
        """Makes `attend` and `mix` for a `Block` that gets all tokens from some scale on.

        Args:
          first_scale: The scale.
          past: What the layer keeps of the scales before it: a `State`, or `KeysValues` that may hold later scales too;
            None at the first scale.
          num_before: Number of scales, of those that the block gets, after which the mixer's state is returned.

        Returns:
          The two functions. `attend` returns keys and values, of earlier scales too, `mix` a `State`.
        """
        start = self.offsets[first_scale]
        own = [offset - start for offset in self.offsets[first_scale:]]

        def attend(q, k, v):
            ranges = list(itertools.pairwise(own))
            if self.sees_prefix:
                ranges = [(0, end) for end in self.offsets[first_scale + 1:]]
                if past is not None:
                    k, v = (jnp.concatenate([earlier[:, :, :start], new], axis=2)
                            for earlier, new in zip(past, (k, v), strict=True))
            return attention(q, k, v, own, ranges, self.attention), KeysValues(k, v)

        def mix(mixer, h):
            state = jax.tree.map(keep_divided, self.init_cache(h.shape[0])) if past is None else past
            return mixer(h, state, np.diff(own).tolist(), num_before)

        return attend, mix

    def _run(self, x_bld, layers, capture_before: int | None = None):
        """Runs stacked blocks over all scales.

        Args:
          x_bld: Input.
          layers: Stacked parameters, modulations and stochastic-depth factors of the blocks.
          capture_before: The scale before which the inner state of the blocks is returned, if at all.

        Returns:
          The output; and what the blocks keep and their outputs, stacked, or None without `capture_before`.
        """
        attend, mix = self.exchange(0, None, capture_before or len(self.grid_sizes))

        def body(x, layer):
            params, modulation, keep_ib = layer
            x, kept = self.block.apply({"params": params}, keep_divided(x), modulation, attend, keep_ib, mix=mix)
            return x, None if capture_before is None else (kept, x)

        if self.remat != "none":
            body = jax.checkpoint(body, policy=REMAT[self.remat])
        return jax.lax.scan(body, x_bld, layers)

    def __call__(self, labels_b: jax.Array, inputs_blc: jax.Array, keep_nib: jax.Array | None = None,
                 num_captured: int = 0, capture_before: int | None = None) -> tuple[jax.Array, Captured | None]:
        """Teacher-forced logits of all tokens.

        Args:
          labels_b: Classes, int32; num_classes is the null class.
          inputs_blc: Inputs (b, L - p_1^2, latent_channels) from `MultiScaleQuantizer.generator_inputs`.
          keep_nib: Stochastic-depth factors from `drop_path_factors`, or None outside training.
          num_captured: Number of last blocks whose inner state is returned.
          capture_before: The scale, 1 or more, before which the states of mixers are returned; default after the last.

        Returns:
          The logits, (b, L, V) float32, and a `Captured` if num_captured > 0, else None.
        """
        x = jnp.concatenate([self.start(labels_b), self.words(inputs_blc, 1, len(self.grid_sizes) - 1)], axis=1)
        modulations, embedding = self.conditions(labels_b)
        layers, split = (self.blocks, modulations, keep_nib), self.depth - num_captured
        x, _ = self._run(x, jax.tree.map(lambda a: a[:split], layers))
        if not num_captured:
            return self.logits(x, embedding), None
        inputs = x
        x, (caches, outputs) = self._run(x, jax.tree.map(lambda a: a[split:], layers),
                                         capture_before or len(self.grid_sizes))
        return self.logits(x, embedding), Captured(modulations[split:], embedding, inputs, caches, outputs)

    def drop_path_factors(self, key: jax.Array, batch: int) -> jax.Array | None:
        """Draws stochastic depth per sample and branch: factors (depth, i, b), each 0 or 1 / keep probability.

        Without stochastic depth (drop_path_rate is 0) it returns None.
        """
        if not self.drop_path_rate:
            return None
        keep = 1 - jnp.linspace(0, self.drop_path_rate, self.depth)[:, None, None]
        return jax.random.bernoulli(key, keep, (self.depth, len(self.block.branches), batch)) / keep


def _float32_output(lhs, rhs, dimension_numbers, **kwargs):
    """Matrix product of the head: operands in the compute dtype, accumulation and result in float32."""
    return jax.lax.dot_general(lhs, rhs, dimension_numbers, precision=kwargs.get("precision"),
                               preferred_element_type=jnp.float32)
