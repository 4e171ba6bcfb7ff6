import json


def test_eight_devices_equal_one(program, colors):
    done = program.finish(program.start("tests.knn_run", str(colors / "train"), devices=8))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 8
    assert found["features"] < 1e-5
    assert found["cosines"] < 1e-6
    assert found["neighbours"]
