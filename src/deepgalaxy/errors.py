"""Errors that a person can act on.

Every message names the argument or file, its value, what is allowed and what to do::

    DeepGalaxyError
    ├── ConfigError        a YAML file or an option that is not allowed
    ├── SimulationError    an encounter that cannot be set up or integrated
    ├── ViewError          a picture of a snapshot that cannot be drawn
    ├── ImageError         a picture that cannot be read or holds nothing
    ├── DatasetError       a data set that is missing, broken or of another layout
    ├── ModelError         weights, checkpoints or backbones that do not fit
    ├── LibraryError       a library of reference images that is missing or broken
    └── ClusterError       the Dask scheduler or all of its workers are gone
"""

__all__ = [
    "DeepGalaxyWarning", "DeepGalaxyError", "ConfigError", "SimulationError", "ViewError",
    "ImageError", "DatasetError", "ModelError", "LibraryError", "ClusterError",
]


class DeepGalaxyWarning(UserWarning):
    """Something was lost or passed over, and the work goes on; the command line shows it as one line."""


class DeepGalaxyError(Exception):
    """Base of all errors that are the input's fault; shown as one line, without a traceback."""


class ConfigError(DeepGalaxyError):
    """An option or a YAML file that is not allowed."""


class SimulationError(DeepGalaxyError):
    """An encounter that cannot be set up or integrated."""


class ViewError(DeepGalaxyError):
    """A picture of a snapshot that cannot be drawn."""


class ImageError(DeepGalaxyError):
    """A picture that cannot be read, or that holds no light."""


class DatasetError(DeepGalaxyError):
    """A data set that is missing, broken or of another layout."""


class ModelError(DeepGalaxyError):
    """Weights, checkpoints or backbones that do not fit."""


class LibraryError(DeepGalaxyError):
    """A library of reference images that is missing or broken."""


class ClusterError(DeepGalaxyError):
    """The scheduler of a Dask cluster, or all of its workers, are gone."""
