"""The run folder: stages, manifests, fingerprints, locks, and the recipe's models."""
