import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax import export, pretrained
from tests.tiny_model import tiny_model

pytest.importorskip("flatbuffers")

# Runs the file where neither this package nor Flax can be imported.
ALONE = """
import sys
sys.modules["dino_jax"] = sys.modules["flax"] = None
import jax, numpy as np
model = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
np.savez(sys.argv[3], **model.call(images), **{f"first_{name}": x for name, x in model.call(images[:1]).items()})
"""


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_the_file_runs_alone_on_any_batch(model, tmp_path):
    file, images = tmp_path / "tiny.stablehlo", np.random.default_rng(0).random((5, 16, 24, 3), np.float32)
    export.to_stablehlo(model, file, height=16, width=24)
    np.save(tmp_path / "images.npy", images)
    paths = [str(tmp_path / name) for name in ("tiny.stablehlo", "images.npy", "out.npz")]
    subprocess.run([sys.executable, "-c", ALONE, *paths], check=True, cwd=tmp_path)
    expected = model((images - 0.5) / 0.25)
    with np.load(paths[2]) as found:
        for name in ("cls", "registers", "patches"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
            np.testing.assert_allclose(found[f"first_{name}"], expected[name][:1], atol=1e-5)


def test_half_precision_weights_give_float32_features(tmp_path):
    model = tiny_model(dtype=jnp.bfloat16)
    numbers = export.to_stablehlo(model, tmp_path / "half.stablehlo", height=16, width=16)
    assert set(numbers) == {"difference/cls", "difference/registers", "difference/patches"}
    exported = jax.export.deserialize(bytearray((tmp_path / "half.stablehlo").read_bytes()))
    assert {aval.dtype for aval in exported.out_avals} == {np.dtype("float32")}


def test_a_file_that_differs_is_not_written(model, tmp_path, monkeypatch):
    monkeypatch.setitem(export.TOLERANCE, "float32", -1.0)
    with pytest.raises(ValueError, match="exported cls differ by"):
        export.to_stablehlo(model, tmp_path / "tiny.stablehlo", height=16, width=16)
    assert not list(tmp_path.iterdir())


def test_the_command(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "load", lambda *_, **__: (model, model.params))
    options = ["--weights", "x", "--out", str(tmp_path / "tiny.stablehlo"), "--json", str(tmp_path / "numbers.json")]
    assert export.main([*options, "--size", "16", "--platforms", "cpu"]) == 0
    assert "largest difference to the model: cls 0.0e+00" in capsys.readouterr().out
    assert (tmp_path / "numbers.json").exists()
    assert export.main([*options, "--size", "17"]) == 2
    assert capsys.readouterr().err == "error: image size 17 x 17 does not fit tiny: use multiples of 8\n"
    assert export.main([*options, "--size", "16", "16", "16"]) == 2
    capsys.readouterr()
    assert export.main([*options, "--size", "16", "--platforms", "tpu"]) == 2
    assert "compared with the model on this machine: add cpu to --platforms" in capsys.readouterr().err
    assert export.main(["--weights", "x", "--out", str(tmp_path), "--size", "16"]) == 2
    assert "it is a folder; give a file in it" in capsys.readouterr().err


def test_the_help_says_that_a_model_is_checked(capsys):
    with pytest.raises(SystemExit):
        export.main(["--help"])
    assert "--model NAME architecture that the weights must have" in " ".join(capsys.readouterr().out.split())


def test_too_large_for_one_file(model, tmp_path, monkeypatch):
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    monkeypatch.setattr(export, "MOST_BYTES", size // 4)
    with pytest.raises(ValueError, match="one file holds less than 2 GiB: use a smaller network"):
        export.to_stablehlo(model, tmp_path / "m", height=16, width=16)
    monkeypatch.setattr(export, "MOST_BYTES", size // 2)
    with pytest.raises(ValueError, match=r"one file holds less than 2 GiB: use --dtype bfloat16 .*, or use a smaller"):
        export.to_stablehlo(model, tmp_path / "tiny.stablehlo", height=16, width=16)
    with pytest.raises(ValueError, match="one file holds less than 2 GiB: use a smaller network"):
        export.to_onnx(model, tmp_path / "tiny.onnx", height=16, width=16)


def test_onnx(tmp_path, monkeypatch, capsys):
    pytest.importorskip("jax2onnx")
    ort = pytest.importorskip("onnxruntime")
    model = tiny_model()
    monkeypatch.setattr(pretrained, "load", lambda *_, **__: (model, model.params))
    file = tmp_path / "tiny.onnx"
    assert export.main(["--weights", "x", "--out", str(file), "--size", "16", "24"]) == 0
    assert "for images of 16 x 24, ONNX" in capsys.readouterr().out
    images = np.random.default_rng(0).random((5, 16, 24, 3), np.float32)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"images": images}), strict=True))
    expected = model((images - 0.5) / 0.25)
    for name in ("cls", "registers", "patches"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_onnx_is_float32(tmp_path):
    with pytest.raises(ValueError, match="ONNX files are float32, tiny computes in bfloat16"):
        export.to_onnx(tiny_model(dtype=jnp.bfloat16), tmp_path / "half.onnx", height=16, width=16)


def test_onnx_needs_its_converter(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ValueError, match="needs jax2onnx: pip install"):
        export.to_onnx(model, tmp_path / "tiny.onnx", height=16, width=16)
