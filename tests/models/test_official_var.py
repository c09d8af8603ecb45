import jax
import numpy as np
import pytest

from refocus_jax.models import official_var
from refocus_jax.models.official_var import export_tokenizer, export_transformer, import_tokenizer, import_transformer
from tests.fixtures import official, small


@pytest.fixture(scope="module", params=official.NAMES)
def checkpoint(request) -> official.Official:
    return official.load(request.param)


def grids(checkpoint) -> tuple[int, ...]:
    return tuple(checkpoint.settings["patch_nums"])


def assert_weights(got, expected):
    """All names but buffers, shapes, types and values, bit for bit."""
    got = {name: array for name, array in got.items() if name.rsplit(".", 1)[-1] not in official_var.BUFFERS}
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == np.float32 and got[name].shape == array.shape, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_official_weights_come_back(checkpoint):
    assert_weights(export_tokenizer(*import_tokenizer(checkpoint.tokenizer, grids(checkpoint))), checkpoint.tokenizer)
    assert_weights(export_transformer(*import_transformer(checkpoint.transformer, grids(checkpoint))),
                   checkpoint.transformer)


def test_buffers_are_written_and_tell_the_grids(checkpoint):
    """Names, shapes and values of the buffers that VAR's classes register."""
    arrays = export_transformer(*import_transformer(checkpoint.transformer, grids(checkpoint)))
    length, width = sum(p * p for p in grids(checkpoint)), checkpoint.settings["width"]
    assert arrays["lvl_1L"].dtype == np.int64 and arrays["lvl_1L"].shape == (1, length)
    assert arrays["lvl_1L"][0, :6].tolist() == [0, 1, 1, 1, 1, 2]
    mask = arrays["attn_bias_for_masking"]
    assert mask.shape == (1, 1, length, length) and mask.dtype == np.float32
    assert mask[0, 0, 1, :6].tolist() == [0, 0, 0, 0, 0, -np.inf] and not mask[0, 0, -1].any()
    for layer in range(checkpoint.settings["depth"]):
        assert arrays[f"blocks.{layer}.attn.zero_k_bias"].shape == (width,)
    network, params = import_transformer(arrays)  # without being told
    assert network.grid_sizes == grids(checkpoint)
    assert_weights(export_transformer(network, params), checkpoint.transformer)

    arrays = export_tokenizer(*import_tokenizer(checkpoint.tokenizer, grids(checkpoint)))
    assert arrays["quantize.ema_vocab_hit_SV"].shape == (len(grids(checkpoint)), checkpoint.settings["vocab_size"])
    import_tokenizer(arrays, grids(checkpoint))
    with pytest.raises(ValueError, match=r"grid_sizes are \(1, 2, 3, 4, 5, 6, 8, 10, 13, 16\), but .* of [45] scales"):
        import_tokenizer(arrays)


def test_the_usual_grids_follow_from_their_length():
    network = small.transformer(grid_sizes=(2, 4, 8, 16))
    arrays = export_transformer(network, small.transformer_params(network))
    del arrays["lvl_1L"]
    assert import_transformer(arrays)[0].grid_sizes == (2, 4, 8, 16)


