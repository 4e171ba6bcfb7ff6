import pytest

from dino_jax.phases import Phase, check_batch, in_order
from tests.tiny_recipe import get_config


def phase(*, first=0, steps=100, **gram):
    config = get_config()
    options = config.phases["gram"]
    options.steps = steps
    options.gram.update({"teacher": "ema", "refresh_every": 0, "max_refreshes": 0} | gram)
    return Phase("gram", options, first, first + steps, 1)


def test_each_phase_warms_up_by_itself():
    p = phase(first=7)
    p.options.schedules.lr.warmup = 20
    assert p.warmup_ends == 27


def refreshes(p):
    """Lists the refreshes by asking after every step."""
    return [step for step in range(p.first + 1, p.last + 1) if p.last_refresh(step) == step]


@pytest.mark.parametrize(
    ("gram", "expected"),
    [
        ({}, []),
        ({"refresh_every": 30}, [30, 60, 90]),
        ({"refresh_every": 50}, [50, 100]),  # the last step too
        ({"refresh_every": 30, "max_refreshes": 2}, [30, 60]),
        ({"refresh_every": 30, "first_refresh": 60}, [60, 90]),
        ({"refresh_every": 30, "first_refresh": 45, "max_refreshes": 1}, [60]),
        ({"refresh_every": 30, "first_refresh": 101}, []),
        ({"refresh_every": 30, "teacher": "none"}, []),
    ],
)
def test_when_the_gram_teacher_is_refreshed(gram, expected):
    for first in (0, 7):  # a phase counts from its own first step
        p = phase(first=first, **gram)
        assert refreshes(p) == [first + step for step in expected]
        following = [p.next_refresh(first), *(p.next_refresh(step) for step in refreshes(p))]
        assert following == [*refreshes(p), None]


def reference(*, steps, first, every, most):
    """Restates the DINOv3 trainer's rule: after iteration i, from `first` on, if i + 1 is a multiple of `every`."""
    done = []
    for iteration in range(steps):
        if (iteration + 1) >= first and (iteration + 1) % every == 0 and len(done) < most:
            done.append(iteration + 1)
    return done


@pytest.mark.parametrize("first", [1, 10, 15, 20, 33])
@pytest.mark.parametrize("most", [1, 3, 100])
def test_refreshes_are_the_reference_s(first, most):
    p = phase(refresh_every=10, first_refresh=first, max_refreshes=most)
    assert refreshes(p) == reference(steps=100, first=first, every=10, most=most)


def test_how_many_there_were_follows_from_the_step_alone():
    """The reference recounts on resuming, differently when `first_refresh` is no multiple of `refresh_every`."""
    p = phase(refresh_every=10, first_refresh=15, max_refreshes=3)
    assert refreshes(p) == [20, 30, 40]
    assert [p.next_refresh(step) for step in (0, 19, 20, 29, 39, 40, 55)] == [20, 20, 30, 30, 40, None, None]


def test_gram_teacher_in_words():
    p = phase(first=200, refresh_every=30, max_refreshes=2)
    assert p.describe_gram(200, "") == "Gram teacher: the EMA teacher as of step 200, next refresh at step 230"
    assert p.describe_gram(235, "") == "Gram teacher: the EMA teacher as of step 230, next refresh at step 260"
    assert p.describe_gram(260, "") == "Gram teacher: the EMA teacher as of step 260, no more refreshes"
    p = phase(teacher="gram_teacher/300")
    assert (
        p.describe_gram(0, "snapshot gram_teacher/300") == "Gram teacher: snapshot gram_teacher/300, no more refreshes"
    )
    assert p.own_snapshot == 300
    assert phase(teacher="runs/other/gram_teacher/300").own_snapshot is None
    assert phase(teacher="none").describe_gram(0, "") == "no Gram teacher"


def test_phases_follow_one_another():
    assert [(p.name, p.first, p.last, p.index) for p in in_order(get_config())] == [
        ("pretrain", 0, 8, 0),
        ("gram", 8, 14, 1),
    ]


def test_groups_of_masks_must_fit_a_device_where_there_are_masks():
    c = get_config()
    first = in_order(c)[0]
    with pytest.raises(ValueError, match="group_size = 4 does not divide the 2 samples of a device"):
        check_batch(first, 4)
    c.phases.pretrain.loss.ibot = 0.0
    check_batch(in_order(c)[0], 4)
