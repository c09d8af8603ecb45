"""`--mode=report` on workdirs: what it writes, prints and refuses."""

import errno
import os
from pathlib import Path

import pytest

from benchmarks import reference
from configs import tiny
from refocus_jax import main
from refocus_jax.modes import report
from refocus_jax.runtime import bucket
from tests.fixtures import workdirs


def config(**changes):
    c = tiny.get_config()
    c.update_from_flattened_dict(changes)
    return c


def test_a_page_is_written_and_the_verdict_printed(tmp_path, capsys):
    seeds = [str(workdirs.write(tmp_path / f"seed_{seed}", seed)) for seed in range(3)]
    out = tmp_path / "reference.json"
    reference.main(["make", "--workdirs", *seeds, "--machine", "a desk", "--out", str(out)])
    other = workdirs.write(tmp_path / "other", 4, **{"generator.train.label_dropout": 0.3})
    main.find("report")(config(**{"report.reference": str(out), "report.compare": (str(other),)}), seeds[0])
    printed = capsys.readouterr().out
    assert "seed_0: Healthy: tokenizer up to step 2400" in printed
    assert "other: Not compared: " in printed and "generator.train.label_dropout is 0.1 there and 0.3 here" in printed
    assert f"{seeds[0]}/report.html" in printed
    page = (tmp_path / "seed_0" / "report.html").read_text()
    assert "<title>ReFocus-VAR: seed_0, other</title>" in page and not list(tmp_path.rglob("*.tmp"))
    report.run(config(**{"report.reference": str(tmp_path / "none.json")}), seeds[0])
    assert "none.json, which does not exist" in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    first, second = (workdirs.write(tmp_path / folder / "tiny", stages=("tokenizer",), until=0.1) for folder in "ab")
    report.run(config(**{"report.compare": (str(second),)}), str(first))
    assert f"<title>ReFocus-VAR: {first}, {second}</title>" in (first / "report.html").read_text()
    with pytest.raises(ValueError, match="names a workdir twice"):
        report.run(config(**{"report.compare": (str(first),)}), str(first))


def test_what_is_no_workdir_is_refused_before_anything_is_written(tmp_path):
    run = workdirs.write(tmp_path / "run", stages=())
    with pytest.raises(FileNotFoundError, match="nothing is not the workdir of a run: it does not exist"):
        report.run(config(**{"report.compare": (str(tmp_path / "nothing"),)}), str(run))
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("missing", [("jinja2",), ("matplotlib",), ("jinja2", "matplotlib")])
def test_missing_packages_are_named_before_anything_is_read(tmp_path, hide, missing):
    hide(*missing)
    expected = rf"--mode=report needs {' and '.join(missing)}; run pip install 'refocus_jax\[report\]'"
    with pytest.raises(ImportError, match=expected):
        report.run(config(), str(tmp_path / "not_there"))


def test_a_full_disk_is_said_in_a_line_and_the_former_page_stays(tmp_path, monkeypatch):
    run = workdirs.write(tmp_path / "run", stages=())
    report.run(config(**{"report.reference": ""}), str(run))
    before = (run / "report.html").read_text()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"report.html cannot be written \(No space left on device\); make room"):
        report.run(config(**{"report.reference": ""}), str(run))
    assert (run / "report.html").read_text() == before and not list(run.glob(".*.tmp"))


def test_a_report_of_a_run_in_a_bucket_names_its_address(url, capsys):
    """And not the folder that its files are fetched into, which is removed at the end."""
    made = workdirs.write(Path(bucket.stage(url, only_reads=False)), stages=("tokenizer",), until=0.1)
    bucket.publish(made)
    fetched = bucket.stage(url, only_reads=True)
    report.run(config(), fetched)
    assert f"{url}/report.html, " in capsys.readouterr().out
    page = Path(fetched, "report.html").read_text()
    assert "<title>ReFocus-VAR: run" in page and f"--workdir={url} " in page and fetched not in page
