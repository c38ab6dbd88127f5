"""Two-stage contrastive training. Everything but ``pipeline.py`` runs without Ray in the process."""
