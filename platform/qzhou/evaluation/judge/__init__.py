"""Scores models on tasks with mteb, one model on one task at a time."""
