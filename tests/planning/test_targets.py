import importlib.util

import pytest

from refocus_jax.planning import targets


@pytest.mark.parametrize("topology", ["v5e:4x4", "tpu:v9:4x4", "tpu:v5e", "tpu:v5e:4xx", "gpu:a100:8", "gpu:a100:0x8",
                                      "gpu:k80:1x8", ""])
def test_unknown_machines_are_named_with_those_that_are_known(topology):
    with pytest.raises(ValueError, match="plan.topology is .*give tpu:KIND:SHAPE such as tpu:v5e:4x4.*a100, h100"):
        targets.load(topology)


@pytest.mark.parametrize(("topology", "module", "extra"), [
    ("tpu:v5e:4x4", "libtpu", "plan-tpu"), ("gpu:h100:1x8", "jax_cuda13_plugin", "plan-gpu")])
def test_a_missing_compiler_is_named_with_its_extra(monkeypatch, topology, module, extra):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else found(name))
    expected = rf"plan.topology is '{topology}', which needs .*; run pip install 'refocus_jax\[{extra}\]'"
    with pytest.raises(ImportError, match=expected):
        targets.load(topology)


def test_gpus_are_described_as_their_compiler_wants():
    one, many = targets.load("gpu:a100:1x8"), targets.load("gpu:h100:2x8")
    assert (len(one.devices), len(many.devices)) == (8, 16)
    assert len({device.process_index for device in many.devices}) == 2
    assert one.chip.capacity_bytes == int(0.75 * 84987740160)


@pytest.mark.parametrize(("device_kind", "tera"), [
    ("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5e", 197), ("TPU v5", 459), ("TPU v5p", 459), ("TPU v6 lite", 918),
    ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA H200", 989), ("NVIDIA H100 PCIe", None), ("cpu", None), ("TPU v7x", None)])
def test_peaks_of_devices_as_jax_names_them(device_kind, tera):
    peak = targets.peak_flops(device_kind)
    assert peak == (tera and tera * 1e12)
