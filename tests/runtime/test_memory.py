import subprocess
import sys

import jax

from refocus_jax.runtime import memory

GROW = """
import numpy as np
from refocus_jax.runtime import memory
memory.peaks()  # looks for devices, which itself needs memory
before = memory.peaks()["process"]
held = np.ones(2**28, np.uint8)
grown = memory.peaks()["process"]
del held
print(before, grown, memory.peaks()["process"])
"""


def test_the_peak_of_the_process_grows_with_what_it_holds_and_does_not_fall():
    run = subprocess.run([sys.executable, "-c", GROW], capture_output=True, text=True, check=True)
    before, grown, after = map(int, run.stdout.split())
    assert 0.9 * 2**28 < grown - before < 1.1 * 2**28
    assert abs(after - grown) < 2**22  # the kernel counts in portions


def test_the_fullest_device_counts_where_devices_do(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.stats = stats

        def memory_stats(self):
            return self.stats

    assert "device" not in memory.peaks()  # CPUs
    monkeypatch.setattr(jax, "local_devices", lambda: [Device({"peak_bytes_in_use": n}) for n in (3, 7, 5)])
    assert memory.peaks()["device"] == 7


def test_a_system_that_does_not_say_its_peak_leaves_it_out(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    assert "process" not in memory.peaks()
    memory._STATUS.write_text("Name:\tpython\nVmRSS:\t10 kB\n")
    assert "process" not in memory.peaks()
    memory._STATUS.write_text("VmHWM:\t10 kB\n")
    assert memory.peaks()["process"] == 10 * 1024


TRIM = """
import jax.numpy as jnp, jax, numpy as np
from refocus_jax.runtime import memory

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

held = [np.ones(2**14, np.uint8) for _ in range(2**13)]  # smaller than what malloc maps by itself
last = [held.pop() for _ in range(2)][1:]  # so that the freed memory is not the last of the heap
full = resident()
del held
freed = resident()
memory.trim()
print(full, freed, resident())
"""


def test_freed_memory_goes_back_to_the_system():
    run = subprocess.run([sys.executable, "-c", TRIM], capture_output=True, text=True, check=True)
    full, freed, trimmed = map(int, run.stdout.split())
    assert full - freed < 2**14 < full - trimmed  # kilobytes, of 2^17


def test_memory_is_trimmed_after_calls_that_compile(monkeypatch):
    trims = []
    monkeypatch.setattr(memory, "trim", lambda: trims.append(1))
    double = memory.trimmed(jax.jit(lambda x: 2 * x))
    counts = []
    for argument in (1, 2, 3.0, 4.0):
        assert double(argument) == 2 * argument
        counts.append(len(trims))
    assert counts == [1, 1, 2, 2]


TRACE = """
import gc, jax
from refocus_jax.runtime import memory
if {calm}:
    memory.collect_less_often()
starts = []
gc.callbacks.append(lambda phase, info: starts.append(info["generation"]) if phase == "start" else None)
jax.make_jaxpr(lambda x: [x + i for i in range(3000)])(1.0)
print(len(starts), gc.get_freeze_count())
"""


def test_the_collector_starts_less_often_while_a_program_is_traced():
    usual, calm = ([int(word) for word in subprocess.run(
        [sys.executable, "-c", TRACE.format(calm=calm)], capture_output=True, text=True, check=True).stdout.split()]
        for calm in (False, True))
    assert usual[0] > 10 * (calm[0] + 1) and calm[1] > 10_000 > usual[1]
