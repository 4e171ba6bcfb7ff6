"""What is measured while a run trains and when it ends is of the network that it is said to be of."""

from types import SimpleNamespace

import jax
import numpy as np

from dino_jax import health, objective, record, report, sharding, train
from dino_jax.state import student_weights, teacher_weights
from tests import linear_networks
from tests.tiny_recipe import get_config


def test_weights_are_of_the_network_that_is_named():
    state = linear_networks.state()
    assert student_weights(state)["mask_token"] is state.student["backbone"]["mask_token"]
    assert teacher_weights(state)["mask_token"] is state.teacher["backbone"]["mask_token"]


def test_health_is_the_teacher_s_on_unpadded_patches():
    networks, state = linear_networks.networks(), linear_networks.state()
    batch = linear_networks.batch(padding=8)  # which points at a patch that nobody counts
    found = jax.jit(record.make_health_step(networks))(state, batch)
    out, _ = objective.teacher_logits(networks, state.teacher, batch, None)
    dino, ibot = (jax.nn.softmax(scores / 0.1) for scores in (out["dino"], out["ibot"][:16]))
    for name, probs in (("dino", dino), ("ibot", ibot)):
        for measure, value in health.prototypes(probs).items():
            np.testing.assert_allclose(found[f"health/{name}_{measure}"], value, rtol=1e-5, err_msg=measure)
    np.testing.assert_allclose(found["health/rankme"], health.rankme(out["cls"][:, 0]), rtol=1e-5)


def test_a_finished_run_reports_its_teacher(tmp_path):
    state = linear_networks.state()
    asked = {}

    class Scores:
        held_out = None

        def baselines(self, first_backbone):
            return {"knn/pixels": 0.1, "knn/untrained": first_backbone()}

        def knn(self, params, name):
            asked[name] = params
            return {name: 0.5}

        def dense(self, params):
            asked["dense"] = params
            return {}

        def quality(self, params):
            asked["quality"] = params
            return {}

    config = get_config()
    whole = report.Report(config, Scores(), None, tmp_path, None, lambda: 0.25)
    results = whole.finish(state, seconds=lambda: 12.0)
    assert {"knn/untrained": 0.25, "knn/trained": 0.5, "time/seconds": 12.0, "train/step": 0}.items() <= results.items()
    for params in asked.values():
        assert params["mask_token"] is state.teacher["backbone"]["mask_token"]
    assert asked.keys() == {"knn/trained", "dense", "quality"}


def test_a_step_is_augmented_by_its_number():
    trainer = train.Trainer.__new__(train.Trainer)
    trainer.mesh, trainer.key = sharding.make_mesh(devices=jax.devices()[:1]), jax.random.key(0)
    trainer.augment = lambda key, number, arrays: arrays | {"number": number}
    trainer.bad_images = SimpleNamespace(update=lambda *_: None)
    host = {"global_crops": np.zeros((1, 2, 4, 4, 3), np.uint8), "ids": np.array([7]), "labels": None, "replaced": None}
    ids, batch = trainer.place(5, host)
    assert ids.tolist() == [7] and batch["number"] == 4 and batch.keys() == {"global_crops", "number"}


def test_what_a_restart_takes_over(tmp_path):
    """The time that the run has taken, and scores of snapshots up to the step that it continues from."""
    forgotten, state = [], object()
    trainer = train.Trainer.__new__(train.Trainer)
    trainer.phases, trainer.progress = train.in_order(get_config()), SimpleNamespace(note=lambda words: None)
    trainer.gram = SimpleNamespace(check=lambda *_, **__: None, forget_scores=lambda after: forgotten.append(after))
    trainer.backbone_like = None
    found = SimpleNamespace(step=3, data={"seconds": 7.5, "batches_taken": 3}, state=state)
    checkpoints = SimpleNamespace(steps=lambda: [3], restore=lambda like, note: found, folder=tmp_path)
    assert trainer.restore(checkpoints) == (state, train.Resumed(3, found.data))
    assert (trainer.seconds_before, forgotten) == (7.5, [3])
