import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.program import ROOT, TIMEOUT, cpus
from tests.tasks import planted


def test_eight_devices_equal_one(colors, tmp_path):
    masks, video = planted.masks(tmp_path / "masks"), planted.video(tmp_path / "video")
    random = np.random.default_rng(0)
    for file in sorted(masks.glob("*/images/*.png")):  # noise, so that some pixels are taken for another class
        image = 0.3 * np.asarray(Image.open(file))
        planted.save((image + 0.7 * random.integers(0, 256, image.shape)).astype(np.uint8), file)
    command = [sys.executable, "-m", "tests.tasks.devices_run", colors, masks, video]
    environment = os.environ | cpus(8)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 8
    assert found["same_neighbours"]
    one, every = found["one"], found["every"]
    for name, atol in (("cls", 1e-5), ("patches", 1e-6)):
        np.testing.assert_allclose(every[name], one[name], atol=atol)
    # Less than an image or a pixel of another class would change.
    assert every["numbers"] == pytest.approx(one["numbers"], abs=1e-4)
    assert 0.5 < one["numbers"]["segmentation/miou"] < 1
