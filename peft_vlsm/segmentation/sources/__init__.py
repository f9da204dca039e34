"""
Where images, masks and prompts come from. `open.load_rows` picks the source that the user's flags name.

    arguments.py    the flags
    open.py         which source they mean, and its rows
    rows.py         what every source gives
    coco.py, imagefolder.py, tables.py     one source each; the MedVLSM layout is ../annotations.py
    streaming.py    rows that are read while training runs
"""
