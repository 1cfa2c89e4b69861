"""Training: one loop, the tasks it runs, and the state that survives a crash."""
