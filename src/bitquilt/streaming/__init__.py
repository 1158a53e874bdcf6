"""Any GGUF file, quantized with an importance matrix, tensor by tensor, without a forward pass."""
