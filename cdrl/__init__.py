"""Cooperative diffusion recovery likelihood."""
