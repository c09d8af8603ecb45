"""The loop with a toy task: the order of its steps, its files, and resuming bit for bit."""

import gzip
import json
import os
import re
import signal

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.data import pipeline
from refocus_jax.reporting.runs import OF_THE_MACHINE
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.runtime.preemption import Preempted
from refocus_jax.training import loop


@flax.struct.dataclass
class ToyState:
    step: jax.Array
    params: dict[str, jax.Array]

    @property
    def w(self):
        return self.params["w"]


class ToyTask:
    """Depends on the data and its own noise, so that a wrong batch or key changes the result."""

    name = "toy"

    def __init__(self, nan_from=1000):
        self.nan_from = nan_from

    def init(self, key):
        return ToyState(jnp.zeros((), jnp.int32), {"w": jax.random.normal(key, (3,))})

    def update(self, state, frozen, batch, key):
        noise = jax.random.normal(jax.random.fold_in(key, state.step), (3,))
        w = 0.9 * state.w + frozen * batch["x"].mean() + 0.1 * noise
        # Every step after `nan_from` has a NaN gradient.
        w = jnp.where(state.step >= self.nan_from, jnp.nan, w)
        return ToyState(state.step + 1, {"w": w}), {"loss/total": jnp.zeros(()), "gradient_norm": jnp.sum(w**2)}


class Interrupt(Exception):
    pass


@pytest.fixture(autouse=True)
def no_read_ahead(monkeypatch):
    """Without read-ahead, an event at an example happens when its batch is used."""
    monkeypatch.setattr(pipeline, "READ_OPTIONS", grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def run(directory, steps, interrupt_at=None, signal_at=None, number=signal.SIGTERM, times=1, nan_from=1000,
        batch_size=4, share_of_peak=None, profile_steps=(), resume_step=-1, **settings):
    """Trains; at `interrupt_at` the data source dies when it is asked for that batch, and at `signal_at` it sends a
    signal to the process."""
    seen = []

    def evaluator(state, frozen):
        seen.append(int(state.step))
        yield "validation/w", float(state.w[0])
        yield "picture", np.zeros((4, 4, 3), np.uint8)

    def fail(index, x):
        if interrupt_at is not None and index >= 4 * interrupt_at:
            raise Interrupt
        if signal_at is not None and index in range(4 * signal_at, 4 * signal_at + times):
            os.kill(os.getpid(), number)
        return {"x": np.float32(x)}

    examples = grain.MapDataset.range(100).seed(1).shuffle().repeat().map_with_index(fail)
    batches = pipeline.Batches(examples, batch_size)
    settings = loop.LoopSettings(steps=steps, log_every=2, evaluate_every=4, save_every=3, **settings)
    state = loop.train(ToyTask(nan_from), settings, batches, frozen=jnp.ones(()), key=jax.random.key(0),
                       mesh=mesh_lib.make_mesh(), directory=str(directory), evaluator=evaluator,
                       share_of_peak=share_of_peak, profile_steps=profile_steps, resume_step=resume_step)
    return state, seen


def metrics(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(OF_THE_MACHINE)} for line in lines]


def traces(directory):
    """The names of a directory's traces, and their events."""
    files = sorted(directory.glob("profile/plugins/profile/*/*.trace.json.gz"))
    return [(file.parent.name, [event for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
                                if "name" in event]) for file in files]


def traced_steps(directory):
    return {name: [int(event["args"]["step_num"]) for event in events if event["name"] == "toy"]
            for name, events in traces(directory)}


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, as it does unless a process was started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_stops_at_once(tmp_path, ctrl_c, capfd):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 10, signal_at=7, number=signal.SIGINT, times=2)
    assert "press Ctrl-C again to stop at once" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == ["3", "6"]


def test_what_compiling_has_left_is_given_back_once(tmp_path, monkeypatch):
    trims = []
    monkeypatch.setattr(loop.memory, "trim", lambda: trims.append(1))
    run(tmp_path, 4)
    assert len(trims) == 1


def test_interrupted_run_resumes_bit_for_bit(tmp_path):
    straight, _ = run(tmp_path / "straight", 10)
    with pytest.raises(Interrupt):
        run(tmp_path / "broken", 10, interrupt_at=8)
    resumed, _ = run(tmp_path / "broken", 10)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), straight, resumed))
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "broken")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(tmp_path, number, ctrl_c):
    straight, _ = run(tmp_path / "straight", 10)
    before = signal.getsignal(number)
    with pytest.raises(Preempted, match="asked to stop, and has saved step 8"):
        run(tmp_path / "stopped", 10, signal_at=7, number=number)
    assert signal.getsignal(number) is before
    resumed, _ = run(tmp_path / "stopped", 10)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), straight, resumed))
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "stopped")


