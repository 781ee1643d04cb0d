"""The Triton backend: the scan kernel, the forms (recurrences, see ``kernels/scan_forms.py``) as device functions, and the tile
sizes, for CUDA and ROCm."""
