"""Rows of images, masks and prompts: read, checked, varied, and made into tensors."""
