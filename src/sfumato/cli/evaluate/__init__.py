"""`sfumato evaluate` and its commands."""
