"""A naive oracle of Wanda."""

import pytest
import torch


@pytest.fixture(scope="session")
def naive_wanda():
    """``naive_wanda(model, allocation, tokens)``."""

    def scores(model, allocation, tokens):
        """Yield Wanda scores (Sun et al. 2024) block by block in float64, from hooks on the whole pruned model."""
        for number in range(len(model.model.layers)):
            block = f"model.layers.{number}."
            for layer in (layer for layer in allocation.layers if layer.name.startswith(block)):
                module = model.get_submodule(layer.name.removesuffix(".weight"))
                seen = []
                hook = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
                with torch.no_grad():
                    for sequence in tokens:
                        model(input_ids=sequence[None])
                hook.remove()
                inputs = torch.cat([x.flatten(0, 1) for x in seen]).double()
                layer_scores = module.weight.detach().double().abs() * inputs.norm(dim=0)
                yield layer.name, layer_scores
            # the block changes only after all of its layers are scored
            yield block, None

    return scores
