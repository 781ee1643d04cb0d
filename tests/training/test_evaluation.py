"""Returns of a policy's episodes, their pictures and videos, and the command eval."""

import json
import subprocess

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from a2c_compiled import A2CLoss, distributions
from a2c_compiled.cli import _rounded, main
from a2c_compiled.environments import make_vector
from a2c_compiled.networks.for_spaces import mlp
from a2c_compiled.recurrent import MinGRU, Recurrent
from a2c_compiled.training import TrainConfig, evaluation, video
from a2c_compiled.training.config import save_config
from a2c_compiled.training.evaluation import EVALUATION_SEED, NetworkPolicy, evaluate, greedy_policy, play, summary
from a2c_compiled.training.video import film_episode, record_episode


def push(action):
    return lambda observation: np.full(len(observation), action)


def lean(observation):
    """Push to where the pole leans."""
    return (observation[:, 2] > 0).astype(np.int64)


def cartpole_loss():
    return A2CLoss(mlp(4, (8,), 2, 1.0), mlp(4, (8,), 1, 1.0), distributions.Categorical(2))


# Evaluation


def test_returns_are_those_of_first_episodes():
    envs = make_vector("CartPole-v1", 8)
    observation, _ = envs.reset(seed=1)
    lengths = np.zeros(8, dtype=int)
    for t in range(1, 501):
        observation, _, terminated, truncated, _ = envs.step(lean(observation))
        lengths[(lengths == 0) & (terminated | truncated)] = t
    envs.close()
    assert len(set(lengths.tolist())) > 2
    episodes = play(lean, "CartPole-v1", episodes=8, seed=1)
    assert episodes.returns.tolist() == episodes.lengths.tolist() == lengths.tolist()
    assert evaluate(lean, "CartPole-v1", episodes=8, seed=1).tolist() == lengths.tolist()


def test_rewards_are_added_up():
    returns, lengths = play(lambda observation: np.zeros((len(observation), 1), np.float32), "Pendulum-v1", episodes=2)
    env = gymnasium.make("Pendulum-v1")
    env.reset(seed=EVALUATION_SEED)
    alone = sum(env.step(np.zeros(1, np.float32))[1] for _ in range(200))
    env.close()
    assert returns[0] == pytest.approx(alone)
    assert lengths.tolist() == [200, 200]


def test_evaluation_is_the_same_for_a_seed():
    first = evaluate(lean, "CartPole-v1", 5)
    assert np.array_equal(first, evaluate(lean, "CartPole-v1", 5, EVALUATION_SEED))
    assert not np.array_equal(first, evaluate(lean, "CartPole-v1", 5, EVALUATION_SEED + 1))


def test_many_episodes_are_played_in_several_batches(monkeypatch):
    together = play(lean, "CartPole-v1", 7, vectorization="sync")
    monkeypatch.setattr(evaluation, "MAX_ENVIRONMENTS", 3)
    sizes = []

    def watched(observation):
        sizes.append(len(observation))
        return lean(observation)

    pieces = play(watched, "CartPole-v1", 7, vectorization="sync")
    assert set(sizes) == {3, 1}
    assert pieces.returns.tolist() == together.returns.tolist()
    assert pieces.lengths.tolist() == together.lengths.tolist()


def test_an_episode_that_reaches_max_steps_counts_with_its_return_so_far(monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_STEPS", 6)
    assert play(lean, "CartPole-v1", 2).lengths.tolist() == [6, 6]


def test_options_reach_the_environments():
    shapes = set()

    def watched(observation):
        shapes.add(observation.shape)
        return push(0)(observation)

    lengths = play(watched, "CartPole-v1", 2, frame_stack=3, max_episode_steps=4).lengths
    assert shapes == {(2, 3, 4)}
    assert lengths.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("env_id", "episodes", "message"),
    [("CartPole-v1", 0, "episodes: expected at least 1, got 0"), ("Nothing-v0", 1, "env: expected an environment")],
)
def test_arguments_that_cannot_be_played_are_named(env_id, episodes, message):
    with pytest.raises(ValueError, match=message):
        play(lean, env_id, episodes)


