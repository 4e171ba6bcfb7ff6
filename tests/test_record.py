"""What is measured while a run trains and when it ends is of the network that it is said to be of."""

import json
from types import SimpleNamespace

import jax
import numpy as np

from dino_jax import build, health, objective, record, report, sharding
from dino_jax.metrics import NOTHING_RESTORED, read_metrics
from dino_jax.phases import in_order
from dino_jax.scores import Interrupted
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
    out, _ = objective.teacher_outputs(networks, state.teacher, batch, None)
    dino, ibot = (jax.nn.softmax(scores / 0.1) for scores in (out["dino"], out["ibot"][:16]))
    for name, probs in (("dino", dino), ("ibot", ibot)):
        for measure, value in health.prototypes(probs).items():
            np.testing.assert_allclose(found[f"health/{name}_{measure}"], value, rtol=1e-5, err_msg=measure)
    np.testing.assert_allclose(found["health/rankme"], health.rankme(out["cls"][:, 0]), rtol=1e-5)


def test_health_counts_from_the_warm_up_of_the_first_phase(monkeypatch, tmp_path):
    """A later phase does not forget what the features were like before it."""
    config, asked = get_config(), []
    monkeypatch.setattr(health, "diagnose", lambda records, warmup_steps: asked.append(warmup_steps) or ["decay"])
    recorder = record.Recorder.__new__(record.Recorder)
    recorder._config, recorder._history, recorder.throughput = config, [], SimpleNamespace(read=dict)
    recorder._writer = SimpleNamespace(write=lambda step, values: None)
    said = []
    recorder._progress = SimpleNamespace(update=lambda *_, **__: None, note=said.append)
    recorder._write(in_order(config)[1], 12, {"loss/total": 1.0}, healthy=True)
    assert asked == [2] and said == ["step 12: decay"]


def test_a_stop_does_not_wait_for_an_evaluation(tmp_path):
    """The record of its step, which the checkpoint takes along, is written after the restart."""
    config, asked = get_config(), []
    config.log.every, config.log.health_every = 4, 100

    class Scores:
        seconds = 0.0

        def due(self, step):
            return step == 4

        def at(self, step, params):
            asked.append(step)
            if len(asked) == 1:
                raise Interrupted
            return {"dense/miou": 0.3}

    def recorder(resume_step):
        said = SimpleNamespace(note=lambda words: None, update=lambda *_, **__: None, close=lambda: None)
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        networks = build.networks(config, shards=1)
        options = {"workdir": tmp_path, "resume_step": resume_step, "first_backbone": dict}
        return record.Recorder(config, networks, mesh, Scores(), said, **options)

    phase, state, batch = in_order(config)[0], linear_networks.state(), {"global_crops": np.zeros(2)}
    with recorder(NOTHING_RESTORED) as before:
        before.enter(phase)
        for step in range(1, 5):
            assert before.unfinished() == {}
            before.after_step(phase, step, state, batch, {"loss/total": np.float32(step / 3)}, {"lr": np.float32(0.1)})
            assert before.evaluate(phase, step, state) == (step < 4)
        found = json.loads(json.dumps(before.unfinished()))  # as a checkpoint keeps it
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    for _ in range(2):  # the first restart may be killed before it saves
        with recorder(4) as after:
            after.finish(phase, 4, state, found["record"])
    assert asked == [4, 4]
    expected = {"step": 4, "loss/total": float(np.float32(4 / 3)), "schedule/lr": float(np.float32(0.1))}
    assert read_metrics(tmp_path / "metrics.jsonl") == [expected | {"dense/miou": 0.3}]


def test_a_run_whose_beginning_is_lost_reports_the_rest(tmp_path, capsys):
    class Scores:
        held_out = "images"

        def baselines(self, first_backbone):
            raise ValueError("the copy is gone")

        def knn_of_pixels(self):
            return {"knn/pixels": 0.1}

        def knn(self, params, name):
            return {name: 0.5}

        def dense(self, params):
            return {"dense/miou": 0.3}

        def quality(self, params):
            return {}

    whole = report.Report(get_config(), Scores(), None, tmp_path, None, dict)
    results = whole.finish(linear_networks.state(), seconds=lambda: 12.0)
    assert {"knn/pixels": 0.1, "knn/trained": 0.5, "dense/miou": 0.3}.items() <= results.items()
    assert "knn/untrained" not in results
    out, err = capsys.readouterr()
    assert "trained teacher" in out and "50.0 %" in out
    assert err == "not compared with the network as the run began: the copy is gone\n"


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
