"""What a command writes: lines, a progress bar, pictures."""
