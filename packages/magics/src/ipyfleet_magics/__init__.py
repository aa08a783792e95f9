"""The IPython magics of ipyfleet: %px, %%px, %pxresult, %pxconfig, %autopx."""

from .activation import activate, load_ipython_extension
from .magics import ParallelMagics

__version__ = "0.1.0"

__all__ = ["ParallelMagics", "__version__", "activate", "load_ipython_extension"]
