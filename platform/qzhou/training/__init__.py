"""Two-stage contrastive training. All but ``pipeline.py`` runs in processes without Ray."""
