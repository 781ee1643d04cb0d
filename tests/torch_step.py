"""The independent training loop that training steps are compared with: torch.optim's own classes."""

import torch
from loss_cases import losses_of

from a2c_compiled.update import TrainMetrics
from a2c_compiled.update.optimizers import RULES

LR = 0.05
# Options by optimizer, under the names that TrainStep and torch.optim share.
OPTIMIZERS = {
    "sgd": {},
    "sgd-momentum": {"momentum": 0.9},
    "sgd-nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "rmsprop": {},
    "rmsprop-all": {"alpha": 0.9, "eps": 1e-3, "momentum": 0.5, "centered": True, "weight_decay": 0.1},
    "rmsprop-momentum": {"momentum": 0.5},
    "rmsprop-centered": {"centered": True},
    "adam": {},
    "adam-all": {"betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1},
    "adamw": {},
    "adamw-all": {"betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1},
}
TORCH_OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


class TorchStep:
    """The same training step with torch.optim: backward(), clip_grad_norm_, optimizer.step()."""

    def __init__(self, loss, name="rmsprop", max_grad_norm=0.5, lr=LR, **options):
        self.loss, self.max_grad_norm = loss, max_grad_norm
        kind = name.partition("-")[0]
        # Some defaults of torch.optim differ from the defaults of TrainStep.
        defaults = dict(RULES[kind].defaults)
        self.optimizer = TORCH_OPTIMIZERS[kind](
            [parameter for parameter in loss.parameters() if parameter.requires_grad],
            **{**defaults, "lr": lr, "foreach": False, **OPTIMIZERS.get(name, {}), **options},
        )

    def __call__(self, rollout):
        losses = self.loss(
            rollout.observation,
            rollout.action,
            reward=rollout.reward,
            next_observation=rollout.next_observation,
            done=rollout.done,
            terminated=rollout.terminated,
            state_value=rollout.state_value,
            sample_log_prob=rollout.log_prob,
            mask=rollout.mask,
        )
        self.optimizer.zero_grad()
        sum(losses_of(losses).values()).backward()
        limit = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        grad_norm = torch.nn.utils.clip_grad_norm_(self.loss.parameters(), limit)
        self.optimizer.step()
        return TrainMetrics(*(None if value is None else value.detach() for value in losses), grad_norm)

    def state(self):
        """Returns the parameters with a gradient and their optimizer state, under the names of an exported training step."""
        state = {}
        for name, parameter in self.loss.named_parameters():
            if parameter.grad is not None:
                slots = self.optimizer.state.get(parameter, {})
                state |= {f"{slot}.{name}": tensor for slot, tensor in slots.items() if slot != "step" and tensor is not None}
                state[name] = parameter.detach()
        return state

    def set_lr(self, lr):
        """Sets the learning rate of the next updates."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr


def parameters_of(loss):
    return {name: parameter.detach() for name, parameter in loss.named_parameters()}
