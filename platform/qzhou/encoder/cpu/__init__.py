"""What makes encoding bearable on machines without a GPU: another library for float32, and dense layers in 8 bits."""
