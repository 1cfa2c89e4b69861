"""What a run notes of itself: its numbers, the time it took, and what goes to trackers."""
