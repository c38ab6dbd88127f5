"""Raw rows to examples: cleaning, a rule per source shape, filters, the held-out split."""
