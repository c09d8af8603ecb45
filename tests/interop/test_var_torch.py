import jax
import numpy as np
import pytest

from refocus_jax.interop import var_torch
from tests.fixtures import official, small


@pytest.fixture(scope="module", params=official.NAMES)
def checkpoint(request) -> official.Official:
    return official.load(request.param)


def assert_equal_arrays(got, expected):
    """Names, shapes, types and values, bit for bit."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == np.float32 and got[name].shape == array.shape, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_official_weights_come_back(checkpoint):
    assert_equal_arrays(var_torch.export_tokenizer(var_torch.import_tokenizer(checkpoint.tokenizer)),
                        checkpoint.tokenizer)
    assert_equal_arrays(var_torch.export_transformer(var_torch.import_transformer(checkpoint.transformer)),
                        checkpoint.transformer)


def assert_equal_trees(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("settings", [{}, {"shared_modulation": True}, {"qk_norm": False}], ids=str)
def test_our_transformers_come_back(settings):
    params = small.transformer_params(small.transformer(**settings))
    assert_equal_trees(var_torch.import_transformer(var_torch.export_transformer(params)), params)


@pytest.mark.parametrize("num_phi", [0, 1, 2])
def test_our_tokenizers_come_back(num_phi):
    params = small.tokenizer_params(small.tokenizer())["structure"]
    params["quantizer"] = small.quantizer_params(small.quantizer(num_phi=num_phi))
    arrays = var_torch.export_tokenizer(params)
    assert_equal_trees(var_torch.import_tokenizer(arrays), params)
    assert sum("qresi." in name for name in arrays) == (2 if num_phi == 1 else 0)


def without(tree, *names):
    return {name: value for name, value in tree.items() if name not in names}


def test_official_names_that_do_not_fit_are_listed(checkpoint):
    arrays = without(checkpoint.transformer, "blocks.0.attn.q_bias", "head.bias") | {"blocks.1.extra": np.zeros(2)}
    with pytest.raises(ValueError, match=r"missing: blocks.0.attn.q_bias, head.bias; unknown: blocks.1.extra$"):
        var_torch.import_transformer(arrays)
    arrays = without(checkpoint.tokenizer, "decoder.up.3.block.0.nin_shortcut.bias", "quant_conv.weight")
    with pytest.raises(ValueError, match="missing: decoder.up.3.block.0.nin_shortcut.bias, quant_conv.weight; "
                                         "unknown: encoder.mid.block_1.nin_shortcut.bias$"):
        var_torch.import_tokenizer(arrays | {"encoder.mid.block_1.nin_shortcut.bias": np.zeros(2)})
    for function in (var_torch.import_tokenizer, var_torch.import_transformer):
        with pytest.raises(ValueError, match="missing: .*; unknown: nothing"):
            function({})


def test_parameters_that_do_not_fit_are_listed():
    params = small.transformer_params(small.transformer())
    params = without(params, "head") | {"blocks": without(params["blocks"], "q_bias"), "alias": np.zeros(2)}
    with pytest.raises(ValueError, match="missing: blocks/0/q_bias, blocks/1/q_bias, head/bias, head/kernel; "
                                         "unknown: alias$"):
        var_torch.export_transformer(params)
    params = small.tokenizer_params(small.tokenizer())["structure"]
    with pytest.raises(ValueError, match="missing: quantizer/codebook/embedding, quantizer/phi_0/bias, .*"
                                         "unknown: nothing"):
        var_torch.export_tokenizer({**params, "quantizer": {"phi_1": params["quantizer"]["phi_1"]}})