def test_the_summary_of_episodes():
    numbers = summary(evaluation.Episodes(np.array([1.0, 3.0]), np.array([5, 5])))
    assert numbers == {
        "return": {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0},
        "length": {"mean": 5.0, "std": 0.0, "min": 5.0, "max": 5.0},
    }


# Policies of networks


def test_the_greedy_policy_takes_the_mode():
    loss = cartpole_loss()
    observation = np.random.default_rng(0).normal(size=(50, 4))
    action = greedy_policy(loss)(observation)
    expected = loss.actor_network(torch.from_numpy(observation).float()).argmax(-1)
    assert np.array_equal(action, expected.numpy())
    assert len(set(action.tolist())) == 2


def test_the_sampled_policy_follows_the_probabilities():
    loss = cartpole_loss()
    loss.actor_network = nn.Linear(4, 2)
    nn.init.zeros_(loss.actor_network.weight)
    loss.actor_network.bias.data = torch.tensor([0.75, 0.25]).log()
    action = NetworkPolicy(loss, sampled=True)(np.zeros((4000, 4)))
    assert action.mean() == pytest.approx(0.25, abs=0.03)


def test_observations_may_have_several_parts():
    class Sum(nn.Module):
        def forward(self, parts):
            return parts[0] + parts[1]

    loss = A2CLoss(Sum(), Sum(), distributions.Categorical(2))
    parts = {"first": np.array([[1.0, 0.0], [0.0, 0.0]]), "second": np.array([[0.0, 0.0], [0.0, 1.0]])}
    assert greedy_policy(loss)(parts).tolist() == greedy_policy(loss)(tuple(parts.values())).tolist() == [0, 1]


@pytest.mark.parametrize("shared", [True, False])
def test_a_recurrent_policy_remembers_until_it_is_reset(shared):
    critics_cell = Recurrent(MinGRU(4, 3))
    actors_cell = critics_cell if shared else Recurrent(MinGRU(4, 5), offset=3)
    actor = nn.Sequential(actors_cell, nn.Linear(actors_cell.cell.hidden_size, 2))
    loss = A2CLoss(actor, nn.Sequential(critics_cell, nn.Linear(3, 1)), distributions.Categorical(2))
    observation = 3 * torch.randn(20, 6, 4)
    start = torch.zeros(20, 6, dtype=torch.bool)
    start[0] = True
    with torch.no_grad():
        expected = actor((observation, torch.zeros(20, 6, 3 if shared else 8), start)).argmax(-1).tolist()
        forgetful = actor((observation, torch.zeros(20, 6, 3 if shared else 8), torch.ones_like(start))).argmax(-1).tolist()
    assert expected != forgetful
    policy = greedy_policy(loss)
    assert [policy(x.numpy()).tolist() for x in observation] == expected
    policy.reset()
    assert [policy(x.numpy()).tolist() for x in observation] == expected


def test_a_recurrent_policy_is_reset_before_each_batch(monkeypatch):
    class Counting:
        resets = 0

        def reset(self):
            self.resets += 1

        def __call__(self, observation):
            return push(0)(observation)

    monkeypatch.setattr(evaluation, "MAX_ENVIRONMENTS", 2)
    policy = Counting()
    play(policy, "CartPole-v1", 6)
    assert policy.resets == 3


# Pictures


