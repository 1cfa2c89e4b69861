"""Blocks that two or more models share. Nothing here knows a checkpoint, a config or a device."""
