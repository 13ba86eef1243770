"""The version of kdbert."""

__version__ = "0.1.0"
