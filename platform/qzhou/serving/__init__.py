"""A trained encoder as OpenAI's embeddings endpoint.

HTTP is in ``web.py``; Ray in ``pipeline.py``, ``indexing.py`` and ``app.py``.
"""
