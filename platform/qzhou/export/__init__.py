"""From trained weights to a model folder, and from several models to one."""
