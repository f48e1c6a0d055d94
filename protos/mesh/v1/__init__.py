"""Version 1 of the contracts: ``resource``, ``discovery``, ``registry``, ``operator``."""
