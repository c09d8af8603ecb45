import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.models import attention
from refocus_jax.models.attention import prefix_attention, scale_offsets
from refocus_jax.models.bound import Bound
from refocus_jax.models.teacher import AliasHead, teach
from refocus_jax.runtime import mesh as mesh_lib
from tests.fixtures import small


def masked_attention(q, k, v, mask_lm):
    """The textbook form in float64: softmax over all keys, with -inf where the mask is False."""
    logits = np.einsum("bnlh,bnmh->bnlm", q, k, dtype=np.float64)
    logits = np.where(mask_lm, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bnlm,bnmh->bnlh", weights / weights.sum(-1, keepdims=True), v)


def test_scale_offsets():
    assert scale_offsets((1, 2, 3)) == (0, 1, 5, 14)


def prefixes(*ends):
    return tuple((0, end) for end in ends)


# Self-attention over all scales, with lengths below, at and beyond what a kernel pads to; and what the teacher does:
# its last two scales look at all structure tokens, and at the alias tokens of earlier scales. M-VAR's scales look only
# at themselves.
CASES = {"three scales": ((0, 1, 5, 14), prefixes(1, 5, 14)), "84 tokens": ((0, 4, 20, 84), prefixes(4, 20, 84)),
         "340 tokens": ((0, 4, 20, 84, 340), prefixes(4, 20, 84, 340)), "earlier scales": ((0, 4, 13), prefixes(1, 5)),
         "last scales": ((0, 169, 425), prefixes(424, 680)), "own scale": ((0, 1, 5, 14), ((0, 1), (1, 5), (5, 14))),
         "own of 340": ((0, 4, 20, 84, 340), ((0, 4), (4, 20), (20, 84), (84, 340)))}


@pytest.fixture
def kernels_on_cpu(monkeypatch):
    """What runs on accelerators, made to run here: the Splash kernel interpreted, cuDNN's arguments given to XLA.

    Hands out a list which grows by the number of queries of each call that is traced.
    """
    calls = []

    def replace(name, **settings):
        kernel = getattr(attention, name)

        def run(q, *args):
            calls.append(q.shape[2])
            return kernel(q, *args, **settings)

        monkeypatch.setattr(attention, name, run)

    replace("splash_attention", interpret=True)
    replace("cudnn_attention", implementation="xla")
    monkeypatch.setattr(attention, "_CUDNN_MIN_QUERIES", 2)
    return calls


@pytest.mark.parametrize("name", attention.IMPLEMENTATIONS)
@pytest.mark.parametrize("query_offsets, key_ranges", CASES.values(), ids=CASES)
def test_every_implementation_is_masked_attention(query_offsets, key_ranges, name, kernels_on_cpu):
    """In its values, and in its gradient as of the textbook form."""
    queries, keys = query_offsets[-1], key_ranges[-1][1]
    q, k, v, weight = (small.random(seed, 2, 2, n, 8) for seed, n in enumerate((queries, keys, keys, queries)))
    query_scale = np.searchsorted(query_offsets, np.arange(queries), side="right") - 1
    first, end = np.asarray(key_ranges)[query_scale].T[..., None]
    mask = (np.arange(keys)[None] >= first) & (np.arange(keys)[None] < end)

    def textbook(q, k, v):
        logits = jnp.where(mask[None, None], jnp.einsum("bnlh,bnmh->bnlm", q, k), -jnp.inf)
        return jnp.vdot(jnp.einsum("bnlm,bnmh->bnlh", jax.nn.softmax(logits), v), weight)

    def ours(q, k, v):
        out = attention.attention(q, k, v, query_offsets, key_ranges, name)
        return jnp.vdot(out, weight), out

    gradient, out = jax.jit(jax.grad(ours, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    assert bool(kernels_on_cpu) == (name != "prefix")
    np.testing.assert_allclose(out, masked_attention(q, k, v, mask), atol=1e-5)
    expected = jax.jit(jax.grad(textbook, argnums=(0, 1, 2)))(q, k, v)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), gradient, expected)


def test_an_unknown_implementation_is_named():
    q = small.random(0, 1, 2, 5, 4)
    with pytest.raises(ValueError, match="attention is 'flash'; choose one of .*splash"):
        attention.attention(q, q, q, (0, 1, 5), prefixes(1, 5), "flash")


@pytest.mark.parametrize("name, last", [("splash", 13), ("cudnn", 9)])
def test_student_and_teacher_on_every_implementation(name, last, kernels_on_cpu):
    labels, inputs = np.asarray([1, 3], np.int32), small.random(0, 2, small.LENGTH - 1, small.CHANNELS)
    vectors = small.random(1, 2, small.OFFSETS[-2], small.CHANNELS)
    params = small.transformer_params(small.transformer())
    plain = AliasHead(grid_sizes=small.GRIDS, width=small.WIDTH, num_heads=1, num_blocks=2, gate=True)
    head_params = small.random_params(plain.init, vectors)["params"]

    @functools.partial(jax.jit, static_argnums=0)
    def logits(name):
        network, head = small.transformer(attention=name), plain.clone(attention=name)
        student, captured = network.apply({"params": params}, labels, inputs, None, 2)
        return student, teach(Bound(network, params), Bound(head, head_params), captured, vectors, 2).logits

    expected = logits("prefix")
    assert not kernels_on_cpu
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), logits(name), expected)
    # Both attentions of the two blocks of the teacher, over scales of 4 and 9 tokens at once or one by one.
    assert kernels_on_cpu.count(last) >= 4 and kernels_on_cpu.count(last) < len(kernels_on_cpu)  # and the student


