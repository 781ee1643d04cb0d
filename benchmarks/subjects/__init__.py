"""The measured subjects, one module each."""
