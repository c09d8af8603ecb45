"""What happens before a trace begins and ends; tests/training/test_loop.py traces steps of a run."""

import jax
import pytest

from refocus_jax.runtime.profile import Profile


@pytest.fixture
def happened(monkeypatch):
    """Notes when a trace begins and ends, instead of making one."""
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: found.append("begins"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("ends"))
    return found


class State:
    """The result of a step, which notes that somebody has waited for it."""

    def __init__(self, step, happened):
        self.step, self.happened = step, happened

    def block_until_ready(self):
        self.happened.append(f"{self.step} is ready")


def test_a_trace_has_all_work_of_its_steps_and_none_of_the_step_before(happened, tmp_path):
    with Profile("toy", (2, 3), 0, 4, str(tmp_path)) as profile:
        for step in (1, 2, 3, 4):
            with profile.step(step, State(step - 1, happened)):
                happened.append(step)
            if step + 1 not in profile.steps:
                profile.stop(State(step, happened))
    assert happened == [1, "1 is ready", "begins", 2, 3, "3 is ready", "ends", 4]


def test_a_trace_ends_even_if_its_last_step_has_failed(happened, tmp_path):
    class Failed:
        def block_until_ready(self):
            raise FloatingPointError

    with pytest.raises(FloatingPointError), Profile("toy", (1, 1), 0, 1, str(tmp_path)) as profile:
        with profile.step(1, ()):
            pass
        profile.stop(Failed())
    assert happened == ["begins", "ends"]
