"""A whole run of each kind: what it is begun with, how it is conducted, what is published of it."""
