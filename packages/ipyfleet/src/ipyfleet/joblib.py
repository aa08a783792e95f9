"""`register_joblib_backend` under the name that scripts import it by: ``ipyfleet.joblib``."""

from ipyfleet.default_cluster import register_joblib_backend

__all__ = ["register_joblib_backend"]
