"""Models on disk and in memory: base models, processors, what fine-tuning saved, logits and losses."""
