"""Which changes of settings a resumed stage accepts, warns about or refuses, by the records of its checkpoints."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax import pretrained
from refocus_jax.config import build, stages
from refocus_jax.config.base import STAGES
from refocus_jax.modes import aliasing, train
from refocus_jax.pretrained.choice import choose_generator
from refocus_jax.pretrained.prepare import Prepared, prepare
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.checkpoint import Checkpoints
from refocus_jax.runtime.digests import digests as digests_of

STEPS = {"tokenizer": 2, "generator": 4}  # trained


def save_images(path: Path, images: np.ndarray) -> None:
    np.savez(path, x=images, y=np.arange(64) % 2, val=np.arange(64) % 4 == 0, classes=np.array(["even", "odd"]))


def random_state(task, seed: int):
    """Parameters drawn by numpy, which is faster than compiling an initializer."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jax.numpy.asarray(rng.uniform(0, 1, a.shape), a.dtype),
                        jax.eval_shape(task.init, jax.random.key(0)))


def save(workdir: Path, stage: str, step: int, state, made_with) -> None:
    with Checkpoints(workdir / stage / "checkpoints") as checkpoints:
        checkpoints.save(step, state, {"position": {"examples": 4 * step}, "made_with": made_with})


@dataclasses.dataclass
class Place:
    """A workdir with checkpoints of both stages, and the file of its images."""

    workdir: Path
    images: Path
    base: object

    def config(self, **changes):
        c = self.base()
        c.data.source = f"npz:{self.images}"
        for stage, steps in STEPS.items():
            c[stage].train.steps = steps
        c.update_from_flattened_dict(changes)
        return c

    def prepare(self, **changes):
        return prepare(self.config(**changes), str(self.workdir)).run


