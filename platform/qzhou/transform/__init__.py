"""Raw rows to examples: readers, one rule per source shape, cleaning, splits and deduplication."""
