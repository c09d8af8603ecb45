"""Two processes of four devices train a tokenizer by the command line; one process of two devices goes on."""

import json
import os
import socket
import subprocess
import sys

import numpy as np

from refocus_jax import experiment


def test_one_process_goes_on_where_two_stopped(micro, images, tmp_path):
    np.savez(tmp_path / "images.npz", x=images, y=np.arange(64) % 2, val=np.arange(64) % 4 == 0)
    settings = {"tokenizer_batch_size": 8, "generator_batch_size": 8, "tokenizer_training.steps": 2,
                "data.source": f"npz:{tmp_path}/images.npz"}
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4",
                                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", "refocus_jax.main", "--config=tests/fixtures/micro.py", "--mode=tokenizer",
               f"--workdir={tmp_path}/run", "--config.mesh.fsdp=2", f"--coordinator=localhost:{port}",
               "--num_processes=2", *(f"--config.{name}={value}" for name, value in settings.items())]
    started = [subprocess.Popen([*command, f"--process_id={i}"], env=environment, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT) for i in range(2)]
    printed = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], printed

    c = micro()
    c.update_from_flattened_dict(settings | {"tokenizer_training.steps": 3})
    experiment.train_tokenizer(experiment.prepare(c, str(tmp_path / "run")))
    lines = [json.loads(line) for line in (tmp_path / "run/tokenizer/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss/total" in line] == [1, 2, 3]
    assert [line["step"] for line in lines if "validation/psnr" in line] == [2, 3]
    assert experiment.latest_step(str(tmp_path / "run/tokenizer")) == 3
