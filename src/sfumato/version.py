"""The one place of the version: pictures, records and measurements name it."""

__version__ = "0.2.0"
