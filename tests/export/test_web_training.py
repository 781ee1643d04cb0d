"""The training of the web page in node, without a browser: in each of its environments the policy learns."""

import json

import javascript
import numpy as np
import pytest

from a2c_compiled.demo.web_page import PAGES, write_learning_page
from a2c_compiled.export.on_device import RUNTIME

PACKAGE = "onnxruntime-web/wasm"
REASON = javascript.missing(PACKAGE)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("web_training"),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The folder with the page of an environment, by name. Each is written once."""
    made = {}

    def page_of(name):
        if name not in made:
            made[name] = write_learning_page(tmp_path_factory.mktemp("page"), name).parent
        return made[name]

    return page_of


@pytest.fixture(scope="module")
def run():
    """Runs a function body that reads the exports of training.js, and the function ``trained``."""
    process = javascript.JavaScript(RUNTIME.with_name("web") / "training.js", PACKAGE)
    head = """
    const { Training, greedy_return } = runtime;
    const [folder, runtime_path, value] = values;
    const { Learner } = await import(runtime_path);
    const load = (seed = 0) => Learner.load(`${folder}/train_step.onnx`, { onnxruntime, seed });
    const updated = async (training, count) => {
      for (let i = 0; i < count; i += await training.step());
    };
    """

    def run_body(folder, body, value=None):
        return process.run(head + body, str(folder), RUNTIME.with_suffix(".js").as_uri(), value)

    yield run_body
    process.close()


# The largest number of updates, about three times what is needed, and how much higher the return of the greedy policy must be.
GAINS = {"CartPole-v1": (1500, 400), "Acrobot-v1": (1500, 350), "Pendulum-v1": (2000, 500)}


@pytest.mark.parametrize("name", PAGES)
def test_the_greedy_policy_improves_from_the_exported_weights(run, pages, name):
    updates, gain = GAINS[name]
    first, best, count = run(
        pages(name),
        """
        const [learner, seed] = [await load(), 2 ** 20];
        const training = new Training(learner, value.name, { ...value, seed: 0 });
        const first = await greedy_return(learner, value.name, 20, seed);
        let best = first;
        while (training.updates < value.updates && best < first + value.gain) {
          await updated(training, 50);
          best = Math.max(best, await greedy_return(learner, value.name, 20, seed));
        }
        return [first, best, training.updates];
        """,
        {**json.loads((pages(name) / "page.json").read_text()), "name": name, "updates": updates, "gain": gain},
    )
    assert best >= first + gain, f"{first} at the start, {best} at best after {count} updates"


def test_the_same_seed_repeats_a_training_and_another_seed_does_not(run, pages):
    same, again, actions, environments = run(
        pages("CartPole-v1"),
        """
        const results = [];
        for (const [seed, seed_of_environments] of [[0, 0], [0, 0], [1, 0], [0, 1]]) {
          const learner = await load(seed);
          await updated(new Training(learner, "CartPole-v1", { num_steps: 4, num_envs: 3, seed: seed_of_environments }), 3);
          results.push(Object.values(learner.parameters).flatMap(({ data }) => [...data]));
        }
        return results;
        """,
    )
    assert same == again
    assert same != actions
    assert same != environments


def test_a_training_counts_steps_episodes_and_updates_also_after_the_number_of_environments_changed(run, pages):
    result = run(
        pages("CartPole-v1"),
        """
        const training = new Training(await load(), "CartPole-v1", { num_steps: 8, num_envs: 4, seed: 0 });
        const before = training.mean_return;
        await training.step();
        training.num_envs = 2; // the rollout that has begun goes on with 4
        await updated(training, 60);
        const { steps, updates, episodes, mean_return, history } = training;
        return { before: before === undefined, steps, updates, episodes, mean_return, history };
        """,
    )
    assert result["before"]
    assert (result["updates"], result["steps"]) == (60, 8 * (4 + 59 * 2))
    # An episode of an untrained policy has about 20 steps.
    assert result["steps"] / 100 < result["episodes"] < result["steps"] / 5
    assert 5 < result["mean_return"] < 200
    assert [point["update"] for point in result["history"]] == list(range(1, 61))
    assert 0.6 < result["history"][0]["entropy"] <= np.log(2) + 1e-6


def test_the_networks_learn_from_scaled_rewards_and_the_returns_are_those_of_the_environment(run, pages):
    scaled, zero = run(
        pages("CartPole-v1"),
        """
        const results = [];
        for (const reward_scale of [0.5, 1e-30]) {
          const learner = await load();
          const rewards = [];
          const recording = {
            rollout_entries: learner.rollout_entries,
            act: (observation) => learner.act(observation),
            step(rollout) {
              rewards.push(...rollout.reward.flatMap(({ data }) => [...data]));
              return learner.step(rollout);
            },
          };
          const training = new Training(recording, "CartPole-v1", { num_steps: 40, num_envs: 4, seed: 0, reward_scale });
          await updated(training, 1);
          results.push([rewards, training.mean_return]);
        }
        return results;
        """,
    )
    assert set(scaled[0]) == {0.5}
    assert zero[0] == pytest.approx([0.0] * 160, abs=1e-20)
    assert scaled[1] == zero[1] >= 5


def test_a_long_training_keeps_a_short_history(run, pages):
    updates, history = run(
        pages("CartPole-v1"),
        """
        const learner = { // without networks, so that many updates take little time
          rollout_entries: ["reward"],
          act: async (observation) => ({ environment_action: { data: [0] } }),
          step: async () => ({ entropy: 0.5 }),
        };
        const training = new Training(learner, "CartPole-v1", { num_steps: 1, num_envs: 1, seed: 0 });
        await updated(training, 4100);
        return [training.updates, training.history.map(({ update }) => update)];
        """,
    )
    assert updates == 4100
    assert history == list(range(8, 4101, 8))