@pytest.fixture(scope="module")
def finished(micro, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    save_images(folder / "images.npz", images)
    place = Place(folder / "run", folder / "images.npz", micro)
    c, run = place.config(), place.prepare()
    state = random_state(build.tokenizer_task(c), 0)
    save(place.workdir, "tokenizer", STEPS["tokenizer"], state, run.made_with("tokenizer"))
    state, digests = random_state(build.generator_task(c, 2), 1), digests_of(state.params)
    save(place.workdir, "generator", STEPS["generator"], state, run.made_with("generator", digests))
    return place


@pytest.fixture
def place(finished, tmp_path):
    """A copy of the workdir that a test may change."""
    shutil.copytree(finished.workdir, tmp_path / "run")
    shutil.copy(finished.images, tmp_path / "images.npz")
    return dataclasses.replace(finished, workdir=tmp_path / "run", images=tmp_path / "images.npz")


GOES_ON = {"generator.train.steps": 9}


@pytest.mark.parametrize(("changes", "said"), [
    ({"seed": 1}, "seed was 0 and is 1. Give seed=0, or another --workdir"),
    ({"data.flip": True}, "data.flip was False and is True. Give data.flip=False, or"),
    ({"data.resize_ratio": 1.5, "seed": 2}, "data.resize_ratio was 0.0 and is 1.5; seed was 0 and is 2. Give "
                                            "data.resize_ratio=0.0, seed=0, or another"),
    ({"data.token_examples": 48}, "tokens was '32 cached, .*' and is '48 cached, .*'. Give data.tokens and "
                                  "data.token_examples as they were, or"),
    ({"encode.batch_size": 8}, "tokens was .* 4 at a time' and is .* 8 at a time'"),
    ({"data.token_examples": 0}, "tokens was .* and is 'made as it goes'"),
    ({"focus.psf": "gaussian"}, "tokenizer of step 2 says: focus.psf was 'disk' and is 'gaussian'. Give focus"),
    ({"generator.model.width": 32}, "generator of step 4 says: generator.model.width was 16 and is 32. Give "
                                    "generator.model.width=16"),
])
@pytest.mark.parametrize("config_json", [True, False])
def test_what_makes_another_order_or_another_model_is_refused_by_name(place, changes, said, config_json):
    """With or without config.json, because the checkpoints record the settings; and nothing is written."""
    path = place.workdir / "config.json"
    before = path.read_bytes()
    if not config_json:
        path.unlink()
    with pytest.raises(ValueError, match=f"--workdir {re.escape(str(place.workdir))} holds another experiment.*{said}"):
        place.prepare(**GOES_ON | changes)
    assert path.read_bytes() == before if config_json else not path.exists()


def test_other_images_of_the_same_classes_are_refused(place, images):
    changed = images.copy()
    changed[1, 0, 0, 0] ^= 1  # one bit
    save_images(place.images, changed)
    with pytest.raises(ValueError, match="images was '48 of fingerprint .*' and is '48 of fingerprint .*'. Give the "
                                         "images of data.source as they were, or another --workdir"):
        place.prepare(**GOES_ON)


@pytest.mark.parametrize("changes", [
    {"generator.train.batch_size": 8}, {"generator.train.microbatches": 2}, {"data.num_workers": 2},
    {"generator.model.remat": "none"}, {"profile.steps": (5, 6)},
    {"generator.optimizer.learning_rate": 1e-5}, {"data.validation_examples": 4}, {}], ids=str)
def test_what_changes_no_order_may_change(place, changes, caplog):
    place.prepare(**GOES_ON | changes)
    said = "generator.train.batch_size was 4 and is 8. It continues with the next examples."
    assert (said in caplog.text) == ("generator.train.batch_size" in changes)


def test_images_that_have_moved_are_the_same_images(place, caplog):
    moved = place.images.with_name("moved.npz")
    place.images.rename(moved)
    dataclasses.replace(place, images=moved).prepare(**GOES_ON)
    assert re.search(f"generator in .* data.source was 'npz:.*' and is 'npz:{moved}'. It continues", caplog.text)


def test_what_is_finished_stays_and_that_is_said(place, caplog):
    place.prepare(seed=1)
    for stage in STAGES:
        assert re.search(f"The {stage} in .* seed was 0 and is 1. It is finished and stays as it is.", caplog.text)


def test_a_run_that_is_older_than_a_setting_goes_on(place, caplog):
    """Its checkpoints and its config.json do not have the setting, which then has its default."""
    for stage, kind, name in (("tokenizer", "shape", "tokenizer.model.residual"), ("generator", "order", "data.flip"),
                              ("generator", "shape", "generator.teacher.train_shared")):
        before = stages.trained(place.workdir, stage).made_with
        older = {**before, kind: {key: value for key, value in before[kind].items() if key != name}}
        assert len(older[kind]) == len(before[kind]) - 1
        stages.check(str(place.workdir), stage, stages.Trained(1, older), before, goes_on=True)
        with pytest.raises(ValueError, match=f"{name} was False and is True"):
            changed = {**before, kind: before[kind] | {name: True}}
            stages.check(str(place.workdir), stage, stages.Trained(1, older), changed, goes_on=True)
    assert not caplog.text


def test_a_lost_config_json_comes_back(place):
    path = place.workdir / "config.json"
    place.prepare()
    before = path.read_bytes()
    path.unlink()
    place.prepare()
    assert path.read_bytes() == before


def test_tokenizers_under_a_generator_are_not_trained_on(place):
    with pytest.raises(ValueError, match="tokenizer.train.steps is 3, and the generator in .* was trained on the "
                                         "tokenizers of step 2.*give tokenizer.train.steps=2, or"):
        train.run(place.config(**{"tokenizer.train.steps": 3}), str(place.workdir))
    assert [path.name for path in (place.workdir / "tokenizer" / "checkpoints").iterdir()] == ["2"]
    shutil.rmtree(place.workdir / "tokenizer")
    with pytest.raises(ValueError, match="the tokenizers that it was trained on are not in .*tokenizer; put them back"):
        place.prepare()
    shutil.rmtree(place.workdir / "generator")
    place.prepare(**{"tokenizer.train.steps": 3})


def exchange_tokenizers(workdir: Path, c) -> None:
    """Replaces the tokenizers by those of a later step."""
    made_with = stages.trained(workdir, "tokenizer").made_with
    save(workdir, "tokenizer", 9, random_state(build.tokenizer_task(c), 5), made_with)


def test_a_generator_meets_the_tokenizers_it_was_trained_on(place):
    pretrained.load_generator(str(place.workdir))
    exchange_tokenizers(place.workdir, place.config())
    refused = "generator in .* was not trained on the tokenizers in .*: alias, residual_std, structure differ.*or train"
    for use in (lambda: pretrained.load_generator(str(place.workdir)), lambda: place.prepare(**GOES_ON),
                lambda: aliasing.run(place.config(), str(place.workdir))):
        with pytest.raises(ValueError, match=refused):
            use()


def test_a_generator_notices_that_the_workdir_of_its_tokenizers_trained_on(place, tmp_path, caplog):
    c = place.config(**{"tokenizer.pretrained": str(place.workdir)})
    run = prepare(c, str(tmp_path / "other")).run
    digests = digests_of(pretrained.load_tokenizer(str(place.workdir)).params)
    save(tmp_path / "other", "generator", 4, random_state(build.generator_task(c, 2), 1),
         run.made_with("generator", digests))
    shutil.copytree(place.workdir, tmp_path / "moved")
    moved = place.config(**{"tokenizer.pretrained": str(tmp_path / "moved")})
    prepare(moved, str(tmp_path / "other"))
    assert f"tokenizer.pretrained was '{place.workdir}' and is '{tmp_path / 'moved'}'" in caplog.text
    prepare(c, str(tmp_path / "other"))
    exchange_tokenizers(place.workdir, c)
    refused = f"was not trained on the tokenizers in tokenizer.pretrained={re.escape(str(place.workdir))}: .*Give the"
    for use in (lambda: pretrained.load_generator(str(tmp_path / "other")),
                lambda: prepare(c, str(tmp_path / "other"))):
        with pytest.raises(ValueError, match=refused):
            use()
    prepare(moved, str(tmp_path / "other"))


def test_a_student_that_starts_on_other_tokenizers_than_it_knows_is_named(place, caplog):
    c = place.config(**{"generator.init_from": str(place.workdir), "generator.teacher.enabled": False})
    prepared = Prepared(dataclasses.replace(place.prepare(), config=c), None, None)
    task = build.generator_task(c, 2)
    digests = digests_of(pretrained.load_tokenizer(str(place.workdir)).params)
    for tokenizers, named in ((digests, False), (digests | {"structure": "other"}, True)):
        train._warm_start(prepared, task, tokenizers)(random_state(task, 3))
        assert ("trained on other tokenizers (structure differ)" in caplog.text) == named


def test_a_checkpoint_is_chosen_by_its_step(place, tmp_path):
    made_with = stages.trained(place.workdir, "generator").made_with
    before = pretrained.load_generator(place.workdir)
    save(place.workdir, "generator", 6, random_state(build.generator_task(place.config(), 2), 7), made_with)
    assert pretrained.load_generator(place.workdir).step == 6
    found, origin = choose_generator(place.config(resume_step=4), str(place.workdir))
    assert found.identity == before.identity and origin["step"] == found.step == 4
    with pytest.raises(FileNotFoundError, match=r"No checkpoint of step 5 in .* one of \[4, 6\]"):
        pretrained.load_generator(place.workdir, step=5)
    with pytest.raises(ValueError, match="resume_step is 4, and the generator is that of generator.init_from"):
        choose_generator(place.config(resume_step=4, **{"generator.init_from": "var.pth"}), str(tmp_path / "none"))
    # A finished run that goes on from an earlier step is not finished.
    place.prepare(**{"generator.train.steps": 6, "seed": 1})
    with pytest.raises(ValueError, match="generator of step 4 says: seed was 0 and is 1"):
        place.prepare(resume_step=4, **{"generator.train.steps": 6, "seed": 1})
    with pytest.raises(FileNotFoundError, match="resume_step is 4: No checkpoint of step 4 in .*tokenizer"):
        prepare(place.config(resume_step=4), str(place.workdir), "tokenizer")


class Counting:
    """A stage 1 that only counts its steps."""

    name, tokenizer = "tokenizer", None

    def init(self, key):
        return CountingState(jnp.zeros((), jnp.int32), {"w": jnp.zeros(())})

    def update(self, state, frozen, batch, key):
        return state.replace(step=state.step + 1), {"loss/total": jnp.zeros(())}


@flax.struct.dataclass
class CountingState:
    step: jax.Array
    params: dict[str, jax.Array]


def test_stage_1_goes_on_with_other_batches_parts_and_workers(place, monkeypatch):
    """The whole loop, with a task that compiles at once: it reads each example that it has not seen once, in the same
    order."""
    shutil.rmtree(place.workdir)
    read, put = [], mesh_lib.put_batch

    def remember(mesh, batch):
        if isinstance(batch, dict):
            read.append(batch["image"])
        return put(mesh, batch)

    settings = {"tokenizer.adversarial.weight": 0.0, "tokenizer.train.evaluate_every": 100}
    run = place.prepare(**settings)
    whole = dataclasses.replace(run, config=place.config(**settings, **{"tokenizer.train.batch_size": 24}))
    expected = next(iter(whole.batches("tokenizer")))["image"]
    monkeypatch.setattr(train.loop.mesh_lib, "put_batch", remember)
    monkeypatch.setattr(train.build, "tokenizer_task", lambda c: Counting())
    monkeypatch.setattr(train.parameters, "perceptual", lambda c: None)
    monkeypatch.setattr(train, "TokenizerEvaluator", lambda **arguments: lambda state, frozen: ())
    train.train_tokenizer(Prepared(run, None, None))
    train.train_tokenizer(prepare(place.config(**settings | {
        "tokenizer.train.steps": 4, "tokenizer.train.batch_size": 8, "tokenizer.train.microbatches": 2,
        "data.num_workers": 2}), str(place.workdir)))
    np.testing.assert_array_equal(np.concatenate(read), expected)
    record = stages.trained(place.workdir, "tokenizer")
    assert record.step == 4 and record.made_with["said"]["tokenizer.train.batch_size"] == 8
    assert json.loads((place.workdir / "config.json").read_text())["tokenizer"]["train"]["batch_size"] == 8
