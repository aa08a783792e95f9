"""The engine of an ipyfleet cluster: a full IPython kernel linked to the controller, and the host agent that forks engines."""

__version__ = "0.1.0"
