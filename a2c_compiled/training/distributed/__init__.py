"""Training in several processes that torchrun starts, with ``torch.distributed``."""
