"""From a picture of two colliding galaxies to their story.

>>> import deepgalaxy as dg
>>> story = dg.load().predict("pair.fits")
"""

import os as _os
import sys as _sys

__version__ = "0.1.0"

# By itself numba starts as many threads of OpenMP as there are cores, and torch takes as many from then on, whatever
# it was told: on a busy machine each of its operations then waits for a turn of the scheduler, forty times as long.
_threads = _os.environ.get("OMP_NUM_THREADS", "")
if "numba" not in _sys.modules and _threads.isdecimal() and int(_threads) > 0:
    _os.environ.setdefault("NUMBA_NUM_THREADS", _threads)

#: Public name -> module that defines it. Loaded on first use: torch alone takes seconds.
_PUBLIC = {
    "load": "deepgalaxy.inference.predictor",
    "Predictor": "deepgalaxy.inference.predictor",
    "Story": "deepgalaxy.inference.story",
    "read": "deepgalaxy.image.reader",
    "DeepGalaxyError": "deepgalaxy.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'deepgalaxy' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)


def __dir__():
    return sorted(__all__)
