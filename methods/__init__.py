"""Methods: one paper, one file; the file name is the method."""
