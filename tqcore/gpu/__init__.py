"""The codes on CUDA: the same bits as on the CPU, for torch tensors; importing this needs torch."""

from tqcore.gpu.chain import decode_chain, encode_chain

__all__ = ["decode_chain", "encode_chain"]
