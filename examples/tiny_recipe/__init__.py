"""What `examples/pretrain_tiny.py` trains the embedded model from: scenes, prompts, a tokenizer, and its measures."""
