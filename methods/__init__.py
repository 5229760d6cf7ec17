"""Methods: one file for each unlearning method; the file name is the method's name."""
