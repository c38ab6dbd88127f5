"""Hard negatives: a teacher encodes, exact search ranks, and what is too close to the positive is refused."""
