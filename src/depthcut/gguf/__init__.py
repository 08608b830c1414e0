"""The GGUF container format."""
