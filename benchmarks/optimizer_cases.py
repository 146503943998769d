"""The optimizers that ``optimizers.py`` checks: how each is found, built and stepped."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Distribution -> the module with its optimizers.
PACKAGES = {
    "torch": "torch.optim",
    "transformers": "transformers.optimization",
    "timm": "timm.optim",
    "bitsandbytes": "bitsandbytes.optim",
    "torchao": "torchao.optim",
    "schedulefree": "schedulefree",
    "lion-pytorch": "lion_pytorch",
    "muon-optimizer": "muon",
    "prodigyopt": "prodigyopt",
    "prodigy-plus-schedule-free": "prodigyplus.prodigy_plus_schedulefree",
    "dadaptation": "dadaptation",
    "parameterfree": "parameterfree",
    "dowg": "dowg",
    "adabelief-pytorch": "adabelief_pytorch",
    "adam-mini": "adam_mini",
    "adam-atan2-pytorch": "adam_atan2_pytorch",
    "adan-pytorch": "adan_pytorch",
    "came-pytorch": "came_pytorch",
    "madgrad": "madgrad",
    "galore-torch": "galore_torch",
    "apollo-torch": "apollo_torch",
    "kron-torch": "kron_torch",
    "sophia-opt": "sophia_opt",
    "ivon-opt": "ivon",
    "lomo-optim": "lomo_optim",
    "pytorch-lamb": "pytorch_lamb",
    "ranger21": "ranger21",
    "ranger-adabelief": "ranger_adabelief",
    "pytorch-ranger": "pytorch_ranger",
    "sam-pytorch": "sam",
    "torch-optimi": "optimi",
    "torch_optimizer": "torch_optimizer",
    "pytorch_optimizer": "pytorch_optimizer",
    "heavyball": "heavyball",
}
_WRAPPERS = ("ScheduleFreeWrapper", "ScheduleFreeWrapperReference", "PCGrad", "SafeFP16Optimizer")
_ARGUMENTS: dict[str, Any] = {  # of constructors, by name
    "momentum": 0.9,
    "min_8bit_size": 256,
    "num_iterations": 20,
    "num_epochs": 2,
    "num_batches_per_epoch": 10,
    "num_data": 100,
    "ess": 100.0,
    "weight_decay": 0.1,
    "use_fused": False,
    "relative_step": False,
    "warmup_init": False,
    "keep_num": 2,
    "d0": 1e-3,
    "compile_step": False,
}
_LR = 1e-3


class Net(nn.Module):
    """Layers with residual connections between a stem and a head; the tails of their weights differ."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.fc = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return three logits per row."""
        x = self.stem(x)
        for layer in self.fc:
            x = x + torch.tanh(layer(self.norm(x)))
        return self.head(x)


class SparseNet(nn.Module):
    """Embeddings with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Embedding(32, 24, sparse=True) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return three logits per row."""
        ids = (x[:, 0].abs() * 10).long() % 32
        return sum(layer(ids) for layer in self.fc)[:, :3]


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return the inputs and classes of a step."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 8, generator=generator)
    return x, x[:, :3].argmax(1)


