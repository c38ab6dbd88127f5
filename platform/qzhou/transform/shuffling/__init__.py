"""Bringing the rows of one query, claim or question together."""
