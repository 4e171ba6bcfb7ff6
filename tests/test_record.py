"""What is measured while a run trains and when it ends is of the network that it is said to be of."""

import jax
import numpy as np

from dino_jax import health, objective, record, report
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
