"""rlif-lightning: reinforcement learning from internal feedback on PyTorch Lightning."""
