"""Finding training texts that overlap with evaluation texts."""
