"""Records to an LLM and back as new records: paraphrases, augmentations, hard negatives, queries.

``techniques`` writes the requests and ``parsing`` reads the answers; ``generation`` joins
them for one dataset and ``dataset_requests`` for all datasets of a run. ``client`` sends
requests to any OpenAI-compatible endpoint, or to the rules of ``builtin``. Only
``pipeline`` knows Ray.
Source: QZhou-Embedding (arXiv:2508.21632), section 4.
"""
