"""Where a generator comes from, as samples and evaluations record it."""

import types

from refocus_jax.config import base
from refocus_jax.pretrained import choice
from refocus_jax.runtime import bucket


def test_a_generator_in_a_bucket_is_recorded_by_its_address(url, monkeypatch):
    """And not by the folder that its files are fetched into."""
    monkeypatch.setattr(choice, "load_generator", lambda workdir, step: types.SimpleNamespace(step=3))
    _, origin = choice.choose_generator(base.get_config(), bucket.stage(url, only_reads=True))
    assert origin == {"generator": url, "step": 3}
