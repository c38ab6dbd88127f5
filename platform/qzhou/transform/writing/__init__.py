"""Writing examples, corpora, dropped rows, counts and the report."""
