"""Reference outputs of eager mode, stored beside every exported file, and the comparison of the file with these outputs."""