class Dots(gymnasium.Env):
    """Renders ``frame(step)``, and ends after ``length`` steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode=None, frame=lambda step: np.full((10, 20, 3), 10 * step, np.uint8), length=6):
        self.render_mode, self.frame, self.length = render_mode, frame, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), 1.0, self.steps == self.length, False, {}

    def render(self):
        return self.frame(self.steps)


class Unseen(Dots):
    metadata = {"render_modes": ["ansi"]}


@pytest.fixture(scope="module", autouse=True)
def _registered():
    gymnasium.register("Dots-v0", Dots)
    gymnasium.register("Unseen-v0", Unseen)
    yield
    del gymnasium.registry["Dots-v0"], gymnasium.registry["Unseen-v0"]


def brightness(film):
    return [frame.getpixel((0, 0))[0] for frame in film.frames]


def test_a_film_has_a_frame_for_each_step_of_the_first_episode():
    film = record_episode(push(0), "Dots-v0")
    assert brightness(film) == [0, 10, 20, 30, 40, 50]
    assert (film.stride, film.seconds, film.total_return) == (1, 0.1, 6.0)


def test_long_episodes_are_filmed_with_a_stride(monkeypatch):
    monkeypatch.setattr(video, "MAX_FRAMES", 4)
    film = record_episode(push(0), "Dots-v0", length=20)
    assert brightness(film) == [0, 80, 160]
    assert [film.caption(i) for i in range(3)] == ["step 0   return 0", "step 8   return 8", "step 16   return 16"]
    assert (film.stride, film.seconds, film.total_return) == (8, 0.8, 20.0)


@pytest.mark.parametrize(
    ("shape", "size"), [((10, 20), (200, 100)), ((300, 200), (200, 300)), ((1200, 800), (267, 400))], ids=str
)
def test_frames_are_scaled_to_a_readable_size(shape, size):
    film = record_episode(push(0), "Dots-v0", frame=lambda step: np.zeros((*shape, 3), np.uint8))
    assert film.frames[0].size == size


def test_frames_may_have_colours_from_0_to_1():
    assert brightness(record_episode(push(0), "Dots-v0", frame=lambda step: np.full((9, 9, 3), step / 10))) == [
        int(25.5 * step) for step in range(6)
    ]


def test_an_animation_plays_in_time(tmp_path):
    film_episode(push(0), "Dots-v0", tmp_path / "new" / "dots.gif")
    with Image.open(tmp_path / "new" / "dots.gif") as image:
        assert (image.format, image.n_frames, image.size) == ("GIF", 6, (200, 118))
        durations, shades, captions = [], [], []
        for i in range(6):
            image.seek(i)
            durations.append(image.info["duration"])
            shades.append(image.convert("RGB").getpixel((50, 50))[0])
            captions.append(np.asarray(image.convert("L").crop((0, 0, 200, 18))))
    assert durations == [100] * 5 + [1000]
    assert shades == pytest.approx([0, 10, 20, 30, 40, 50], abs=4)
    assert all(caption.min() < 100 < 180 < caption.max() for caption in captions), "dark text on a bright bar"
    assert len({caption.tobytes() for caption in captions}) == 6
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["dots.gif"]


@pytest.mark.parametrize(("length", "shades"), [(3, [0, 10, 20]), (15, [0, 20, 40, 60, 80, 100, 120, 140])])
def test_a_strip_shows_eight_frames_at_most(tmp_path, length, shades):
    film_episode(push(0), "Dots-v0", tmp_path / "dots.png", length=length)
    with Image.open(tmp_path / "dots.png") as image:
        left = [8 + 208 * i for i in range(min(4, length))]
        rows = (26, 152) if length > 4 else (26,)
        assert image.size == (208 * len(left) + 8, 126 * len(rows) + 8)
        assert [image.getpixel((x + 100, y + 50))[0] for y in rows for x in left] == shades


@pytest.mark.slow
def test_a_video_has_the_frames_in_time(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    film = film_episode(
        push(0), "Dots-v0", tmp_path / "dots.mp4", frame=lambda step: np.full((301, 201, 3), 40 * step, np.uint8)
    )
    assert film.frames[0].size == (201, 301)
    command = [ffmpeg, "-i", tmp_path / "dots.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    read = subprocess.run(command, capture_output=True, check=True)
    assert b"200x318" in read.stderr, "players expect even sizes"
    assert b"yuv420p" in read.stderr
    assert b" 10 fps" in read.stderr
    pixels = np.frombuffer(read.stdout, np.uint8).reshape(6, 318, 200, 3)
    assert pixels[:, 150, 100, 0].tolist() == pytest.approx([0, 40, 80, 120, 160, 200], abs=6)
    assert [file.name for file in tmp_path.iterdir()] == ["dots.mp4"]


def test_a_video_without_imageio_ffmpeg_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"video: expected imageio-ffmpeg for an \.mp4, found none: pip install 'a2c-compiled\[environments\]'"
    ):
        film_episode(push(0), "Nothing-v0", tmp_path / "dots.mp4")


@pytest.mark.parametrize(
    ("env_id", "file", "options", "message"),
    [
        ("Dots-v0", "dots.avi", {}, r"video: expected a file ending in \.gif, \.mp4, \.png, got .*dots\.avi"),
        (
            "Unseen-v0",
            "dots.gif",
            {},
            "env: expected an environment with render mode rgb_array, got Unseen-v0, which renders ansi$",
        ),
        ("Dots-v0", "dots.gif", {"frame": lambda step: None}, "env: expected frames of shape"),
        (
            "Dots-v0",
            "dots.gif",
            {"frame": lambda step: 1 / 0},
            "env: expected an environment that can be rendered here, got Dots-v0",
        ),
    ],
)
def test_an_environment_or_file_that_cannot_be_filmed_is_named(tmp_path, env_id, file, options, message):
    with pytest.raises(ValueError, match=message):
        film_episode(push(0), env_id, tmp_path / file, **options)
    assert not list(tmp_path.iterdir())


def test_the_file_of_a_film_may_be_a_string_and_what_is_no_path_is_named(tmp_path):
    film_episode(push(0), "Dots-v0", str(tmp_path / "dots.gif"))
    assert (tmp_path / "dots.gif").is_file()
    with pytest.raises(TypeError, match="path: expected a path, got None"):
        film_episode(push(0), "Dots-v0", None)


def test_cartpole_is_filmed_without_a_display(tmp_path, monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.delenv("DISPLAY", raising=False)
    film = film_episode(push(0), "CartPole-v1", tmp_path / "cartpole.png")
    assert 8 <= len(film.frames) == film.total_return <= 10
    assert film.frames[0].size == (400, 267)
    assert len(film.frames[0].getcolors()) > 3


# The command


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A folder that loads as a run of CartPole, and the loss of that run."""
    loss = cartpole_loss()
    save_config(tmp_path, TrainConfig())
    monkeypatch.setattr("a2c_compiled.training.run_folder.load_run", lambda *arguments: (TrainConfig(), loss))
    return tmp_path, loss