def test_a_run_goes_on_from_an_earlier_step_and_can_be_requeued(tmp_path, ctrl_c):
    straight, _ = run(tmp_path / "straight", 10)
    run(tmp_path / "back", 14, keep=9)
    with pytest.raises(Preempted, match="saved step 8"):
        run(tmp_path / "back", 10, signal_at=7, resume_step=3, keep=9)
    again, seen = run(tmp_path / "back", 10, resume_step=3, keep=9)  # the same command
    assert (again.w == straight.w).all() and seen == [10]
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "back")
    names = {path.name for path in (tmp_path / "back" / "checkpoints").iterdir()}
    assert {"replaced_6", "replaced_9", "replaced_12", "replaced_14", "10"} <= names and "14" not in names


def test_a_checkpoint_is_kept_where_none_would_be_saved(tmp_path):
    run(tmp_path, 10, keep=1, keep_every=5)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"5", "10"}


def test_a_number_that_is_none_stops_the_run_before_it_is_saved(tmp_path):
    """Steps 0 to 4 are finite, and step 6 would be saved."""
    with pytest.raises(loop.NonFinite, match="toy, step 6: not finite: gradient_norm; the last good checkpoint is of "
                                             "step 3. .*toy.train.skip_nonfinite=n"):
        run(tmp_path, 10, nan_from=5)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 3
    with pytest.raises(loop.NonFinite, match="step 1: .*nothing has been saved yet"):
        run(tmp_path / "first", 10, nan_from=0)


def test_steps_that_are_not_finite_can_be_skipped(tmp_path):
    """The last two steps change only the step count."""
    skipped, _ = run(tmp_path / "skipped", 10, nan_from=8, skip_nonfinite=2)
    assert int(skipped.step) == 10
    straight, _ = run(tmp_path / "straight", 8)
    assert (skipped.w == straight.w).all()
    assert metrics(tmp_path / "skipped")[-2]["skipped_steps"] == 2
    with pytest.raises(loop.NonFinite, match="step 10"):
        run(tmp_path / "once", 10, nan_from=8, skip_nonfinite=1)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog):
    straight, _ = run(tmp_path, 10)
    files = [path for path in (tmp_path / "checkpoints" / "10" / "state" / "d").iterdir() if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    again, seen = run(tmp_path, 10)
    assert "checkpoint of step 10" in caplog.text
    assert (again.w == straight.w).all() and seen == [10]  # from step 9
    assert (tmp_path / "checkpoints" / "damaged_10").is_dir()
    assert len({line["step"] for line in metrics(tmp_path) if "loss/total" in line}) == 5


def test_start_up_saving_and_memory_are_measured(tmp_path):
    run(tmp_path, 10)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"seconds/start_up", "seconds/restore"} <= lines[0].keys()
    assert sum("seconds/save" in line for line in lines) == 3
    assert all(line["peak_bytes/process"] > 2**20 for line in lines if "loss/total" in line)


def test_evaluates_saves_and_logs_when_it_says(tmp_path):
    _, seen = run(tmp_path, 10)
    assert seen == [4, 8, 10]
    logged = [line["step"] for line in metrics(tmp_path) if "loss/total" in line]
    assert logged == [2, 4, 6, 8, 10]
    assert json.loads((tmp_path / "evaluation.json").read_text())["step"] == 10
    assert (tmp_path / "pictures" / "picture.png").exists()


def test_a_finished_run_does_nothing_more(tmp_path):
    first, _ = run(tmp_path, 6)
    before = metrics(tmp_path)
    again, seen = run(tmp_path, 6)
    assert seen == [] and metrics(tmp_path) == before
    assert (first.w == again.w).all()


def test_a_run_goes_on_with_the_next_example_whatever_its_batches(tmp_path, monkeypatch):
    """An epoch has 100 examples; the position is on disk as a number of them."""
    read, put = [], mesh_lib.put_batch

    def remember(mesh, batch):
        read.extend(batch["x"].tolist())
        return put(mesh, batch)

    monkeypatch.setattr(mesh_lib, "put_batch", remember)
    run(tmp_path, 30, batch_size=10)
    straight = read[:]
    read.clear()
    for steps, batch_size in ((20, 4), (22, 8), (25, 2), (40, 12)):
        run(tmp_path / "changing", steps, batch_size=batch_size)
    assert len(read) == 80 + 16 + 6 + 180 and read == straight[:len(read)]
    with Checkpoints(tmp_path / "changing" / "checkpoints") as checkpoints:
        assert checkpoints.record()["position"] == {"examples": len(read)}


