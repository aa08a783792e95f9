"""The test kit of ipyfleet's packages; never a dependency of any of them."""

__version__ = "0.1.0"
