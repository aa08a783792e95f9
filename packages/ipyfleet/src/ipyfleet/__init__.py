"""Interactive parallel computing for IPython: the umbrella package, which installs and re-exports all of ipyfleet."""

__version__ = "0.1.0"