def assert_equal_trees(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("settings", [{}, {"shared_modulation": True}, {"qk_norm": False}], ids=str)
def test_our_transformers_come_back(settings):
    network = small.transformer(**settings)
    params = small.transformer_params(network)
    back, back_params = import_transformer(export_transformer(network, params))
    assert back == network
    assert_equal_trees(back_params, params)


@pytest.mark.parametrize("num_phi", [0, 1, 2])
def test_our_tokenizers_come_back(num_phi):
    structure = small.tokenizer("var", residual=True, alias=False).structure.clone(
        quantizer=small.quantizer(num_phi=num_phi))
    params = small.tokenizer_params(small.tokenizer())["structure"]
    params["quantizer"] = small.quantizer_params(structure.quantizer)
    arrays = export_tokenizer(structure, params)
    back, back_params = import_tokenizer(arrays, small.GRIDS, norm_groups=4)
    assert_equal_trees(back_params, params)
    assert back.autoencoder == structure.autoencoder and back.quantizer == structure.quantizer
    assert sum("qresi." in name for name in arrays) == (2 if num_phi == 1 else 0)


def without(tree, *names):
    return {name: value for name, value in tree.items() if name not in names}


def test_everything_that_does_not_fit_is_listed_at_once(checkpoint):
    arrays = without(checkpoint.transformer, "blocks.0.attn.q_bias", "head.bias") | {
        "blocks.1.extra": np.zeros(2), "blocks.1.ffn.fc1.bias": np.zeros(3)}
    with pytest.raises(ValueError, match=r"missing: blocks.0.attn.q_bias, head.bias; unknown: blocks.1.extra; of "
                                         r"another shape: blocks.1.ffn.fc1.bias \(3,\) instead of \((256|384),\)$"):
        import_transformer(arrays, grids(checkpoint))
    arrays = without(checkpoint.tokenizer, "decoder.up.3.block.0.nin_shortcut.bias", "quant_conv.weight") | {
        "encoder.mid.block_1.nin_shortcut.bias": np.zeros(2), "encoder.conv_out.bias": np.zeros((1, 2))}
    with pytest.raises(ValueError, match="missing: decoder.up.3.block.0.nin_shortcut.bias, quant_conv.weight; "
                                         "unknown: encoder.mid.block_1.nin_shortcut.bias; of another shape: "
                                         r"encoder.conv_out.bias \(1, 2\) instead of \((8|16),\)$"):
        import_tokenizer(arrays, grids(checkpoint))


def test_one_network_given_as_the_other_is_said_first(checkpoint):
    with pytest.raises(ValueError, match="these are the arrays of a generator .*, but a tokenizer is needed; give"):
        import_tokenizer(checkpoint.transformer, grids(checkpoint))
    with pytest.raises(ValueError, match="these are the arrays of a tokenizer .*, but a generator is needed; give"):
        import_transformer(checkpoint.tokenizer, grids(checkpoint))


def test_an_empty_mapping_lacks_all_of_var():
    with pytest.raises(ValueError, match="missing: blocks.0.ada_lin.1.bias, .*word_embed.weight; unknown: nothing"):
        import_transformer({})
    with pytest.raises(ValueError, match="missing: decoder.conv_in.bias, .*; unknown: nothing"):
        import_tokenizer({})


def test_what_no_array_reveals_and_does_not_fit_is_named(checkpoint):
    with pytest.raises(ValueError, match="positions for (30|103) tokens.*give grid_sizes"):
        import_transformer(checkpoint.transformer)
    with pytest.raises(ValueError, match=r"another shape: .*pos_1LC \(1, (30|103), \d+\) instead of \(1, 21"):
        import_transformer(checkpoint.transformer, (1, 2, 4))
    with pytest.raises(ValueError, match="num_heads is 5, which does not divide"):
        import_transformer(checkpoint.transformer, grids(checkpoint), num_heads=5)
    with pytest.raises(ValueError, match="norm_groups is 5, which does not divide the tokenizer's 32 channels"):
        import_tokenizer(checkpoint.tokenizer, grids(checkpoint), norm_groups=5)


@pytest.mark.parametrize("shape", [(), (300,), (70, 600), (33, 257), (3, 40, 300)])
def test_arrays_are_copied_whole_in_any_layout(shape):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for source in (array, array.T):
        target = official_var._empty(source.shape)
        target[...] = np.nan
        official_var._copy(source, target)
        np.testing.assert_array_equal(target, source)
        assert target.ctypes.data % 64 == 0


def test_on_a_cpu_jax_uses_the_memory_that_a_file_was_read_into(checkpoint):
    _, params = import_transformer(checkpoint.transformer, grids(checkpoint))
    for leaf in jax.tree.leaves(params):
        assert jax.device_put(leaf).unsafe_buffer_pointer() == leaf.ctypes.data
