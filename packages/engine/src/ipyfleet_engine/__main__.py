"""``python -m ipyfleet_engine``: the same as `ipengine`."""

from ipyfleet_engine.app import main

main()
