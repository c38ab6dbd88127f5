"""Finding examples that repeat each other or show what evaluation asks."""