@dataclass
class Case:
    """An optimizer, and how it is used.

    Attributes:
        package: Distribution.
        name: Class, and the form of use if there are several.
        make: Builds the optimizer from a model and parameters or groups.
        groups: How it takes parameters: a key of ``GROUPS``.
        mode: How it is stepped: a key of ``MODES``.
    """

    package: str
    name: str
    make: Callable[[nn.Module, Any], Any]
    groups: str = ""
    mode: str = ""
    sparse: bool = False

    def net(self) -> nn.Module:
        """Return the same model at every call."""
        torch.manual_seed(0)
        net = SparseNet() if self.sparse else Net()
        with torch.no_grad():
            for i, layer in enumerate(net.fc):
                layer.weight.mul_(torch.linspace(1, 2 + 3 * i, len(layer.weight))[:, None])
        return net

    def build(self, net: nn.Module, groups: Any = None) -> Any:
        """Build the optimizer, in training mode if it has one."""
        optimizer = self.make(net, GROUPS[self.groups](net) if groups is None else groups)
        set_mode(optimizer, "train")
        return optimizer

    @staticmethod
    def levels_of(optimizer: Any) -> list[Any]:
        """Return an optimizer and those in its attributes."""
        return [optimizer, *(value for value in vars(optimizer).values() if isinstance(value, torch.optim.Optimizer))]

    def step(self, net: nn.Module, optimizer: Any, step: int) -> None:
        """Make one step."""
        x, y = batch(step)
        MODES[self.mode](optimizer, lambda: nn.functional.cross_entropy(net(x), y))
        optimizer.zero_grad()

    def settle(self) -> None:
        """Find out how the optimizer takes parameters and how it is stepped, by two steps of training.

        Raises:
            RuntimeError: It does not train here.
        """
        errors: dict[str, None] = {}
        for groups, mode in itertools.product(GROUPS, [self.mode] if self.mode else MODES):
            self.groups, self.mode = groups, mode
            try:
                net = self.net()
                optimizer = self.build(net)
                before = [p.detach().clone() for p in net.parameters()]
                for step in range(6):  # some warm up
                    self.step(net, optimizer, step)
            except Exception as error:  # of any kind: this form is not the one
                errors.setdefault(f"{type(error).__name__}: {error}".split("\n")[0][:120].strip(": "), None)
                continue
            if any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)):
                return
            errors = {"it changes no parameter in 6 steps": None, **errors}
        self.groups = next((groups for groups in GROUPS if self._builds(groups)), "one group")
        raise RuntimeError(next(iter(errors)))

    def _builds(self, groups: str) -> bool:
        net = self.net()
        try:
            self.make(net, GROUPS[groups](net))
        except Exception:  # of any kind
            return False
        return True


def set_mode(optimizer: Any, mode: str) -> None:
    """Call ``train()`` or ``eval()`` of an optimizer that has them (schedule-free)."""
    if callable(getattr(optimizer, mode, None)):
        with contextlib.suppress(AttributeError):  # of a wrapper around an optimizer without it
            getattr(optimizer, mode)()


def _two(net: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim < 2]
    return [{"params": each, **more} for each, more in ((matrices, {}), (vectors, {"weight_decay": 0.0})) if each]


def _muon(net: nn.Module) -> list[dict[str, Any]]:
    hidden = [p for name, p in net.named_parameters() if name.startswith("fc") and p.ndim > 1]
    others = [p for p in net.parameters() if all(p is not h for h in hidden)]
    return [{"params": hidden, "use_muon": True}, {"params": others, "use_muon": False}]


GROUPS: dict[str, Callable[[nn.Module], Any]] = {
    "two groups": _two,
    "one group": lambda net: list(net.parameters()),
    "matrices only": lambda net: [p for p in net.parameters() if p.ndim > 1],
    "groups with use_muon": _muon,
    "named parameters": lambda net: list(net.named_parameters()),
}


def _plain(optimizer: Any, loss: Callable[[], Tensor]) -> None:
    loss().backward()
    optimizer.step()


def _closure(optimizer: Any, loss: Callable[[], Tensor]) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def _gradients_and_closure(optimizer: Any, loss: Callable[[], Tensor]) -> None:
    loss().backward()
    _closure(optimizer, loss)


def _graph(optimizer: Any, loss: Callable[[], Tensor]) -> None:
    loss().backward(create_graph=True)
    optimizer.step()


def _number(optimizer: Any, loss: Callable[[], Tensor]) -> None:
    value = loss()
    value.backward()
    optimizer.step(lambda: float(value))


def _sampled(optimizer: Any, loss: Callable[[], Tensor]) -> None:
    with optimizer.sampled_params(train=True):
        optimizer.zero_grad()
        loss().backward()
    optimizer.step()


def _two_steps(optimizer: Any, loss: Callable[[], Tensor]) -> None:
    loss().backward()
    optimizer.first_step(zero_grad=True)
    loss().backward()
    optimizer.second_step(zero_grad=True)


