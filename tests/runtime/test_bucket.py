"""Workdirs in a bucket: their small files, checkpoints and lease, with an emulator on this machine."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from refocus_jax.runtime import bucket, bucket_lease, lease
from refocus_jax.runtime.bucket_lease import BucketLease
from refocus_jax.runtime.checkpoint import Checkpoints
from tests.fixtures import bucket as emulator
from tests.fixtures.bucket import names
from tests.training import test_loop

pytestmark = emulator.WARNINGS


def elsewhere(monkeypatch, tmp_path):
    """What follows happens on another machine."""
    monkeypatch.setenv("HOME", str(tmp_path / "another"))


def test_what_changes_is_copied_and_another_machine_gets_it(url, tmp_path, monkeypatch):
    local = Path(bucket.stage(url, only_reads=False))
    (local / "generator" / "pictures").mkdir(parents=True)
    (local / "generator" / "metrics.jsonl").write_text("1\n")
    (local / "generator" / "pictures" / "samples.png").write_bytes(b"png")
    (local / "config.json").write_text("{}")
    bucket.publish(local / "generator")
    with (local / "generator" / "metrics.jsonl").open("a") as file:
        file.write("2\n")
    (local / "config.json").unlink()
    bucket.publish(local)
    assert names(url) == {"generator/metrics.jsonl", "generator/pictures/samples.png"}
    (local / "generator" / "metrics.jsonl").write_text("never published")
    (local / "more.txt").write_text("never published")
    assert bucket.stage(url, only_reads=False) == str(local)
    assert (local / "generator" / "metrics.jsonl").read_text() == "1\n2\n" and not (local / "more.txt").exists()
    elsewhere(monkeypatch, tmp_path)
    for only_reads in (False, True):
        other = Path(bucket.stage(url, only_reads))
        assert other != local and (other / "generator" / "metrics.jsonl").read_text() == "1\n2\n"
        assert (other / "generator" / "pictures" / "samples.png").read_bytes() == b"png"


def test_files_that_have_not_changed_are_neither_copied_nor_fetched(url, monkeypatch):
    local = Path(bucket.stage(url, only_reads=False))
    (local / "a").write_text("a")
    bucket.publish(local)
    calls, answered = [], bucket.answered

    def counting(url, call, *arguments, **settings):
        calls.append(getattr(call, "__name__", ""))
        return answered(url, call, *arguments, **settings)

    monkeypatch.setattr(bucket, "answered", counting)
    bucket.publish(local)
    assert bucket.stage(url, only_reads=False) == str(local)
    assert calls == ["_list"]


def test_a_refresh_gets_what_others_have_sent_below_a_path_and_leaves_the_rest_alone(url, tmp_path, monkeypatch):
    local = Path(bucket.stage(url, only_reads=False))
    (local / "config.json").write_text("{}")
    (local / "tokens").mkdir()
    (local / "tokens" / "old.json").write_text("old")
    bucket.publish(local)
    (local / "metrics.jsonl").write_text("not copied yet")
    elsewhere(monkeypatch, tmp_path)
    other = Path(bucket.stage(url, only_reads=False), "tokens")
    for name in ("new.json", "a.array_record"):
        (other / name).write_text(name)
        bucket.send(other / name)
    assert bucket.sizes(other) == {"a.array_record": 14} and not (other / "a.array_record").exists()
    (other / "old.json").unlink()
    bucket.publish(other)
    assert bucket.sizes(local / "tokens") == {}
    bucket.refresh(local / "tokens")
    assert bucket.sizes(local / "tokens") == {"a.array_record": 14} and bucket.sizes(local) == {}
    assert {path.name for path in (local / "tokens").iterdir()} == {"new.json"}
    (local / "config.json").unlink()
    bucket.publish(local)
    assert names(url) == {"metrics.jsonl", "tokens/new.json", "tokens/a.array_record"}
    assert bucket.list_files(url) == {"metrics.jsonl": len("not copied yet")}
    assert bucket.address(local / "tokens") == f"{url}/tokens" and bucket.address("runs/tiny") == "runs/tiny"


def test_a_kill_while_a_stage_is_described_does_no_harm(url, monkeypatch):
    local = Path(bucket.stage(url, only_reads=False))
    (local / "a.json").write_text("{}")

    def write_half(path, text):
        path.write_bytes(text.encode()[:9])
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Path, "write_text", write_half)
        bucket.publish(local)
    assert bucket.stage(url, only_reads=False) == str(local) and (local / "a.json").read_text() == "{}"


def test_only_the_holder_of_the_lease_sends(url, quick, monkeypatch):
    on_another_machine(monkeypatch)
    with BucketLease(url, "convert") as held:
        local = bucket.open_data(url, only_reads=False)
        (local / "a.array_record").write_text("a")
        held._lost = "another run has taken it over"
        with pytest.raises(lease.LeaseError, match="may no longer write into"):
            bucket.send(local / "a.array_record")
        held._lost = ""
        bucket.send(local / "a.array_record")
    assert names(url) == {"a.array_record"}


def test_checkpoints_lie_in_the_bucket_and_come_back_bit_for_bit(url, tmp_path, monkeypatch):
    local = bucket.stage(url, only_reads=False)
    state = {"x": jnp.arange(12.0).reshape(3, 4), "y": jnp.ones(2, "bfloat16")}
    template = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    with Checkpoints(f"{local}/generator/checkpoints", keep=2, keep_every=4) as checkpoints:
        assert checkpoints.latest_step() is None
        for step in (2, 4, 6, 8):
            checkpoints.save(step, jax.tree.map(lambda a, step=step: a * step, state), {"at": step})
        assert checkpoints.latest_step() == 8
    assert {name.split("/")[2] for name in names(url)} == {"4", "6", "8"}
    assert not list(Path(local).rglob("checkpoints"))
    elsewhere(monkeypatch, tmp_path)
    local = bucket.stage(url, only_reads=False)
    with Checkpoints(f"{local}/generator/checkpoints") as checkpoints:
        assert checkpoints.record() == {"at": 8}
        found = checkpoints.restore(template)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == 8 * b).all()), found, state))
    with Checkpoints(f"{url}/generator/checkpoints") as checkpoints:  # as in tokenizer.pretrained
        assert checkpoints.latest_step() == 8


def damaged_and_interrupted(url):
    """Checkpoints 1, 2 and 3, of which 2 is damaged and 3 incomplete; returns their folder, x of step 1, its shape."""
    local, x = bucket.stage(url, only_reads=False), jnp.arange(6.0)
    with Checkpoints(f"{local}/checkpoints", keep=9) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"x": step * x})
    found, prefix = bucket.objects(url)
    found.blob(f"{prefix}checkpoints/3/commit_success.txt").delete()
    record = found.blob(f"{prefix}checkpoints/2/record/record.json")
    record.upload_from_string(record.download_as_bytes().replace(b"float32", b"float16"))
    return f"{local}/checkpoints", x, {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)}


def of_step(url, step):
    return {name for name in names(url) if name.startswith(f"checkpoints/{step}/")}


def test_an_interrupted_save_does_not_count_and_a_damaged_one_is_marked_and_not_read_again(url, caplog, monkeypatch):
    directory, x, template = damaged_and_interrupted(url)
    before = of_step(url, 2)
    with Checkpoints(directory, keep=2) as checkpoints:
        assert checkpoints.latest_step() == 2
        assert (checkpoints.restore(template)["x"] == x).all() and checkpoints.latest_step() == 1
        assert "step 2" in caplog.text and "changed after it was saved" in caplog.text
        assert of_step(url, 2) == before  # reading alone never writes
        checkpoints.save(4, {"x": 4 * x})
    assert of_step(url, 2) == before - {"checkpoints/2/commit_success.txt"} | {"checkpoints/2/damaged.txt"}
    assert of_step(url, 1) and not of_step(url, 3)  # of the two that are kept, none is the damaged one
    found, prefix = bucket.objects(url)
    for blob in [*found.list_blobs(prefix=f"{prefix}checkpoints/4/")]:
        blob.delete()
    caplog.clear()
    with Checkpoints(directory, keep=9) as checkpoints:  # of a later run, whose latest is the one before again
        assert checkpoints.latest_step() == 1
        assert (checkpoints.restore(template)["x"] == x).all() and "damaged" not in caplog.text
        with pytest.raises(FileNotFoundError, match="No checkpoint of step 2 in .*Choose one of .1."):
            checkpoints.record(2)
        for step in (2, 3):
            checkpoints.save(step, {"x": 10 * step * x})
        assert "/2 is saved again, and orbax deletes the damaged one: ValueError: record.json " in caplog.text
        for step in (2, 3):
            assert (checkpoints.restore(template, step=step)["x"] == 10 * step * x).all()
    assert {name.split("/")[1] for name in names(url)} == {"1", "2", "3"}
    assert "checkpoints/2/damaged.txt" not in names(url)


@pytest.mark.parametrize("killed_in", ["write_text", "unlink", "save"])
def test_a_kill_while_a_damaged_one_is_marked_or_replaced_loses_no_sound_one(url, monkeypatch, killed_in):
    directory, x, template = damaged_and_interrupted(url)

    def kill(place, *arguments, **settings):
        if killed_in == "save":  # and orbax has deleted some of it
            (place.directory / "2/damaged.txt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt), Checkpoints(directory, keep=9) as found:
        found.restore(template)
        killed.setattr(ocp.CheckpointManager if killed_in == "save" else type(bucket.place(directory)), killed_in, kill)
        found.save(2, {"x": 20 * x})
    if killed_in != "save":  # it is not taken for an interrupted save, which is deleted without a word
        assert "checkpoints/2/commit_success.txt" in names(url)
    with Checkpoints(directory, keep=9) as checkpoints:
        assert (checkpoints.restore(template)["x"] == x).all() and checkpoints.latest_step() == 1
        checkpoints.save(2, {"x": 20 * x})
    with Checkpoints(directory, keep=9) as checkpoints:
        assert (checkpoints.restore(template)["x"] == 20 * x).all() and checkpoints.latest_step() == 2


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bucket_lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(bucket_lease, "WATCH_SECONDS", 1.5)
    monkeypatch.setattr(bucket_lease, "_LOOK_SECONDS", 0.1)


def on_another_machine(monkeypatch):
    """The holder's process cannot be looked up."""
    monkeypatch.setattr(lease, "_machine", lambda: None)


