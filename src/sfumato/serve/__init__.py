"""`sfumato serve`: an HTTP front that never imports torch, jobs that survive anything, and a worker that generates."""
