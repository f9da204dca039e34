"""Masks for a user's own images: the pipeline, reuse of embeddings, folders of results."""
