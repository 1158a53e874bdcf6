"""bitquilt: mixed-precision GGUF and MLX models of an exact size, running in stock engines."""

__version__ = "0.1.0"
