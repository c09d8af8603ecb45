"""The table of an evaluation as text."""

from refocus_jax.reporting import evaluations


def test_one_row_a_metric_and_one_column_a_scale():
    text = evaluations.text("generator", {"step": 7, "validation/ce/scale_1": 1.5, "validation/ce/scale_2": 2.5,
                                          "validation/ce/all": 2.0, "validation/bits": 640.25,
                                          "validation/difference/low": -0.5})
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["generator,", "step", "7", "all", "scale", "1", "scale", "2"]
    assert lines[1:] == [["ce", "2", "1.5", "2.5"], ["bits", "640.2"], ["difference/low", "-0.5"]]
