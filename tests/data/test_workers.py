import subprocess
import sys

PROGRAM = """
from multiprocessing.shared_memory import SharedMemory
from dino_jax.data.workers import signals_held_back
with signals_held_back():
    pass
left = SharedMemory(create=True, size=100)
"""


def test_python_does_not_warn_of_batches_that_were_left_in_shared_memory():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
