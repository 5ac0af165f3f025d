"""Heads: small networks on the frozen features, trained without labels (STEGO, HP)."""
