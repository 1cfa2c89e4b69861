"""Flags, settings files and the environment: where a command gets its values from."""
