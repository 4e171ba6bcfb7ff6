import numpy as np
import pytest

from dino_jax.schedules import CosineSchedule, FrozenStart, WarmupCosine, learning_rate_scale
from tests.conftest import golden_runs


def values(schedule, steps):
    return np.array([schedule(step) for step in range(steps)])


def test_warmup_cosine_by_hand():
    schedule = WarmupCosine(start=0.0, peak=4.0, end=2.0, warmup=2, cosine=3, total=7)
    np.testing.assert_allclose(values(schedule, 9), [0, 2, 4, 3, 2, 2, 2, 2, 2], rtol=1e-15)


def test_cosine_schedule_by_hand():
    schedule = CosineSchedule(base=4.0, end=2.0, start=1.0, freeze=1, warmup=2, total=7)
    quarter = 3 + np.cos(np.pi / 4)
    np.testing.assert_allclose(values(schedule, 9), [0, 1, 4, 4, quarter, 3, 6 - quarter, 2, 2], rtol=1e-15)


def test_warmup_cosine_against_linspace():
    schedule = WarmupCosine(start=0.3, peak=1.0, end=0.1, warmup=7, cosine=11, total=30)
    expected = np.concatenate(
        [
            np.linspace(0.3, 1.0, 7, endpoint=False),
            0.1 + 0.45 * (1 + np.cos(np.linspace(0, np.pi, 11))),
            np.full(32, 0.1),
        ]
    )
    np.testing.assert_allclose(values(schedule, 50), expected, rtol=1e-13)


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("cosine", [0, 1, 2, 5, None])
def test_monotone_and_exact_at_the_end(warmup, cosine):
    schedule = WarmupCosine(start=0.1, peak=1.0, end=0.2, warmup=warmup, cosine=cosine, total=10)
    assert (np.diff(values(schedule, warmup)) >= 0).all()
    assert (np.diff(values(schedule, 15)[warmup:]) <= 0).all()
    assert schedule(9) == schedule(10) == schedule(10**9) == 0.2


def test_frozen_start():
    schedule = FrozenStart(WarmupCosine(start=1.0, peak=1.0, end=1.0, total=5), 2)
    assert values(schedule, 4).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("steps", [{"warmup": -1}, {"warmup": 6, "cosine": 5}, {"warmup": 11}, {"cosine": -2}])
def test_steps_that_do_not_fit(steps):
    with pytest.raises(ValueError, match="do not fit into total=10"):
        WarmupCosine(start=0.0, peak=1.0, end=0.0, total=10, **steps)


@pytest.mark.parametrize("steps", [{"warmup": -1}, {"warmup": 6, "freeze": 5}, {"freeze": -1}, {"truncated": -0.1}])
def test_v1_steps_that_do_not_fit(steps):
    with pytest.raises(ValueError, match="do not fit into total=10"):
        CosineSchedule(base=1.0, end=0.0, total=10, **steps)


def test_scaling_rules():
    assert learning_rate_scale("none", 64) == 1
    assert learning_rate_scale("linear_wrt_256", 64) == 0.25
    assert learning_rate_scale("sqrt_wrt_1024", 4096) == 8
    with pytest.raises(ValueError, match="'cosine': use none"):
        learning_rate_scale("cosine", 64)


def assert_schedule(schedule, expected, name="") -> None:
    """Compares all values in float64; an end near 0 is a difference of larger ones and has their rounding."""
    assert len(expected)
    absolute = 4e-16 * np.abs(expected).max()
    np.testing.assert_allclose(values(schedule, len(expected)), expected, rtol=1e-13, atol=absolute, err_msg=name)


def cosine_schedule(
    *, base_value, final_value, total_iters, warmup_iters=0, start_warmup_value=0, freeze_iters=0, trunc_extra=0.0
):
    """A `CosineSchedule` from the reference's argument names."""
    return CosineSchedule(
        base=base_value,
        end=final_value,
        total=total_iters,
        warmup=warmup_iters,
        start=start_warmup_value,
        freeze=freeze_iters,
        truncated=trunc_extra,
    )


def warmup_cosine(options, *, epoch, total, factor=1.0):
    """A `WarmupCosine` from a reference's schedule section; `factor` scales its peak and end."""
    cosine = options.get("cosine_epochs")
    return WarmupCosine(
        start=options["start"],
        peak=options["peak"] * factor,
        end=options["end"] * factor,
        warmup=options["warmup_epochs"] * epoch,
        cosine=None if cosine is None else cosine * epoch,
        total=total,
    )


