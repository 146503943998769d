"""How well an allocation keeps the outputs of the dense model on calibration text."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MethodScore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodScore:
    """An allocation method, measured on calibration text.

    Attributes:
        method: Name of the method, with its parameters.
        kl: Mean Kullback-Leibler divergence, in nats a token, of the next-token distribution from that of the dense
            model.
        perplexity: Perplexity of the text.
    """

    method: str
    kl: float
    perplexity: float
