"""The package's CUDA paths, on a device that is pretended on the CPU (`tests.support.pretended_cuda`)."""
