"""Who may ask: names of hosts, pages of other origins, keys."""
