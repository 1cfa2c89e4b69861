"""`sfumato train` and its commands."""
