"""Who may import whom: levels of modules, and a few names that are confined to one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dino_jax"

# A module imports only from levels below its own; a package counts as one module. README shows the same table.
LEVELS: tuple[str, ...] = (
    "models losses data evals schedules optim sharding progress throughput phases recipe guard "
    "host_memory startup cluster compiling export_onnx agreement",
    "state command metrics checksum collect config validate health feature_files feature_outputs weights pictures "
    "views",
    "objective stop checkpoint workdir flops gallery extraction initial pretrained",
    "step gram_teacher scores tasks model_options",
    "build record report",
    "memory benches",
    "train",
    "main bench evaluate features convert visualize export",
)
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules.split()}
# These run in a notebook without a configuration: everything they need is an argument.
WITHOUT_CONFIG = (
    *("models", "losses", "data", "evals", "schedules", "optim", "sharding", "metrics", "progress", "throughput"),
    *("health", "pictures", "state", "checksum", "objective", "checkpoint", "step", "gram_teacher", "guard", "stop"),
)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def module_of(file: Path) -> str:
    """Returns the module or package of dino_jax that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Yields the dotted names that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def siblings(file: Path) -> set[str]:
    """Returns the other modules of dino_jax that a file imports."""
    found = {name.split(".")[1] for name in imports(file) if name.startswith("dino_jax.")}
    return found - {module_of(file)}


def test_every_module_has_a_level():
    modules = {module_of(file) for file in files(PACKAGE)} - {"__init__"}
    assert modules == set(LEVEL), "edit LEVELS here and the code map in README.md"


@pytest.mark.parametrize("module", LEVEL)
def test_imports_come_from_lower_levels(module):
    for file in files(PACKAGE):
        if module_of(file) == module:
            upward = {name for name in siblings(file) if LEVEL[name] >= LEVEL[module]}
            assert not upward, f"{file.name} (level {LEVEL[module]}) imports {upward} of its own level or above"


def test_levels_are_as_low_as_possible():
    """Every module above level 0 has a reason to be there; entry points stand on top."""
    for module, level in LEVEL.items():
        below = [LEVEL[name] for file in files(PACKAGE) if module_of(file) == module for name in siblings(file)]
        if level < len(LEVELS) - 1:
            assert level == max(below, default=-1) + 1, f"{module} could stand at level {max(below, default=-1) + 1}"


def test_readme_shows_these_levels():
    rows = [line.split("|")[1:3] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]
    shown = {row[0].strip(): set(row[1].replace("`", "").replace(",", " ").split()) for row in rows if len(row) == 2}
    for level, modules in enumerate(LEVELS):
        assert shown.get(str(level)) == set(modules.split()), f"level {level} in README.md"


def test_flax_stays_inside_models():
    for file in files(PACKAGE):
        if module_of(file) != "models":
            assert not any(name.split(".")[0] == "flax" for name in imports(file)), file


@pytest.mark.parametrize("module", WITHOUT_CONFIG)
def test_parts_take_arguments_instead_of_a_config(module):
    for file in files(PACKAGE):
        if module_of(file) == module:
            assert not any(name.startswith(("ml_collections", "dino_jax.config")) for name in imports(file)), file


def test_config_knows_only_the_published_sizes():
    assert {name for name in imports(PACKAGE / "config.py") if name.startswith("dino_jax")} == {
        "dino_jax.models.variants.VARIANTS"
    }


def test_recipes_import_only_config():
    for file in files(ROOT / "configs"):
        assert {name for name in imports(file) if name.startswith("dino_jax")} == {"dino_jax.config"}, file


def test_nothing_imports_tests_configs_or_launch():
    for file in files(PACKAGE) + files(ROOT / "configs"):
        assert not any(name.split(".")[0] in ("tests", "configs", "launch") for name in imports(file)), file


def test_mesh_axes_are_named_only_in_sharding():
    for file in files(PACKAGE):
        if module_of(file) == "sharding":
            continue
        assert not any("PartitionSpec" in name for name in imports(file)), file
        constants = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        assert "fsdp" not in constants, file
