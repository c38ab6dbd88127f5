"""Held-out examples become mteb tasks; mteb judges; the comparison and the report say what was measured."""
