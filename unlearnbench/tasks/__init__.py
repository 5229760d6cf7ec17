"""Tasks: one file each; the file's name, with dashes, is the task's."""
