"""From a picture of two colliding galaxies to their story.

>>> import deepgalaxy as dg
>>> story = dg.load().predict("pair.fits")
"""

__version__ = "0.1.0"

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