def test_the_first_state_and_the_steps_have_keys_of_their_own(tmp_path, monkeypatch):
    keys = []

    def folding(method):
        def wrapped(self, *arguments):
            jax.debug.callback(lambda key: keys.append(tuple(key.tolist())), jax.random.key_data(arguments[-1]))
            return method(self, *arguments)
        return wrapped

    for name in ("init", "update"):
        monkeypatch.setattr(ToyTask, name, folding(getattr(ToyTask, name)))
    run(tmp_path, 2)
    jax.effects_barrier()
    own = tuple(jax.random.key_data(jax.random.key(0)).tolist())
    assert len(set(keys)) == 2 and own not in keys


def test_a_longer_run_goes_on(tmp_path):
    run(tmp_path / "two", 5)
    longer, seen = run(tmp_path / "two", 10)
    straight, _ = run(tmp_path / "one", 10)
    assert (longer.w == straight.w).all() and seen == [8, 10]


def test_one_device_gives_the_result_of_two(tmp_path):
    assert len(jax.devices()) >= 2, "conftest simulates two devices"
    two, _ = run(tmp_path / "two", 3)
    with pytest.MonkeyPatch.context() as patch:
        one_device = mesh_lib.make_mesh(jax.devices()[:1])
        patch.setattr(mesh_lib, "make_mesh", lambda: one_device)
        one, _ = run(tmp_path / "one", 3)
    np.testing.assert_allclose(one.w, two.w, rtol=1e-6)


def test_only_the_chosen_steps_are_traced(tmp_path):
    """The run saves at 3, 6 and 9 and evaluates at 4 and 8, and a trace ends before that."""
    run(tmp_path, 10, profile_steps=(2, 7))
    assert traced_steps(tmp_path) == {"from_step_2_process_0": [2, 3], "from_step_4_process_0": [4],
                                      "from_step_5_process_0": [5, 6], "from_step_7_process_0": [7]}
    for name, events in traces(tmp_path):
        called = " ".join(event["name"] for event in events)
        assert "PjitFunction(run)" in called and not re.search(r"loop.py:\d+ _evaluate|checkpoint.py:\d+ save", called)
        # `fail` of `run` is called once per example.
        assert len(re.findall(r"test_loop.py:\d+ fail", called)) == 4 * len(traced_steps(tmp_path)[name])


def test_a_run_without_chosen_steps_traces_nothing(tmp_path):
    run(tmp_path, 3)
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(("how", "stopped"), [({"interrupt_at": 7}, Interrupt), ({"signal_at": 7}, Preempted)])
def test_a_trace_ends_when_a_run_stops_and_a_resumed_run_traces_the_rest(tmp_path, how, stopped):
    """The data source dies when step 8 asks for its batch, and the latest checkpoint is of step 6; SIGTERM saves 8."""
    with pytest.raises(stopped):
        run(tmp_path, 12, profile_steps=(7, 9), **how)
    assert traced_steps(tmp_path) == {"from_step_7_process_0": [7, 8]}
    run(tmp_path, 12, profile_steps=(7, 9))
    assert traced_steps(tmp_path)["from_step_9_process_0"] == [9]
    run(tmp_path, 13, profile_steps=(7, 9))
    assert len(traces(tmp_path)) == 2


@pytest.mark.parametrize(("steps", "chosen", "at"), [(6, (7, 9), 0), (6, (2, 4), 5)])
def test_a_run_that_makes_none_of_the_chosen_steps_says_so(tmp_path, caplog, steps, chosen, at):
    if at:
        run(tmp_path, at)
    assert not caplog.text
    run(tmp_path, steps, profile_steps=chosen)
    assert f"profile.steps is {chosen}, and toy is at step {at} of {steps}: no step is traced" in caplog.text
    assert traces(tmp_path) == []


def test_a_trace_ends_with_the_run(tmp_path):
    run(tmp_path, 2, profile_steps=(2, 9))
    assert traced_steps(tmp_path) == {"from_step_2_process_0": [2]}


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="save_every is 0"):
        loop.LoopSettings(steps=10, save_every=0)
    with pytest.raises(ValueError, match="skip_nonfinite is -1"):
        loop.LoopSettings(steps=10, skip_nonfinite=-1)


def test_a_run_says_what_it_runs_on_and_what_it_trains(tmp_path, capsys):
    run(tmp_path, 2)
    said = capsys.readouterr().err
    assert "toy: 2 x cpu in 1 process(es), mesh data 2, fsdp 1. Parameters, one by one in" in said
    for table in (said, (tmp_path / "parameters.txt").read_text()):
        assert "| w    | (3,)  | float32 | 3    |" in table and "Total: 3" in table


@pytest.mark.parametrize("share", [None, 0.25])
def test_utilization_is_logged_where_it_is_known(tmp_path, share):
    """A step per second would be a quarter of the peak: it is that times the steps per second."""
    run(tmp_path, 3, share_of_peak=share)
    for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        if "loss/total" in line:
            assert ("mfu" in line) == (share is not None)
            if share:
                assert line["mfu"] == pytest.approx(share * line["images_per_second"] / 4)
