"""The environments of the web page step as gymnasium's do: run in node, on the same starts and actions."""

import gymnasium
import javascript
import numpy as np
import pytest

from a2c_compiled.export.on_device import RUNTIME

REASON = javascript.missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("web_environments"),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]


@pytest.fixture(scope="module")
def run():
    """Runs a function body that reads the exports of environments.js, and ``value``."""
    process = javascript.JavaScript(RUNTIME.with_name("web") / "environments.js")
    head = "const { ENVIRONMENTS, Environments } = runtime; const [value] = values;"
    yield lambda body, value=None: process.run(head + body, value)
    process.close()


def balance(observation):
    """An action of CartPole-v1 that keeps the pole upright."""
    return int(observation @ [0.1, 0.5, 3.0, 1.0] > 0)


def swing(observation):
    """An action of Acrobot-v1 that adds energy."""
    return 2 if observation[4] < 0 else 0


CASES = {
    "CartPole-v1": {"skilled": balance, "ends": {(True, False), (False, True)}},
    "Acrobot-v1": {"skilled": swing, "ends": {(True, False), (False, True)}},
    "Pendulum-v1": {"skilled": None, "ends": {(False, True)}},
}


def played(name, episodes):
    """Episodes of gymnasium's environment, half of them with random actions."""
    env = gymnasium.make(name)
    env.action_space.seed(0)
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        steps, start = [], np.asarray(env.unwrapped.state, np.float64).tolist()
        while True:
            skilled = CASES[name]["skilled"]
            action = env.action_space.sample() if skilled is None or episode % 2 else skilled(observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            steps.append((np.asarray(action).tolist(), observation.tolist(), float(reward), terminated, truncated))
            if terminated or truncated:
                break
        yield {"start": start, "steps": steps}


@pytest.mark.parametrize("name", CASES)
def test_environments_of_the_page_step_as_gymnasium_does(run, name):
    episodes = list(played(name, 12))
    results = run(
        """
        return value.episodes.map(({ start, steps }) => {
          const environments = new Environments(value.name, 1, 0);
          environments.states = [start];
          return steps.map(([action]) => {
            const step = environments.step({ data: [action].flat() });
            return [step.next_observation, step.reward, step.terminated, step.truncated, step.done].map(({ data }) => [...data]);
          });
        });
        """,
        {"name": name, "episodes": episodes},
    )
    ends = set()
    for episode, its_steps in zip(episodes, results, strict=True):
        for mine, (observation, reward, terminated, truncated, done) in zip(episode["steps"], its_steps, strict=True):
            np.testing.assert_allclose(observation, mine[1], rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(reward, [mine[2]], rtol=1e-6, atol=1e-6)
            assert [terminated, truncated, done] == [[mine[3]], [mine[4]], [mine[3] or mine[4]]]
        ends.add(mine[3:])
    assert ends == CASES[name]["ends"]


@pytest.mark.parametrize("name", CASES)
def test_the_next_episode_starts_in_the_step_that_ends_one(run, name):
    result = run(
        """
        const { time_limit, choices } = ENVIRONMENTS[value];
        const environments = new Environments(value, 3, 5);
        const first = [...environments.observe().data];
        let last = first, ends = 0, starts = [];
        for (let step = 0; step < 2 * time_limit + 10; step++) {
          const action = Array.from({ length: 3 }, (_, i) => choices ? (step >> i) % choices : Math.sin(step + i));
          const { observation, next_observation, done } = environments.step({ data: action });
          const size = observation.shape[1];
          for (let i = 0; i < 3; i++) {
            const [after, before] = [observation, next_observation].map(({ data }) => [...data.slice(i * size, (i + 1) * size)]);
            if (!done.data[i] && after.join() !== before.join()) throw new Error(`${step}: the observation changed within an episode`);
            if (done.data[i]) starts.push([after, before]);
          }
        }
        const again = new Environments(value, 3, 5), other = new Environments(value, 3, 6);
        return { first, again: [...again.observe().data], other: [...other.observe().data], starts };
        """,
        name,
    )
    assert result["first"] == result["again"] != result["other"]
    assert len(result["starts"]) >= 6
    starts = np.array([after for after, _ in result["starts"]])
    assert all(after != before for after, before in result["starts"])
    assert len(np.unique(starts, axis=0)) == len(starts)
    low, high = {"CartPole-v1": (-0.05, 0.05), "Acrobot-v1": (-0.1, 1.0), "Pendulum-v1": (-1.0, 1.0)}[name]
    assert low <= starts.min()
    assert starts.max() <= high


def test_the_starts_of_episodes_are_spread_over_their_range(run):
    starts = np.array(run("return new Environments('CartPole-v1', 4000, 2 ** 40 + 1).states;"))
    assert (np.abs(starts) <= 0.05).all()
    np.testing.assert_allclose(starts.mean(0), 0, atol=0.002)  # 4 standard errors
    np.testing.assert_allclose(starts.std(0), 0.1 / 12**0.5, rtol=0.05)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("new Environments('Hopper-v5', 1, 0)", "environment: expected CartPole-v1, Acrobot-v1, Pendulum-v1, got Hopper-v5"),
        ("new Environments('CartPole-v1', 0, 0)", "num_envs: expected an integer of at least 1, got 0"),
        ("new Environments('CartPole-v1', 1, 0.5)", "seed: expected an integer, got 0.5"),
        (
            "new Environments('CartPole-v1', 2, 0).step({ data: [1] })",
            "action: expected 2 numbers, one for each environment, got 1",
        ),
        ("new Environments('CartPole-v1', 1, 0).step({ data: [2n] })", "action: expected an integer from 0 to 1, got 2"),
        ("new Environments('Pendulum-v1', 1, 0).step({ data: [NaN] })", "action: expected a finite number, got NaN"),
    ],
)
def test_a_wrong_argument_is_named(run, body, message):
    assert run(f"try {{ {body}; }} catch (error) {{ return error.message; }}") == message
