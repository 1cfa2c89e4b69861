"""What can be trained, a task a file, and what only tasks need."""
