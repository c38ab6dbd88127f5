"""A trained encoder as OpenAI's embeddings endpoint; knows neither HTTP nor Ray (they are in ``web.py`` and ``app.py``)."""
