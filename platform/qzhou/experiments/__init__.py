"""Experiments: one recipe with some settings changed, trained with several seeds, and compared."""
