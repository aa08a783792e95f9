"""The controller of an ipyfleet cluster: router, schedulers and hub, task database."""

__version__ = "0.1.0"

__all__ = ["__version__"]
