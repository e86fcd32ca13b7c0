"""What the program asks of the libraries below it: freed memory is kept, and threads are as many as was said."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
if sys.argv[1] == "kept":
    from deepgalaxy.memory import keep_freed_memory
    keep_freed_memory()
for k in range(100):
    if k == 50:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.zeros(10**7).fill(k)  # 80 MB: more than glibc ever keeps by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_large_arrays_are_not_mapped_anew_once_it_is_asked_for():
    usual, kept = (int(subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True).stdout)
                   for how in ("usual", "kept"))
    assert kept < usual / 10


@pytest.mark.parametrize("threads", ["1", "2"])
def test_gravity_leaves_torch_the_threads_that_it_was_given(threads):
    code = """
import numpy as np, torch
import deepgalaxy
from deepgalaxy.simulate.gravity import Tree
x = np.random.default_rng(0).normal(size=(500, 3))
Tree(x, np.ones(500), np.full(500, 0.1)).accelerations()
print(torch.get_num_threads())
"""
    # Nor do others say how many: torch asks MKL, for which Dask leaves a variable.
    others = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment = {**others, "OMP_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == [threads], done.stderr
