"""The teacher: the last M blocks run again over the last scales, with alias-gate cross-attention (Eqs. 9-11).

It stands on a base network's `Captured` state: the student's own by default, or that of a second network
(`generator.teacher.share_weights = false`). Keys and values of earlier scales are the base's, exactly.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.models.attention import attention, merge_heads, split_heads
from refocus_jax.models.bound import Bound
from refocus_jax.models.transformer import Captured, layer_norm


class AliasGateCrossAttention(nn.Module):
    """Z = X + gate * Attn(Q = ln(X) W_Q, K = E W_K, V = E W_V) W_O with inner width d / 2.

    The gate is sigmoid(linear(X)), Eq. 11, or absent, Eq. 10. W_O starts at zero, so Z starts as X.
    """

    width: int
    num_heads: int
    gate: bool
    attention: str = "prefix"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bld: jax.Array, memory_bmd: jax.Array, query_offsets: Sequence[int],
                 key_ends: Sequence[int]) -> tuple[jax.Array, jax.Array | None]:
        """Z, and the gate in [0, 1], both (b, l, d); the gate is None where there is none."""
        inner = self.width // 2
        normal = nn.initializers.normal((1 / (3 * self.width)) ** 0.5)

        def project(name, value):
            value = nn.Dense(inner, use_bias=False, dtype=self.dtype, kernel_init=normal, name=name)(value)
            return split_heads(value, self.num_heads)

        q = project("query", layer_norm(x_bld).astype(self.dtype)) * (inner // self.num_heads) ** -0.5
        k, v = project("key", memory_bmd), project("value", memory_bmd)
        out = attention(q, k, v, query_offsets, key_ends, self.attention)
        out = nn.Dense(self.width, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.zeros,
                       name="out")(merge_heads(out))
        gate = None
        if self.gate:
            gate = nn.sigmoid(nn.Dense(self.width, dtype=self.dtype, kernel_init=normal, name="gate")(x_bld))
            out = gate * out
        return x_bld + out.astype(x_bld.dtype), gate


class AliasHead(nn.Module):
    """The teacher's own parameters: E_a, and one cross-attention per alias block."""

    grid_sizes: Sequence[int]
    width: int
    num_heads: int
    num_blocks: int
    gate: bool
    attention: str = "prefix"
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        normal = nn.initializers.normal((1 / (3 * self.width)) ** 0.5)
        scales = len(self.grid_sizes) - 1
        self.alias_embed = nn.Dense(self.width, dtype=self.dtype, kernel_init=normal)
        self.position = self.param("position", normal, (sum(p * p for p in self.grid_sizes[:-1]), self.width))
        self.level_embedding = self.param("level_embedding", normal, (scales, self.width))
        self.cross = [AliasGateCrossAttention(self.width, self.num_heads, self.gate, self.attention, self.dtype)
                      for _ in range(self.num_blocks)]

    def embed(self, vectors_bmc: jax.Array) -> jax.Array:
        """E_a: code vectors of a_1 ... a_{K-1}, flat, to (b, m, d)."""
        level = np.repeat(np.arange(len(self.grid_sizes) - 1), np.square(self.grid_sizes[:-1]))
        return self.alias_embed(vectors_bmc) + (self.level_embedding[level] + self.position)[None].astype(self.dtype)

    def attend(self, block: int, x_bld, memory_bmd, query_offsets, key_ends) -> tuple[jax.Array, jax.Array | None]:
        return self.cross[block](x_bld, memory_bmd, query_offsets, key_ends)

    def __call__(self, vectors_bmc: jax.Array) -> jax.Array:
        """Touches every parameter, for initialization."""
        memory = self.embed(vectors_bmc)
        x = memory[:, :1]
        for block in range(self.num_blocks):
            x, _ = self.attend(block, x, memory, (0, 1), (memory.shape[1],))
        return x


class TeacherOutput(NamedTuple):
    """Over the tokens of the last `num_alias_scales` scales only."""

    logits: jax.Array  # (b, l, V) float32
    features: jax.Array  # (M, b, l, d), output of each alias block
    gates: jax.Array | None  # (M, b, l, d) in [0, 1], Eq. 11's alpha of each alias block; None without a gate


def teach(base: Bound, head: Bound, captured: Captured, alias_vectors_bmc: jax.Array, num_alias_scales: int,
          keep_n2b: jax.Array | None = None) -> TeacherOutput:
    """Runs the last M blocks again, over the last scales, with alias evidence.

    A query at scale k sees the alias tokens of scales j < k alone: those of scales already seen, so the teacher is a
    proper autoregressive model.

    Args:
      base, captured: the base network, a `Transformer`, and what its own pass left.
      head: E_a and the cross-attentions, an `AliasHead`.
      alias_vectors_bmc: code vectors of a_1 ... a_{K-1}, flat.
      num_alias_scales: S, how many of the last scales are taught, at most K - 1.
      keep_n2b: the base pass's stochastic-depth factors.
    """
    network, offsets = base.module, base.module.offsets
    start = offsets[-1 - num_alias_scales]
    tail = [offset - start for offset in offsets[-1 - num_alias_scales:]]
    seen_alias = offsets[-1 - num_alias_scales:-1]  # alias tokens share the offsets of structure tokens
    seen_structure = offsets[-num_alias_scales:]

    memory = head("embed", alias_vectors_bmc)
    x, features, gates = captured.inputs[:, start:], [], []
    for i in range(head.module.num_blocks):
        layer = i - head.module.num_blocks  # from the end: `captured` may hold more blocks than the teacher has
        params = {"params": jax.tree.map(lambda a, layer=layer: a[layer], base.params["blocks"])}

        def attend(q, k, v, layer=layer):
            k = jnp.concatenate([captured.keys[layer, :, :, :start], k], axis=2)
            v = jnp.concatenate([captured.values[layer, :, :, :start], v], axis=2)
            return attention(q, k, v, tail, seen_structure, network.attention), None

        def cross(x, i=i):
            x, gate = head("attend", i, x, memory, tail, seen_alias)
            gates.append(gate)
            return x

        keep = None if keep_n2b is None else keep_n2b[layer]
        x, _ = network.block.apply(params, x, captured.modulations[layer], attend, keep, cross)
        features.append(x)
    logits = base("logits", x, captured.class_embedding)
    return TeacherOutput(logits, jnp.stack(features), jnp.stack(gates) if head.module.gate else None)
