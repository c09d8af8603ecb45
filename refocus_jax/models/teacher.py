"""The teacher: the last M blocks run again over the last scales, with alias-gate cross-attention (Eqs. 9-11).

It continues from the `Captured` state of a base network: the student by default, or a second network
(`generator.teacher.share_weights = false`). For earlier scales it uses the keys and values of the base unchanged.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.models.attention import attention, merge_heads, split_heads
from refocus_jax.models.bound import Bound
from refocus_jax.models.transformer import Captured, Transformer, layer_norm


class AliasGateCrossAttention(nn.Module, kw_only=True):
    """Cross-attention to alias tokens: Z = X + gate * Attn(Q = ln(X) W_Q, K = E W_K, V = E W_V) W_O.

    The inner width is d / 2. The gate is sigmoid(linear(X)), Eq. 11, or absent, Eq. 10. W_O starts at zero, so Z starts
    as X.

    Attributes:
      width: Width d of the transformer.
      num_heads: Number of attention heads.
      gate: Whether there is a gate.
      attention: One of `attention.IMPLEMENTATIONS`.
      dtype: Compute dtype.
    """

    width: int
    num_heads: int
    gate: bool
    attention: str = "prefix"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bld: jax.Array, memory_bmd: jax.Array, query_offsets: Sequence[int],
                 key_ranges: Sequence[tuple[int, int]]) -> tuple[jax.Array, jax.Array | None]:
        """Applies the cross-attention.

        Args:
          x_bld: X, the state of the queries.
          memory_bmd: E, the embedded alias tokens.
          query_offsets: As in `attention.attention`.
          key_ranges: As in `attention.attention`.

        Returns:
          Z, and the gate in [0, 1], both (b, l, d); without a gate the second is None.
        """
        inner = self.width // 2
        normal = nn.initializers.normal((1 / (3 * self.width)) ** 0.5)

        def project(name, value):
            value = nn.Dense(inner, use_bias=False, dtype=self.dtype, kernel_init=normal, name=name)(value)
            return split_heads(value, self.num_heads)

        q = project("query", layer_norm(x_bld).astype(self.dtype)) * (inner // self.num_heads) ** -0.5
        k, v = project("key", memory_bmd), project("value", memory_bmd)
        out = attention(q, k, v, query_offsets, key_ranges, self.attention)
        out = nn.Dense(self.width, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.zeros,
                       name="out")(merge_heads(out))
        gate = None
        if self.gate:
            gate = nn.sigmoid(nn.Dense(self.width, dtype=self.dtype, kernel_init=normal, name="gate")(x_bld))
            out = gate * out
        return x_bld + out.astype(x_bld.dtype), gate


class AliasHead(nn.Module, kw_only=True):
    """The teacher's own parameters: the embedding E_a of alias tokens, and one cross-attention per alias block.

    Attributes:
      grid_sizes: Sides of the token maps, coarse to fine.
      width: Width d of the transformer.
      num_heads: Number of attention heads.
      num_blocks: Number M of alias blocks.
      gate: Whether the cross-attentions have a gate.
      attention: One of `attention.IMPLEMENTATIONS`.
      dtype: Compute dtype.
    """

    grid_sizes: Sequence[int]
    width: int
    num_heads: int
    num_blocks: int
    gate: bool
    attention: str = "prefix"
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Creates the embeddings and the cross-attentions."""
        normal = nn.initializers.normal((1 / (3 * self.width)) ** 0.5)
        scales = len(self.grid_sizes) - 1
        self.alias_embed = nn.Dense(self.width, dtype=self.dtype, kernel_init=normal)
        self.position = self.param("position", normal, (sum(p * p for p in self.grid_sizes[:-1]), self.width))
        self.level_embedding = self.param("level_embedding", normal, (scales, self.width))
        self.cross = [AliasGateCrossAttention(width=self.width, num_heads=self.num_heads, gate=self.gate,
                                              attention=self.attention, dtype=self.dtype)
                      for _ in range(self.num_blocks)]

    def embed(self, vectors_bmc: jax.Array) -> jax.Array:
        """Applies E_a to the code vectors of a_1 ... a_{K-1}, flat: (b, m, c) to (b, m, d)."""
        level = np.repeat(np.arange(len(self.grid_sizes) - 1), np.square(self.grid_sizes[:-1]))
        return self.alias_embed(vectors_bmc) + (self.level_embedding[level] + self.position)[None].astype(self.dtype)

    def attend(self, block: int, x_bld, memory_bmd, query_offsets, key_ranges) -> tuple[jax.Array, jax.Array | None]:
        """Applies the cross-attention of alias block number `block`; see `AliasGateCrossAttention`."""
        return self.cross[block](x_bld, memory_bmd, query_offsets, key_ranges)

    def __call__(self, vectors_bmc: jax.Array) -> jax.Array:
        """Uses every parameter once, for initialization."""
        memory = self.embed(vectors_bmc)
        x = memory[:, :1]
        for block in range(self.num_blocks):
            x, _ = self.attend(block, x, memory, (0, 1), [(0, memory.shape[1])])
        return x