@pytest.mark.parametrize("batch", [4, 3], ids=["divided", "not divisible"])
def test_splash_on_two_devices_is_that_of_one(batch, kernels_on_cpu):
    q, k, v = (small.random(seed, batch, 2, 14, 8) for seed in range(3))

    def loss(q, k, v):
        return jnp.sum(jnp.square(attention.attention(q, k, v, (0, 1, 5, 14), prefixes(1, 5, 14), "splash")))

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2))
    mesh = mesh_lib.make_mesh(data=1, fsdp=-1)
    sharding = mesh_lib.batch_sharding(mesh) if batch % mesh.size == 0 else mesh_lib.replicated(mesh)
    got = jax.jit(mesh_lib.on_mesh(mesh, gradient))(*jax.device_put((q, k, v), sharding))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, jax.jit(gradient)(q, k, v))


@pytest.mark.parametrize("queries, keys", [(64, 155), (169, 424), (441, 1017)])
def test_jax_takes_our_lengths_for_cudnn(queries, keys, monkeypatch):
    """Its checks run before any GPU is needed; only the version of a cuDNN that is not here has to be made up."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    q, k = (jax.ShapeDtypeStruct((2, 3, n, 64), jnp.bfloat16) for n in (queries, keys))

    def loss(q, k, v):
        return attention.cudnn_attention(q, k, v).astype(jnp.float32).sum()

    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(q, k, k)
    assert "dot_product_attention_bwd" in str(program)
    assert [a.shape for a in program.out_avals] == [q.shape, k.shape, k.shape]


def test_which_heads_cudnn_takes():
    assert attention.cudnn_fits(64, jnp.dtype("bfloat16")) and attention.cudnn_fits(128, jnp.dtype("float16"))
    assert not any(attention.cudnn_fits(*heads) for heads in (
        (64, jnp.dtype("float32")), (136, jnp.dtype("bfloat16")), (60, jnp.dtype("bfloat16"))))


def test_attention_in_pieces_is_the_same(monkeypatch):
    """What a CPU does with logits beyond its caches, what others do with those of long sequences; and the gradient."""
    q, k, v = (small.random(seed, 3, 2, n, 4) for seed, n in enumerate((5, 7, 7)))

    def value_and_gradient(attend):
        def loss(q, k, v):
            out = attend(q, k, v)
            return jnp.sum(jnp.square(out)), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    def logits_shape(platform):
        """The largest product of queries and keys in the program for a platform."""
        attend = jax.jit(lambda *qkv: attention.dense_attention(*qkv))  # traced again
        program = attend.trace(q, k, v).lower(lowering_platforms=(platform,)).as_text()
        return max(math.prod(map(int, shape.split("x"))) for shape in re.findall(r"tensor<([0-9x]+x5x7)xf32>", program))

    expected = value_and_gradient(attention.dense_attention)
    assert logits_shape("cpu") == logits_shape("cuda") == 3 * 2 * 5 * 7
    monkeypatch.setattr(attention, "_CPU_LOGITS_BYTES", 0)
    assert (logits_shape("cpu"), logits_shape("cuda")) == (2 * 5 * 7, 3 * 2 * 5 * 7)
    monkeypatch.setattr(attention, "_HEADS_LOGITS_BYTES", 0)
    assert (logits_shape("cpu"), logits_shape("cuda")) == (2 * 5 * 7, 3 * 5 * 7)
    for attend in (attention.dense_attention, attention._head_by_head):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                     value_and_gradient(attend), expected)


def test_heads_are_split_and_merged():
    x = small.random(0, 2, 3, 8)
    heads = attention.split_heads(x, 2)
    assert heads.shape == (2, 2, 3, 4)
    np.testing.assert_array_equal(heads[:, 1, :, 0], x[:, :, 4])
    np.testing.assert_array_equal(attention.merge_heads(heads), x)


def test_prefix_attention_needs_one_range_per_group_of_queries():
    q = small.random(0, 1, 2, 5, 4)
    with pytest.raises(ValueError):
        jax.eval_shape(lambda q: prefix_attention(q, q, q, (0, 1, 5), prefixes(1, 5, 5)), q)
