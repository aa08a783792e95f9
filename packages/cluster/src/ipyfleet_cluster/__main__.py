"""``python -m ipyfleet_cluster`` is ``ipcluster``."""

from .app import main

main()
