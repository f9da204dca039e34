"""What `speed.py` measures with: the model at full size, a process for each measurement, and the report."""
