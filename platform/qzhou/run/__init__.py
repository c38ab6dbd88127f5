"""The run folder: stages, manifests, fingerprints, locks, and the models that a recipe names."""
