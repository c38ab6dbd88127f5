"""Raw rows to examples: cleaning, one rule per source shape, filters, and the held-out split."""
