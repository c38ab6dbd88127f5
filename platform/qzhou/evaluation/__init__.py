"""Held-out examples become mteb tasks; mteb judges; comparison and report show results."""
