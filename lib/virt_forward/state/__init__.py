"""The run directory and the configuration file."""
