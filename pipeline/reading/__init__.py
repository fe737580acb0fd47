"""What comes from outside is read here: regular files of a bounded size, and JSON within bounds."""
