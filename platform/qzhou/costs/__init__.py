"""What work costs before it is done: sizes of models, lengths of texts, operations of training, hardware. No torch."""
