"""The version of the package; the same string stands in pyproject.toml and a test compares them."""

__version__ = "0.1.0"
