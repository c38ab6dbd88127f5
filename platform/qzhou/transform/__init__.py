"""Raw rows to examples: readers, a rule per source shape, cleaning, splits, duplicates."""
