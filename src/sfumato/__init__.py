"""sfumato: Stable Diffusion v1, whole."""

__version__ = "0.1.0"
