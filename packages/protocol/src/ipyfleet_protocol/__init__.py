"""The wire protocol of ipyfleet, with no sockets: typed messages, frame codec, serialization, shared-memory blobs, connection files, errors."""

__version__ = "0.1.0"
