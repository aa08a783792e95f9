"""The client of an ipyfleet cluster: Client, views, asynchronous results."""

__version__ = "0.1.0"
