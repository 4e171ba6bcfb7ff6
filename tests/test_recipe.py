import re

import pytest

from dino_jax import recipe

TINY = "tests/tiny_recipe.py"
RECIPE = """from dino_jax import config
def get_config():
    c = config.default(); config.set_phases(c, a=config.phase(steps=1))
    {line}
    return c
"""


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "7", 7),
        ("eval.knn.images", "1_000", 1000),
        ("phases.gram.schedules.lr.peak", "2e-3", 2e-3),
        ("phases.gram.schedules.lr.peak", "1", 1.0),
        ("log.pictures", "True", True),
        ("log.pictures", "0", False),
        ("data.path", "some/where", "some/where"),
        ("phases.pretrain.snapshot_steps", "3,5", (3, 5)),
        ("phases.pretrain.snapshot_steps", "(3,)", (3,)),
        ("phases.gram.snapshot_steps", "3", (3,)),
        ("phases.gram.crops.global_scale", "(0.5, 1)", (0.5, 1.0)),
        ("data.mean", "0.1,0.2,0.3,0.4,1", (0.1, 0.2, 0.3, 0.4, 1.0)),
        ("data.std", "0.5", (0.5,)),
    ],
)
def test_override_has_the_type_of_the_key(key, text, value):
    found = recipe.flatten(recipe.load(TINY, {key: text}))[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("phases.pretrain.stepz", "5", "stepz: there is no such key; did you mean phases.pretrain.steps?"),
        ("model.dropout", "5", "did you mean model.drop_path?"),
        ("lr.peak", "5", "did you mean phases.gram.schedules.lr.peak or phases.pretrain.schedules.lr.peak?"),
        ("phases.gram", "5", "did you mean phases.gram."),
        ("xyzzy", "5", "--keys lists all of them"),
        ("seed", "five", "--config.seed=five: expected int, such as 0"),
        ("seed", "5.5", "expected int"),
        ("phases.gram.loss.dino", "nan", "expected float, such as 1.0"),
        ("phases.gram.schedules.lr.peak", "inf", "expected float"),
        ("log.pictures", "maybe", "expected bool, such as False"),
        ("data.mean", "red", "expected tuple, such as (0.485, 0.456, 0.406)"),
        ("phases.pretrain.crops.global_scale", "0.5", "expected tuple"),
        ("data.mean", "(0.5, 0.5, 'x')", "expected tuple"),
        ("phases.pretrain.snapshot_steps", "(1.5,)", "expected tuple"),
    ],
)
def test_wrong_override_says_what_is_meant(key, text, message):
    with pytest.raises(ValueError) as raised:
        recipe.load(TINY, {key: text})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("configs/nothing.py", "there is no such file"),
        ("setup.cfg", "is not"),
        ("tests/__init__.py", "no get_config()"),
    ],
)
def test_file_that_is_no_recipe(config, message):
    with pytest.raises(ValueError, match=message):
        recipe.load(config, {})


def test_variant_is_passed_on(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text("from dino_jax import config\ndef get_config(size='small'):\n"
                    "    c = config.default()\n    c.data.path = size\n    return c\n")  # fmt: skip
    assert recipe.load(str(file), {}).data.path == "small"
    assert recipe.load(f"{file}:large", {}).data.path == "large"
    with pytest.raises(ValueError, match="has no variants"):
        recipe.load(f"{TINY}:large", {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c.data.worker = 8", r"recipe.py, line 4: AttributeError: .*worker.*did you mean \"workers\""),
        ("c.phases.a.optim.clipnorm = 3.0", r"line 4: AttributeError: .*clip_norm"),
        ("c.model.widths = 3", r"line 4: AttributeError: .*width"),
        ("c.dino_head.prototype = 3", r"line 4: AttributeError: .*prototypes"),
        ("c.phases.a.schedules.lr.peek = 1.0", r"line 4: AttributeError: .*peak"),
        ("c.data.workers = '8'", r"line 4: TypeError: .*workers"),
        ("d.seed = 1", r"line 4: NameError: name 'd' is not defined"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(tmp_path, line, message):
    (tmp_path / "recipe.py").write_text(RECIPE.format(line=line))
    with pytest.raises(ValueError, match=re.compile(message, re.IGNORECASE)) as raised:
        recipe.load(str(tmp_path / "recipe.py"), {})
    assert "\n" not in str(raised.value)


def test_get_config_that_returns_nothing(tmp_path):
    (tmp_path / "recipe.py").write_text("def get_config():\n    pass\n")
    with pytest.raises(ValueError, match="get_config returns NoneType, not a configuration: end it with `return c`"):
        recipe.load(str(tmp_path / "recipe.py"), {})


def test_a_mistake_outside_of_get_config(tmp_path):
    (tmp_path / "recipe.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ValueError, match=r"recipe.py, line 1: ModuleNotFoundError: No module named"):
        recipe.load(str(tmp_path / "recipe.py"), {})


def test_all_phases_at_once_or_a_word_about_those_left_behind():
    config = recipe.load("tests/tiny_recipe.py", {"phases.all.batch_size": "16"})
    assert [phase.batch_size for phase in config.phases.values()] == [16, 16]
    lines = recipe.left_behind(
        "tests/tiny_recipe.py", {"phases.pretrain.batch_size": "16", "phases.pretrain.steps": "9"}
    )
    assert lines == ["phases.gram.batch_size stays 8; --config.phases.all.batch_size sets it in all phases"]
    both = {"phases.pretrain.batch_size": "16", "phases.gram.batch_size": "4"}
    for overrides in ({"phases.all.batch_size": "16"}, both, {"seed": "1"}, {"phases.pretrain.batch_size": "8"}):
        assert recipe.left_behind("tests/tiny_recipe.py", overrides) == []
    with pytest.raises(ValueError, match=r"phases.pretrain.batchsize: there is no such key; did you mean"):
        recipe.load("tests/tiny_recipe.py", {"phases.all.batchsize": "16"})
