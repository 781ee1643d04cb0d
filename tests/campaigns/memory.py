"""Calls each part of the library many times: the memory of the process must not grow, and no tensor may outlive its owner.

As a script: ``python tests/campaigns/memory.py [--times 200000] [--subjects loss,collector] [--mib 8]``. Each subject runs in a process of
its own. After a warm-up of a tenth of the calls, the resident memory may grow by ``--mib`` at most. After the subject's objects are
deleted, the garbage collector may find no tensor and no module of theirs. Calls that raise an error are a subject too.
"""

import gc
import json
import os
import resource
import sys
import tempfile
import time
import warnings
import weakref

import calls
import torch
from campaign import ENDLESS, Summary, in_processes, is_crash, parser
from torch._subclasses.fake_tensor import FakeTensor

from a2c_compiled import TrainStep, functional
from a2c_compiled.environments import CartPole
from a2c_compiled.export.on_device.runtime import Policy
from a2c_compiled.rollouts import RolloutCollector

MOST_MIB = 8.0


def resident():
    """Resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def functions(folder):
    every_call = list(calls.function_calls().values())

    def call(i):
        every_call[i % len(every_call)]()

    return call, []


def loss(folder):
    every_call = list(calls.loss_calls().values())

    def call(i):
        every_call[i % len(every_call)]()

    return call, []


def train_step(compiled):
    def make(folder):
        step, rollout = TrainStep(calls.make_loss(), "adam", lr=1e-4, compile=compiled), calls.make_rollout()
        return lambda i: step(rollout), [step, step.loss, *step.parameters()]

    return make


def collector(folder):
    import gymnasium
    from torch import nn

    from a2c_compiled import A2CLoss, distributions

    envs = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    model = A2CLoss(nn.Linear(4, 2), nn.Linear(4, 1), distributions.Categorical(2))
    collecting = RolloutCollector(envs, model, 2, seed=0)

    def call(i):
        collecting.collect()
        if i % 10 == 0:
            collecting.episodes.take()

    return call, [collecting, model, *model.parameters()]


def torch_environments(folder):
    from torch import nn

    from a2c_compiled import A2CLoss, distributions

    model = A2CLoss(nn.Linear(4, 2), nn.Linear(4, 1), distributions.Categorical(2))
    collecting = RolloutCollector(CartPole(2), model, 2, seed=0)

    def call(i):
        collecting.collect()
        if i % 10 == 0:
            collecting.episodes.take()

    return call, [collecting, model, *model.parameters()]


def policy(folder):
    loaded = Policy.load(f"{folder}/policy.onnx", provider="cpu")
    observation = calls.make_rollout().observation[0].numpy()
    return lambda i: loaded.act(observation), [loaded]


def refused(folder):
    """Calls that raise an error."""
    model, rollout = calls.make_loss(), calls.make_rollout()
    step = TrainStep(model, compile=False)
    loaded = Policy.load(f"{folder}/policy.onnx", provider="cpu")
    wrong_flags, wrong_reward = rollout.done[:-1], rollout.reward[:-1]
    wrong = (
        lambda: functional.reward2go(rollout.reward, wrong_flags, 0.9),
        lambda: functional.generalized_advantage_estimate(0.9, "0.9", *[rollout.reward] * 3, rollout.done),
        lambda: model(**{**calls.inputs_of(rollout), "reward": wrong_reward}),
        lambda: model(**{**calls.inputs_of(rollout), "action": "none"}),
        lambda: step(rollout._replace(reward=wrong_reward)),
        lambda: step(rollout._replace(observation=rollout.observation[..., :1])),
        lambda: loaded.act(rollout.observation[0, :, :1].numpy()),
    )

    def call(i):
        try:
            wrong[i % len(wrong)]()
        except (ValueError, TypeError, RuntimeError):
            return
        raise AssertionError(f"refused call {i % len(wrong)} was served")

    return call, [step, model, *model.parameters(), loaded]


SUBJECTS = {
    "functions": functions,
    "loss": loss,
    "eager TrainStep": train_step(False),
    "compiled TrainStep": train_step(True),
    "collector": collector,
    "collector in torch": torch_environments,
    "Policy.act": policy,
    "refused calls": refused,
}


def living():
    """The number of tensors and modules that the garbage collector knows, without torch's fake tensors, which hold no data."""
    gc.collect()
    counted = (x for x in gc.get_objects() if isinstance(x, (torch.Tensor, torch.nn.Module)))
    return sum(not isinstance(x, FakeTensor) for x in counted)


def measured(subject, times, folder=None):
    """Calls a subject, which may read the files in ``folder``.

    Returns the growth of the memory after the warm-up, in MiB, after half of the calls and after all, and the number of objects that
    outlived the subject.
    """
    warm = max(times // 10, 20)
    call, objects = SUBJECTS[subject](folder)
    for i in range(warm):
        call(i)
    gc.collect()
    sizes, started = [resident()], time.monotonic()
    for part in range(2):
        for i in range((times - warm) // 2):
            call(i + part)
        gc.collect()
        sizes.append(resident())
    seconds = time.monotonic() - started
    references = [weakref.ref(x) for x in objects]
    del call, objects
    torch._dynamo.reset()  # compiled code refers to the modules that it was compiled for
    gc.collect()
    first, second = ((size - sizes[0]) / 2**20 for size in sizes[1:])
    return {"half": first, "all": second, "alive": sum(x() is not None for x in references), "seconds": seconds}


def work(cases, times, folder):
    """Yields what was measured for each subject, as JSON."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    warnings.simplefilter("ignore")
    for subject in cases:
        measured(subject, 40, folder)  # fills the caches that live as long as the process
        before = living()
        result = measured(subject, times, folder)
        yield json.dumps({**result, "left": living() - before})


def fault(result, most):
    """What is wrong with a subject; None if nothing is."""
    if result["all"] > most:
        return f"memory grew by {result['all']:.1f} MiB, {most:g} allowed"
    if result["alive"] or result["left"] > 0:
        return f"{result['alive']} objects and {result['left']} tensors or modules outlive the subject"
    return None


def campaign(subjects, times, most, summary):
    with tempfile.TemporaryDirectory() as folder:
        calls.write_files(folder)
        for subject, text, seconds in in_processes(work, subjects, times, folder, at_once=1, seconds=3600):
            if is_crash(text) or text == ENDLESS:
                summary.add(subject, "steady", text, seconds)
                continue
            result = json.loads(text)
            growth = f"{result['half']:+.2f} MiB, then {result['all']:+.2f} MiB"
            print(f"{subject:<22}{times:>8,} calls of {result['seconds'] / times * 1e6:>7.0f} us: {growth}", flush=True)
            summary.add(subject, "steady", fault(result, most), seconds)


def main():
    options = parser(
        __doc__, times=(200_000, "number of calls of each subject"), mib=(MOST_MIB, "allowed growth of the memory in MiB")
    )
    options.add_argument("--subjects", default=",".join(SUBJECTS))
    arguments = options.parse_args()
    summary = Summary()
    campaign(arguments.subjects.split(","), arguments.times, arguments.mib, summary)
    return summary.report()


if __name__ == "__main__":
    sys.exit(main())
