"""The engine of an ipyfleet cluster: a full IPython kernel, and the host agent that forks engines.

A program, not a library: `ipengine` (or ``python -m ipyfleet_engine``) is the way in.
"""

__version__ = "0.1.0"
