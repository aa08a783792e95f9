"""`publish_data` under the name that scripts import it by: ``ipyfleet.datapub``."""

from ipyfleet_engine import publish_data

__all__ = ["publish_data"]
