"""What is wrong with this machine, and what would make it faster: `sfumato doctor`."""
