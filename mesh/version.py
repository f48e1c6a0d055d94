"""The version of this software, as it tells it to others; pyproject.toml has the same (a test compares them)."""

VERSION = "0.1.0"
