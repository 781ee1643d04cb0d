"""What is exported: policies, losses and the update, as modules of tensors to tensors."""
