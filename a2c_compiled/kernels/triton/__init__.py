"""The scans in Triton, for CUDA and ROCm."""
