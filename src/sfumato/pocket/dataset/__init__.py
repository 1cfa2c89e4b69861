"""The emoji set and the scenes that are composed of it."""