def test_one_run_at_a_time_writes(url, quick, monkeypatch):
    on_another_machine(monkeypatch)
    with BucketLease(url, "train"):
        with pytest.raises(lease.LeaseError, match=f"{url} is being written by process {os.getpid()} on .*=train"):
            BucketLease(url, "sample").__enter__()
        lease.confirm()
    assert names(url) == set()
    with BucketLease(url, "sample"):
        assert names(url) == {".writer.json"}


def test_a_dead_holder_is_succeeded_and_one_that_comes_back_may_not_write(url, quick, monkeypatch, caplog):
    on_another_machine(monkeypatch)
    first = BucketLease(url, "train").__enter__()
    first._stop.set()  # it does not respond for some time
    first._beat.join()
    with BucketLease(url, "train"):
        assert "which is dead; this run continues there" in caplog.text
        first._stop.clear()
        first._keep_alive()
        with pytest.raises(lease.LeaseError, match="may no longer write into .* has taken it over"):
            first.confirm()
        first.__exit__()
        assert names(url) == {".writer.json"}
        lease.confirm()


def test_a_holder_on_the_same_machine_that_has_ended_is_succeeded_at_once(url, monkeypatch):
    held = lease.describe_self("train") | {"process": 999_999_999}
    found, prefix = bucket.objects(url)
    found.blob(f"{prefix}{lease.FILE}").upload_from_string(json.dumps(held))
    monkeypatch.setattr(bucket_lease, "WATCH_SECONDS", 1000)
    began = time.monotonic()
    with BucketLease(url, "train"):
        assert time.monotonic() - began < 100


