"""Requests, frames, tokens and files of the tab Sample."""

import json

import numpy as np
import pytest

from refocus_jax.demo import drawing
from refocus_jax.pretrained.scales import Stage


def stages(count: int) -> list[Stage]:
    rng = np.random.default_rng(0)
    return [Stage(scale, rng.integers(0, 32, (count, p, p)), rng.uniform(-1, 1, (count, 2 * p, 2 * p, 3)))
            for scale, p in enumerate((1, 2, 4))]


def test_values_of_controls_become_a_request():
    asked = drawing.request([3, 1], 7.0, 2, 10.0, 0.5)
    assert asked.labels == (3, 1) and asked.seed == 7
    assert (asked.settings.cfg, asked.settings.top_k, asked.settings.top_p) == (2.0, 10, 0.5)
    assert drawing.request(2, 0, 0, 0, 0).labels == (2,)


@pytest.mark.parametrize("labels, seed, cfg, message", [
    ([], 0, 1, "0 classes are chosen; choose 1 to 4"), (None, 0, 1, "0 classes"), ([0] * 5, 0, 1, "5 classes"),
    ([0], None, 1, "the seed is empty; give"), ([0], 1.5, 1, "the seed is 1.5; give"), ([0], -1, 1, "the seed is -1"),
    ([0], 2**32, 1, "the seed is 4294967296; give 0 to"), ([0], 0, -1, "sampling.cfg is -1.0")])
def test_values_that_cannot_be_drawn_are_named(labels, seed, cfg, message):
    with pytest.raises(ValueError, match=message):
        drawing.request(labels, seed, cfg, 0, 0)


@pytest.mark.parametrize("count, shape", [(1, (16, 16, 3)), (2, (20, 38, 3)), (4, (38, 38, 3))])
def test_all_frames_of_a_focus_pull_have_one_size(count, shape):
    frames = [drawing.frame(stage.images, 16) for stage in stages(count)]
    assert {frame.shape for frame in frames} == {shape} and all(frame.dtype == np.uint8 for frame in frames)


def test_the_focus_pull_goes_from_the_first_frame_to_the_last():
    frames = [np.full((2, 2, 3), value, np.uint8) for value in (0, 100, 200)]
    for position, value in ((1, 0), (1.5, 50), (2, 100), (2.25, 125), (3, 200), (0, 0), (9, 200)):
        np.testing.assert_array_equal(drawing.pull(frames, position), np.full((2, 2, 3), value))


def test_similar_codes_have_similar_colours():
    codes = np.random.default_rng(0).standard_normal((64, 8))
    codes[1] = codes[0] + 1e-3
    colours = drawing.code_colours(codes).astype(int)
    assert colours.shape == (64, 3) and colours.min() >= 40 and colours.max() <= 240
    assert np.abs(colours[0] - colours[1]).max() <= 8 < np.abs(colours[0] - colours[2:]).max(axis=1).min()
    assert drawing.code_colours(codes[:, :2]).shape == (64, 3)


def test_tokens_are_shown_with_their_numbers():
    html = drawing.token_cards(stages(2), ["cat", "<b>"], np.zeros((32, 3), np.uint8))
    assert html.count("<img") == html.count("<pre>") == 6
    assert "Tokens of cat" in html and "&lt;b&gt;" in html and "<b>" not in html
    tokens = stages(2)[1].tokens[0]
    assert "\n".join(" ".join(f"{t:{len(str(tokens.max()))}d}" for t in line) for line in tokens) in html


def test_settings_say_how_to_draw_the_same_again():
    asked = drawing.request([1, 0], 5, 2.0, 0, 0.9)
    said = json.loads(drawing.settings_json(asked, ["cat", "dog"], {"generator": "runs/a", "step": 3}, mask="box"))
    assert said["flags"] == ["--config.sample.classes=('dog', 'cat')", "--config.sample.count=2",
                             "--config.sample.seed=5", "--config.sampling.cfg=2.0", "--config.sampling.top_k=0",
                             "--config.sampling.top_p=0.9"]
    assert said["made_with"] == {"generator": "runs/a", "step": 3} and said["mask"] == "box"
