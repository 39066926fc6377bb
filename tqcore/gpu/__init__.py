"""The codes on CUDA: the same bits as on the CPU, for torch tensors; importing this needs torch."""
