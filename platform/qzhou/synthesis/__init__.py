"""Records to an LLM and back as new records: paraphrase, augmentation, hard negatives.

``techniques`` says what is asked, ``parsing`` what is accepted, ``plan`` joins them and ``workload`` does so for every
dataset of a run; ``client`` speaks to any OpenAI-compatible endpoint and ``builtin`` is one made of rules. Only
``pipeline`` knows Ray.
Source: QZhou-Embedding (arXiv:2508.21632), section 4.
"""
