"""timm, and one family of it for a quick start.

`import timm` reads a hundred families of backbones, torchvision, a client of the model hub and torch's compiler: 6.9 s
on a machine where torch itself takes 3.3. A prediction needs one file of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import types
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import nn

__all__ = ["whole", "creator"]


def creator(backbone: str, pretrained: bool = False):
    """`timm.create_model`, with only the family of `backbone` imported where that is enough.

    Returns
    -------
    create_model : takes what timm's does; None if timm has no such backbone.
    """
    create_model = None
    if not pretrained and "timm" not in sys.modules:
        with suppress(Exception):  # another version of timm: nothing is lost but the seconds
            create_model = _family(backbone)
    if create_model is None:
        return whole().create_model if whole().is_model(backbone) else None

    def create(*args, **kwargs):
        try:
            return create_model(*args, **kwargs)
        except Exception:  # a family that needs what was left out, or a mistake that the real one words better
            return whole().create_model(*args, **kwargs)

    return create


def whole():
    """All of timm, without torch's compiler.

    timm and torchvision import torch._dynamo for a decorator and a constant, 4.7 s. Nothing is compiled here, so both
    get an empty stand-in while they are imported; who asks for torch._dynamo later gets the real one.
    """
    if "timm" not in sys.modules and "torch._dynamo" not in sys.modules:
        try:
            with _in_place(_compiler()):
                import timm  # noqa: F401
        except (ImportError, AttributeError):
            _forget("timm", "torchvision")  # another version wants more of it: start again with the real one
    import timm

    return timm


def _family(backbone: str):
    """create_model of timm with one family registered; None if no file of it defines the backbone."""
    folder = Path(importlib.util.find_spec("timm").submodule_search_locations[0])
    defines = re.compile(rf"^def {re.escape(backbone.split('.')[0])}\(", re.MULTILINE)
    file = next((f for f in sorted((folder / "models").glob("*.py")) if defines.search(f.read_text())), None)
    if file is None:
        return None
    # The packages without their __init__, which would import everything.
    packages = {name: _package(name, folder.joinpath(*name.split(".")[1:]))
                for name in ("timm", "timm.models", "timm.data")}
    vision = {name: _package(name) for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc",
                                                "torchvision.models")}
    vision["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})
    if "torch._dynamo" not in sys.modules:
        packages.update(_compiler())
    try:
        with _in_place({**packages, **vision, "huggingface_hub": None, "torchvision.models.feature_extraction": None}):
            packages["timm"].__version__ = importlib.import_module("timm.version").__version__
            packages["timm.data"].__dict__.update(vars(importlib.import_module("timm.data.constants")))
            importlib.import_module(f"timm.models.{file.stem}")
            return importlib.import_module("timm.models._factory").create_model
    finally:
        _forget("timm")  # who imports timm later gets all of it


def _package(name: str, folder: Path | None = None) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__path__ = [str(folder)] if folder else []
    return module


def _compiler() -> dict[str, types.ModuleType]:
    dynamo, utils = _package("torch._dynamo"), _package("torch._dynamo.utils")
    dynamo.utils = utils
    dynamo.disable = lambda fn=None, *args, **kwargs: fn if fn is not None else lambda f: f
    utils.is_compile_supported = lambda device: False
    return {"torch._dynamo": dynamo, "torch._dynamo.utils": utils}


@contextmanager
def _in_place(modules: dict):
    """Modules that stand in for others while the block runs."""
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _forget(*packages: str) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] in packages]:
        del sys.modules[name]
