"""Commands that follow a command."""

from refocus_jax.runtime import command_line


def test_a_following_command_has_the_same_settings_and_runs_in_one_process():
    kept = command_line.settings(["--config", "d16:k4", "--process_id", "1", "--num_processes=2",
                                  "--coordinator=host:1", "--workdir=runs/a", "-mode=train",
                                  "--config.data.source=npz:a b", "--workdir"])
    assert kept == ["--config", "d16:k4", "--config.data.source=npz:a b"]
    assert command_line.command(kept, "runs/a b", "sample") == (
        "python -m refocus_jax.main --config d16:k4 '--config.data.source=npz:a b' '--workdir=runs/a b' --mode=sample")