MODES: dict[str, Callable[[Any, Callable[[], Tensor]], None]] = {
    "": _plain,
    "a closure": _closure,
    "gradients and a closure": _gradients_and_closure,
    "backward(create_graph=True)": _graph,
    "a closure that returns a number": _number,
    "sampled_params()": _sampled,
    "first_step() and second_step()": _two_steps,
}


def load(package: str) -> types.ModuleType:
    """Import the optimizers of a package; of timm also without torchvision."""
    name = PACKAGES[package]
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module(name)
    if package != "timm":
        raise ModuleNotFoundError(f"pip install --no-deps {package}")
    for part in [each for each in sys.modules if each.partition(".")[0] == "timm"]:
        del sys.modules[part]
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("pip install --no-deps timm")
    found = types.ModuleType(name)
    for each, folder in (("timm", ""), (name, "/optim")):  # packages whose __init__ is not run
        sys.modules[each] = types.ModuleType(each)
        sys.modules[each].__path__ = [path + folder for path in spec.submodule_search_locations]
    for part in pkgutil.iter_modules(sys.modules[name].__path__):
        with contextlib.suppress(ImportError):
            vars(found).update(vars(importlib.import_module(f"{name}.{part.name}")))
    return found


def version(package: str) -> str:
    """Return the version of an installed package."""
    return importlib.metadata.version(package)


def find_cases(package: str) -> Iterator[Case]:
    """Yield a case for every optimizer of a package.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    module = load(package)
    for name, cls in sorted(vars(module).items()):
        if not inspect.isclass(cls) or name.startswith("_") or cls is torch.optim.Optimizer:
            continue
        own = cls.__module__.partition(".")[0] == PACKAGES[package].partition(".")[0]
        if own and (issubclass(cls, torch.optim.Optimizer) or name in _WRAPPERS):
            yield Case(package, name, _maker(cls), sparse=name == "SparseAdam")
            if "second_step" in vars(cls) and "third_step" not in vars(cls):
                yield Case(package, f"{name} (two-step)", _maker(cls), mode="first_step() and second_step()")
            if "relative_step" in inspect.signature(cls.__init__).parameters:
                yield Case(package, f"{name} (relative_step=True)", _maker(cls, lr=None, relative_step=True))
            if package == "torch" and name in ("SGD", "AdamW"):
                yield Case(package, f"{name} (foreach)", _maker(cls, foreach=True))
                yield Case(package, f"{name} (fused)", _maker(cls, fused=True))
                yield Case(package, f"{name} (lr is a tensor)", _maker(cls, lr=torch.tensor(_LR)))


def _maker(cls: Any, **options: Any) -> Callable[[nn.Module, Any], Any]:
    """Return a function that fills the arguments of a constructor by their names."""
    parameters = inspect.signature(cls.__init__).parameters
    required = {name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}

    def make(net: nn.Module, groups: Any) -> Any:
        arguments: dict[str, Any] = {name: _ARGUMENTS[name] for name in parameters if name in _ARGUMENTS} | options
        if "lr" in parameters:
            arguments.setdefault("lr", 1.0 if "d0" in parameters else _LR)  # Prodigy and D-Adaptation
        for name in sorted(required - arguments.keys() - {"self"}, key="params".__ne__):  # a wrapper sets it again
            if name in ("params", "named_parameters", "param_groups"):
                arguments[name] = groups
            elif name in ("muon_params", "polar_params"):
                arguments[name] = [p for p in net.fc.parameters() if p.ndim > 1]
            elif name == "base_optimizer" and "params" in parameters:
                arguments.update({name: torch.optim.SGD, "lr": _LR, "momentum": 0.9})
            elif name in ("optimizer", "base", "optim", "base_optimizer"):
                arguments[name] = torch.optim.SGD(groups, lr=_LR, momentum=0.9)
                if "params" in required:  # of the wrapper
                    arguments["params"] = list(net.parameters())
            elif name == "model":
                arguments[name] = net
        return cls(**arguments)

    return make
