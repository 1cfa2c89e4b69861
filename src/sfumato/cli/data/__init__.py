"""`sfumato data` and its commands."""
