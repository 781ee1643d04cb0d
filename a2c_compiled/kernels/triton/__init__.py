"""The Triton backend: the scan kernel, its forms and its tile sizes, for CUDA and ROCm."""
