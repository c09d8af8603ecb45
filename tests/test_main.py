"""What the command line refuses before anything is loaded, what it passes to the modes, and who may write where."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags

from refocus_jax import main
from refocus_jax.config import check
from refocus_jax.runtime import huge_pages
from refocus_jax.runtime.lease import Lease, LeaseError
from refocus_jax.runtime.preemption import EXIT_CODE, Preempted
from refocus_jax.training.loop import LoopSettings

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections loads configs so


def test_the_program_asks_for_large_pages_before_anything_else(monkeypatch):
    class Restarted(Exception):
        pass

    def restart():
        raise Restarted

    monkeypatch.setattr(huge_pages, "restart", restart)
    monkeypatch.setitem(sys.modules, "jax", None)  # not imported yet
    with pytest.raises(Restarted):
        runpy.run_path(main.__file__, run_name="__main__")
    with pytest.raises(ImportError):
        runpy.run_path(main.__file__, run_name="imported")


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs the command line in this process with a replaced mode; returns what the mode is called with."""
    monkeypatch.chdir(Path(main.__file__).parents[1])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def run(*arguments, does=lambda config, workdir: None, program=main.main,
            given=("--config=tiny", f"--workdir={tmp_path}/run")):
        called = []
        monkeypatch.setattr(main, "find", lambda mode: lambda *given: (called.append(given), does(*given)))
        # ml_collections looks for settings here.
        monkeypatch.setattr(sys, "argv", ["main", *given, *arguments])
        try:
            program(main.parse(sys.argv))
        finally:
            flags.FLAGS.unparse_flags()
            for name in [name for name in flags.FLAGS if name.startswith("config.")]:
                delattr(flags.FLAGS, name)
        ((config, workdir),) = called
        return config, workdir

    return run


@pytest.mark.parametrize("mode", [("--mode=demo",), ("--mode", "demo"), ("-mode=demo",)])
def test_the_demo_needs_neither_config_nor_workdir(command, mode, tmp_path):
    config, workdir = command(*mode, "--config.demo.port=7001", given=())
    assert (config.image_size, config.demo.port, workdir) == (64, 7001, "small")
    assert command(*mode, given=(f"--workdir={tmp_path}",))[1] == str(tmp_path)
    assert command(*mode, given=("--config=d16:k4",))[0].grid_sizes == (2, 4, 8, 16)


@pytest.mark.parametrize("arguments, message", [
    (["--config.foo=1"], "--config.foo is not a setting (the nearest is "),
    (["--config.generater.depth=2"], "--config.generater.depth is not a setting (the nearest is "
                                     "generator.model.depth)"),
    (["--config.generator.model.depth.x=2"], "--config.generator.model.depth.x is not a setting (the nearest is "
                                             "generator.model.depth)"),
    (["--config=configs/tinny.py"], "--config is configs/tinny.py, which is not there (the nearest is configs/tiny.py"),
    (["--config=configs/tinny.py:smoke", "--config.seed=1"], "--config is configs/tinny.py, which is not there"),
    (["--config=tinny"], "--config is tinny, which is not there (the nearest is tiny); give one of d12, d16"),
    (["--config=tiny:smok"], "config argument 'smok' is unknown (the nearest is smoke); choose from grids=k4, grids="),
    (["--config=configs/d16.py:teacher=of"], "config argument 'teacher=of' is unknown (the nearest is teacher=off)"),
    (["--config=d16:psf=none,gaussian"], "config arguments 'psf=none,gaussian' give psf as none and as gaussian; give"),
    (["--config.image_size=(64, 96)"], "image_size is (64, 96); give 1 or more: the side in pixels, as all images "
                                       "are square (an integer)"),
    (["--config.generator.model.depth=4.5"], "generator.model.depth is 4.5; give 1 or more (an integer)"),
    (["--config.data.flip=maybe"], "data.flip is maybe; give True or False"),
    (["--confg.seed=1"], "Unknown command line flag 'confg.seed'"),
], ids=str)
def test_flags_that_cannot_be_read_are_explained(command, arguments, message):
    with pytest.raises(SystemExit) as raised:
        command(*arguments)
    assert str(raised.value.code).startswith(message), raised.value.code


