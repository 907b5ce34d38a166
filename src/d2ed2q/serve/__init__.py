"""A node that hospitals talk to: images come in by HTTP, DICOM or a watched folder, and masks go out."""
