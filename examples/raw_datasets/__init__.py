"""The data sets that `prepare_dataset.py` knows: a file a publisher's format, and what all of them share."""