class TeacherOutput(NamedTuple):
    """Output of the teacher over the tokens of the last `num_alias_scales` scales only.

    Attributes:
      logits: Logits, (b, l, V) float32.
      features: Output of each alias block, (M, b, l, d).
      gates: The gate alpha of Eq. 11 of each alias block, (M, b, l, d) in [0, 1]; None without a gate.
    """

    logits: jax.Array
    features: jax.Array
    gates: jax.Array | None


def teach(base: Bound[Transformer], head: Bound[AliasHead], captured: Captured, alias_vectors_bmc: jax.Array,
          num_alias_scales: int, keep_nib: jax.Array | None = None) -> TeacherOutput:
    """Runs the last M blocks again, over the last scales, with alias evidence.

    A query at scale k sees only the alias tokens of scales j < k, which have been seen already. So the teacher is a
    proper autoregressive model.

    Args:
      base: The base network.
      head: The embedding E_a and the cross-attentions.
      captured: The state that the forward pass of the base network has captured.
      alias_vectors_bmc: Code vectors of a_1 ... a_{K-1}, flat.
      num_alias_scales: Number S of last scales that are taught, at most K - 1.
      keep_nib: Stochastic-depth factors of the forward pass of the base network.

    Returns:
      Logits, features and gates over the last S scales.
    """
    network, offsets = base.module, base.module.offsets
    first_scale = len(network.grid_sizes) - num_alias_scales
    start = offsets[first_scale]
    tail = [offset - start for offset in offsets[first_scale:]]
    seen_alias = [(0, end) for end in offsets[first_scale:-1]]  # alias tokens share the offsets of structure tokens

    memory = head("embed", alias_vectors_bmc)
    x, features, gates = captured.inputs[:, start:], [], []
    for i in range(head.module.num_blocks):
        # Counted from the end, because `captured` may hold more blocks than the teacher has.
        layer = i - head.module.num_blocks
        params = {"params": jax.tree.map(lambda a, layer=layer: a[layer], base.params["blocks"])}

        past = jax.tree.map(lambda a, layer=layer: a[layer], captured.caches)
        attend, mix = network.exchange(first_scale, past, num_alias_scales)

        def cross(x, i=i):
            x, gate = head("attend", i, x, memory, tail, seen_alias)
            gates.append(gate)
            return x

        keep = None if keep_nib is None else keep_nib[layer]
        x, _ = network.block.apply(params, x, captured.modulations[layer], attend, keep, cross, mix)
        features.append(x)
    logits = base("logits", x, captured.class_embedding)
    return TeacherOutput(logits, jnp.stack(features), jnp.stack(gates) if head.module.gate else None)