@pytest.mark.parametrize("mode", ["train", "sample", "edit", "evaluate", "report", "plan"])
@pytest.mark.parametrize("setting, message", [
    ("sampling.cfg=inf", "sampling.cfg is inf; give a finite number, 0 "),
    ("sampling.top_p=5", "sampling.top_p is 5.0; give 0 to 1"),
    ("sampling.top_p=-1", "sampling.top_p is -1.0; give 0 to 1"),
    ("plan.utilization=0", "plan.utilization is 0.0; give more than 0"),
    ("grid_sizes=()", r"grid_sizes is \(\); give sides of the token maps"),
], ids=str)
def test_ranges_are_checked_in_every_mode(command, mode, setting, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        command(f"--mode={mode}", f"--config.{setting}")
    assert not (tmp_path / "run").exists()


def test_home_is_expanded_in_the_workdir_and_in_settings(command, tmp_path):
    config, workdir = command("--workdir=~/runs/a", "--config.data.source=folder:~/images",
                              "--config.generator.init_from=~/x.pth")
    assert workdir == f"{tmp_path}/home/runs/a"
    assert config.data.source == f"folder:{tmp_path}/home/images"
    assert config.generator.init_from == f"{tmp_path}/home/x.pth"


@pytest.mark.parametrize("mode", sorted(main.MODES))
def test_every_mode_has_its_function(mode):
    assert callable(main.find(mode)) and main.MODES[mode][1]


def test_configs_go_by_name_from_any_directory(command, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config, _ = command("--config=d16:teacher=off,grids=k4")
    assert config.generator.model.depth == 16 and not config.generator.teacher.enabled
    assert config.grid_sizes == (2, 4, 8, 16)
    config, _ = command("--config", "d24:k4,noteacher")
    assert config.generator.model.depth == 24 and not config.generator.teacher.enabled


def test_help_lists_the_arguments_of_a_config(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("--config=tiny:help")
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "psf=gaussian" in printed and "run=smoke" in printed and "recipe=var" not in printed


def test_help_and_errors_in_flags_do_not_wait_for_packages_that_only_some_modes_need():
    code = ("import sys, refocus_jax.main; "
            "print({'grain', 'matplotlib', 'scipy', 'skimage', 'tensorflow_datasets'} & set(sys.modules))")
    found = subprocess.run([sys.executable, "-c", code], cwd=Path(main.__file__).parents[1], check=True,
                           capture_output=True, text=True)
    assert found.stdout == "set()\n"


def test_every_mode_starts_without_the_extras():
    """Optional packages are imported where they are used: a mode that needs them says so itself."""
    code = """import sys
sys.modules.update(dict.fromkeys(["gradio", "jinja2", "markupsafe", "matplotlib", "pyarrow", "tensorflow_datasets"]))
from refocus_jax import main
from refocus_jax.config import check
print(all(main.find(mode) for mode in main.MODES))"""
    found = subprocess.run([sys.executable, "-c", code], cwd=Path(main.__file__).parents[1], check=True,
                           capture_output=True, text=True)
    assert found.stdout == "True\n"


def test_after_training_the_next_commands_are_printed(command, capsys, tmp_path):
    command("--mode", "train", "--config.seed=3", "--config.data.source=npz:a b")
    assert capsys.readouterr().out.splitlines() == [
        f"{says} python -m refocus_jax.main --config=tiny --config.seed=3 '--config.data.source=npz:a b' "
        f"--workdir={tmp_path}/run --mode={mode}" for mode, says in main.NEXT.items()]
    command("--mode=generator")
    assert capsys.readouterr().out == ""


def _config_error(config, workdir):
    check.check_workdir("")


def _library_error(config, workdir):
    json.loads("{")


def _mistake(config, workdir):
    LoopSettings(steps=None)  # cannot be compared with a number


@pytest.mark.parametrize("does, arguments, raised, code", [
    (_config_error, [], SystemExit, "--workdir is empty; give .*\n--traceback shows where"),
    (_config_error, ["--traceback"], ValueError, "--workdir is empty"),
    (_library_error, [], json.JSONDecodeError, "Expecting"), (_mistake, [], TypeError, "NoneType"),
], ids=["for users", "with its traceback", "from a library", "a mistake of this package"])
def test_an_error_for_users_ends_the_program_without_a_traceback(command, does, arguments, raised, code):
    with pytest.raises(raised, match=code):
        command(*arguments, does=does, program=main.run)


def test_threads_are_there_before_the_processes_find_their_devices(command, monkeypatch):
    called = []
    monkeypatch.setattr(main.mesh, "start_enough_threads", lambda: called.append("threads"))
    monkeypatch.setattr(main.processes, "initialize", lambda *given: called.append("processes"))
    command()
    assert called == ["threads", "processes"]


def test_ctrl_c_is_one_line(command, capsys):
    def interrupt(config, workdir):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        command(does=interrupt, program=main.run)
    assert stopped.value.code == 130 and capsys.readouterr().err == "Stopped by Ctrl-C.\n"


WRITING = set(main.MODES) - set(main.READING)


@pytest.mark.parametrize("mode", sorted(main.MODES))
def test_a_workdir_is_written_by_one_run_at_a_time(command, mode, tmp_path):
    """A report and a plan can be written while a training runs."""
    with Lease(tmp_path / "run", "train"):
        if mode in WRITING:
            with pytest.raises(LeaseError, match=f"run is being written by process {os.getpid()} on "):
                command(f"--mode={mode}")
        else:
            command(f"--mode={mode}")

    def refused(config, workdir):
        with pytest.raises(LeaseError, match=f"--mode={mode}"), Lease(tmp_path / "run", "train"):
            pass

    command(f"--mode={mode}", does=refused if mode in WRITING else lambda *_: None)
    assert not (tmp_path / "run").exists()


def test_what_several_processes_cannot_do_in_a_bucket_is_refused(command, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="gs://bucket/run, and there are 2 processes.* train, and --mode=sample runs"):
        command("--workdir=gs://bucket/run", "--mode=sample")


@pytest.mark.parametrize("mode, setting", [("convert", "convert.output"), ("encode", "encode.output"),
                                           ("sample", "sample.output")])
def test_another_output_is_written_by_one_run_at_a_time(command, mode, setting, tmp_path):
    with Lease(tmp_path / "output", "encode"), pytest.raises(LeaseError, match="output is being written"):
        command(f"--mode={mode}", f"--config.{setting}={tmp_path}/output")


@pytest.mark.parametrize("mode", ["sample", "convert"])
def test_what_goes_into_another_directory_is_made_while_the_workdir_trains_or_cannot_be_written(command, mode,
                                                                                                tmp_path):
    with Lease(tmp_path / "run", "train"):
        command(f"--mode={mode}", f"--config.{mode}.output={tmp_path}/output")


@pytest.mark.parametrize("error, raised", [(Preempted("asked to stop"), SystemExit), (ValueError("no"), ValueError)])
def test_a_run_that_stops_lets_go(command, error, raised, tmp_path):
    def stop(config, workdir):
        assert (tmp_path / "run" / ".writer.json").exists()
        (tmp_path / "run" / "saved").touch()
        raise error

    with pytest.raises(raised) as caught:
        command(does=stop)
    assert raised is ValueError or caught.value.code == EXIT_CODE
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["saved"]


@pytest.mark.parametrize("workdir, message", [
    ("", "--workdir is empty; give a directory"), (" ", "--workdir is empty"),
    ("{}/file", "--workdir is .*/file, which is a file; give a directory"),
    ("{}/file/runs/a", "--workdir is .*/a, below .*/file, which is a file; give a directory"),
    ("s3://mine/run", "--workdir is s3://mine/run, where Orbax cannot write checkpoints; give gs://BUCKET")])
@pytest.mark.parametrize("mode", ["train", "sample", "report"])
def test_a_workdir_that_cannot_be_is_refused(command, workdir, message, mode, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=message):
        command(f"--mode={mode}", f"--workdir={workdir.format(tmp_path)}")