@pytest.mark.parametrize(("url", "says"), [
    ("s3://bucket/run", "s3://bucket/run, where Orbax cannot write checkpoints; give gs://BUCKET/FOLDER"),
    ("gs://bucket", "give gs://BUCKET/FOLDER"), ("gs://bucket/", "give gs://"), ("http://a/b", "give gs://")])
def test_other_addresses_are_refused(url, says):
    with pytest.raises(ValueError, match=says):
        bucket.check_url("--workdir", url)


def test_a_bucket_that_is_not_there_or_does_not_answer_is_named(bucket_address, monkeypatch):
    with pytest.raises(OSError, match="gs://nowhere/run: 404 .*correct the address, or your rights"):
        bucket.stage("gs://nowhere/run", only_reads=True)
    monkeypatch.setattr(bucket, "_SECONDS", 0.5)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:1")
    with pytest.raises(OSError, match="gs://bucket/run"):
        bucket.stage("gs://bucket/run", only_reads=True)


# The command line, with the loop of another test instead of a mode; it is killed when it asks for some batch.
MAIN = """
import os, sys
import grain
from absl import app
from refocus_jax import main
from refocus_jax.data import pipeline
from tests.training import test_loop

pipeline.READ_OPTIONS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
killed_at = int(sys.argv.pop())
test_loop.Interrupt = type("Killed", (Exception,), {"__init__": lambda self: os._exit(9)})
main.find = lambda mode: lambda config, workdir: test_loop.run(
    workdir + "/generator", 10, interrupt_at=killed_at or None)
app.run(main.run, flags_parser=main.parse)
"""


