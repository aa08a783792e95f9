"""The IPython magics of ipyfleet: %px, %%px, %pxresult, %pxconfig, %autopx."""

__version__ = "0.1.0"
