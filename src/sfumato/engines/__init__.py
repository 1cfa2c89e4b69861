"""How the networks are executed: an engine takes a module and returns something callable the same way."""