def test_eval_prints_returns_and_lengths(run, capsys):
    folder, loss = run
    assert main(["eval", str(folder), "--episodes", "5", "--seed", "3"]) == 0
    title, header, returns, lengths = capsys.readouterr().out.splitlines()
    expected = play(greedy_policy(loss), "CartPole-v1", 5, 3)
    assert title == "CartPole-v1, 5 episodes, greedy policy"
    assert header.split() == ["mean", "std", "min", "max"]
    assert returns.split() == ["return", *(_rounded(x) for x in summary(expected)["return"].values())]
    assert lengths.split()[0] == "length"


def test_eval_prints_json(run, capsys):
    folder, _ = run
    command = ["eval", str(folder), "--episodes", "5", "--sampled", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["env"], found["episodes"], found["seed"], found["sampled"]) == ("CartPole-v1", 5, EVALUATION_SEED, True)
    assert found["return"]["mean"] == np.mean(found["returns"])
    assert found["lengths"] == found["returns"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == found, "sampled actions have their seed too"


def test_eval_films_an_episode(run, capsys):
    pytest.importorskip("pygame")
    folder, loss = run
    loss.actor_network[-1].bias.data[0] = 100.0  # always pushes left, so that the episode is short
    assert main(["eval", str(folder), "--episodes", "1", "--video", str(folder / "cartpole.png")]) == 0
    with Image.open(folder / "cartpole.png") as image:
        assert image.format == "PNG"


def test_eval_of_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    assert main(["eval", str(tmp_path)]) == 2
    assert "a2c-compiled: run: expected a folder that training wrote" in capsys.readouterr().err
