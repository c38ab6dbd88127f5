"""Experiments: a recipe with some settings changed, trained by several seeds, compared."""
