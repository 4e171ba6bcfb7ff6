from types import SimpleNamespace

import jax
import pytest

from dino_jax import build, config, host_memory, memory, sharding
from dino_jax import state as states
from tests.tiny_recipe import get_config


@pytest.fixture(scope="module")
def networks():
    return build.networks(get_config(), shards=1)


def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


def test_counts_state_gradients_crops_and_block_inputs(networks):
    c = get_config()
    state = states.init(networks, build.optimizer(c.phases["pretrain"]), mesh(), seed=0)
    size = sum(x.nbytes for x in jax.tree.leaves(state)) + sum(x.nbytes for x in jax.tree.leaves(state.student))
    size += 8 * (2 * 32 * 32 + 2 * 16 * 16) * 3 * 4  # crops, float32
    size += 8 * (2 * (1 + 4 + 16) + 2 * (1 + 4 + 4)) * 32 * 2 * 4  # tokens before each of two blocks
    assert memory.at_least(c, c.phases["pretrain"], networks, mesh()) == size


def test_of_several_sizes_the_largest_counts(networks):
    c = get_config()
    large = config.following(c.phases["pretrain"], crops={"global_size": 64})
    mixed = config.following(c.phases["pretrain"], crops={"mixture": ((0.1, 64, 16, 0),)})
    small, mixed, large = (memory.at_least(c, p, networks, mesh()) for p in (c.phases["pretrain"], mixed, large))
    assert small < mixed == large


def test_too_large_a_run_states_both_figures(networks, monkeypatch):
    monkeypatch.setattr(host_memory, "of_process", lambda: 1000 * len(jax.local_devices()))
    with pytest.raises(
        ValueError, match=r"phase 'pretrain' needs at least 0.0 GiB per device .* a device has 0.0 GiB: use"
    ):
        memory.check(get_config(), networks, mesh())


def test_an_accelerator_knows_its_memory():
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 80})
    assert memory.per_device(device) == 80
    assert memory.per_device(SimpleNamespace(platform="gpu", memory_stats=lambda: None)) is None


@pytest.mark.parametrize(
    ("membership", "files", "limits"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "500"}, [500]),
        ("0::/a/b\n", {"memory.max": "300"}, [300]),  # in a container, where the path is the host's
        ("3:cpu:/x\n2:memory,hugetlb:/x\n", {"memory/x/memory.limit_in_bytes": "700"}, [700]),
        ("0::/\n", {}, []),
    ],
)
def test_limit_of_the_container(tmp_path, membership, files, limits):
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert host_memory.cgroup_limits(tmp_path, tmp_path / "membership") == limits
    assert host_memory.cgroup_limits(tmp_path, tmp_path / "absent") == []
