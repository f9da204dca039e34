"""The version of the distribution, also recorded in every `adapter_config.json`."""

__version__ = "0.1.0"