def test_a_run_that_is_killed_goes_on_elsewhere_without_losing_a_bit(url, tmp_path):
    test_loop.run(tmp_path / "straight", 10)
    for machine, killed_at in enumerate((5, 8, 0)):
        environment = os.environ | {"HOME": str(tmp_path / f"machine {machine}")}
        process = subprocess.run([sys.executable, "-c", MAIN, "--config=tiny", f"--workdir={url}", str(killed_at)],
                                 env=environment, capture_output=True, text=True, timeout=300)
        assert process.returncode == (9 if killed_at else 0), process.stderr
    assert ".writer.json" not in names(url)
    local = Path(bucket.stage(url, only_reads=True))
    assert test_loop.metrics(local / "generator") == test_loop.metrics(tmp_path / "straight")
    assert (local / "generator/pictures/picture.png").read_bytes() == (
        tmp_path / "straight/pictures/picture.png").read_bytes()
    template = {"params": {"w": jax.ShapeDtypeStruct((3,), "float32")}}
    found = []
    for directory in (local / "generator", tmp_path / "straight"):
        with Checkpoints(directory / "checkpoints") as checkpoints:
            assert checkpoints.latest_step() == 10
            found.append(checkpoints.restore(template, partial=True)["params"]["w"])
    assert (found[0] == found[1]).all()


def test_a_move_that_is_interrupted_leaves_one_of_both_complete(url, monkeypatch):
    found, prefix = bucket.objects(url)
    for name in ("3/commit_success.txt", "3/record.json", "3/state/a"):
        found.blob(f"{prefix}{name}").upload_from_string(name)
    answered = bucket.answered
    for failing in ("copy_blob", "delete"):
        calls = []

        def interrupted(url, call, *arguments, failing=failing, calls=calls, **settings):
            calls.append(getattr(call, "__name__", ""))
            if calls.count(failing) == 2:
                raise KeyboardInterrupt
            return answered(url, call, *arguments, **settings)

        monkeypatch.setattr(bucket, "answered", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bucket.move(f"{url}/3", f"{url}/replaced_3_{failing}")
        monkeypatch.setattr(bucket, "answered", answered)
        complete = "3/" if failing == "copy_blob" else "replaced_3_delete/"
        assert {name.removeprefix(complete) for name in names(url) if name.startswith(complete)} == {
            "commit_success.txt", "record.json", "state/a"}
