"""What to run on a bare machine with a GPU, in fifteen minutes: see README.md beside this file."""
