"""Freed memory is kept for the next array."""

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
