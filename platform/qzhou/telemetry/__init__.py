"""What a run reports while it works: events, metrics and progress."""
