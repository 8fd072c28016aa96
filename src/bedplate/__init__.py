"""Bedplate: five documented HTTP APIs over one set of modules, self-hosted."""

__version__ = "0.1.0"
