"""Images from NIfTI and DICOM files, slice by slice."""