@pytest.mark.golden
def test_golden_of_cosine_schedules(golden):
    file = golden("v3_schedules.npz")
    cases = file.under("cosine_scheduler/")
    assert cases
    for case, expected in cases.items():
        schedule = cosine_schedule(**file.config[f"cosine_scheduler/{case}"])
        assert_schedule(schedule, expected, case)
        for step, value in enumerate(file[f"cosine_scheduler_beyond_end/{case}"]):
            assert schedule(len(expected) + 1000 * step) == value


@pytest.mark.golden
def test_golden_of_warmup_cosine(golden):
    file = golden("v3_schedules.npz")
    cases = file.under("linear_warmup_cosine_decay/")
    assert cases
    for case, expected in cases.items():
        options = file.config[f"linear_warmup_cosine_decay/{case}"]
        schedule = WarmupCosine(**{key.removesuffix("_iterations"): value for key, value in options.items()})
        assert_schedule(schedule, expected, case)


@pytest.mark.golden
def test_golden_of_the_first_form(golden):
    """A whole run in the form of DINOv2: five schedules from one flat configuration."""
    file = golden("v3_schedules.npz")
    c = file.config["build_schedulers_v1"]
    epoch = c["OFFICIAL_EPOCH_LENGTH"]
    total = c["epochs"] * epoch
    rate = CosineSchedule(
        base=c["lr"],
        end=c["min_lr"],
        total=total,
        warmup=c["warmup_epochs"] * epoch,
        truncated=c["schedule_trunc_extra"],  # of this one alone: files with 0.25 show the others untruncated
    )
    temperature_warmup = c["warmup_teacher_temp_epochs"] * epoch
    schedules = {
        "lr": rate,
        "last_layer_lr": FrozenStart(rate, c["freeze_last_layer_epochs"] * epoch),
        "weight_decay": CosineSchedule(base=c["weight_decay"], end=c["weight_decay_end"], total=total),
        "momentum": CosineSchedule(base=c["momentum_teacher"], end=c["final_momentum_teacher"], total=total),
        "teacher_temp": CosineSchedule(
            base=c["teacher_temp"],
            end=c["teacher_temp"],
            start=c["warmup_teacher_temp"],
            total=temperature_warmup,
            warmup=temperature_warmup,
        ),
    }
    for name, schedule in schedules.items():
        assert_schedule(schedule, file[f"build_schedulers_v1/{name}"], name)


@pytest.mark.golden
def test_golden_of_dino(golden):
    file = golden("v1_schedules_param_groups.npz")
    cases = file.under("cosine_scheduler/")
    assert cases
    for name, expected in cases.items():
        c = file.config[name]
        epoch = c["niter_per_ep"]
        schedule = CosineSchedule(
            base=c["base"], end=c["final"], total=c["epochs"] * epoch, warmup=c.get("warmup_epochs", 0) * epoch
        )
        assert_schedule(schedule, expected, name)


@pytest.mark.golden
def test_golden_of_the_second_form(golden):
    file = golden("v3_schedules.npz")
    cases = [case for case in file.config if case.startswith("build_schedulers_v2/")]
    assert cases
    for case in cases:
        c, rule = file.config[case], case.split("/")[1]
        check_run(
            expected=file.under(f"{case}/"),
            sections=c["schedules"],
            epoch=c["OFFICIAL_EPOCH_LENGTH"],
            total=c["epochs"] * c["OFFICIAL_EPOCH_LENGTH"],
            factor=learning_rate_scale(rule, c["batch_size_per_gpu"] * c["world_size"]),
        )


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_runs("v3_train_*.npz"))
def test_golden_of_the_training_runs(golden, name):
    file = golden(name)
    c = file.config
    epoch, batch = c["train"]["OFFICIAL_EPOCH_LENGTH"], c["train"]["batch_size_per_gpu"]
    check_run(
        expected=file.under("schedule/"),
        sections={
            **c["schedules"],
            "gram_loss_weight": c["gram"]["loss_weight_schedule"],
            "dino_local_loss_weight": c["dino"]["local_loss_weight_schedule"],
        },
        epoch=epoch,
        total=c["optim"]["epochs"] * epoch,
        factor=learning_rate_scale(c["optim"]["scaling_rule"], batch),
    )


def check_run(*, expected, sections, epoch, total, factor):
    """Compares the schedules of a run with its configuration's sections."""
    assert expected
    for name, array in expected.items():
        options = sections[name.removeprefix("last_layer_")]
        schedule = warmup_cosine(options, epoch=epoch, total=total, factor=factor if name.endswith("lr") else 1.0)
        if name == "last_layer_lr":
            schedule = FrozenStart(schedule, options["freeze_last_layer_epochs"] * epoch)
        assert_schedule(schedule, array, name)
