"""What is asked of an image: prompts composed from a mask, chosen for a step, read from a table."""
