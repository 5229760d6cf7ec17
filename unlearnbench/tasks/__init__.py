"""Tasks, one per file; the file's name with dashes is the task's name."""
