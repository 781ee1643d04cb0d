"""Renders an episode as an animated GIF, an MP4, or a PNG with some of its frames."""

import os
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
from gymnasium.vector import VectorEnv
from PIL import Image, ImageDraw

from a2c_compiled._files import AnyPath, as_path, atomic_file
from a2c_compiled._hyperparameters import check_seed
from a2c_compiled.environments import EnvironmentAction, EnvironmentSource, make_vector
from a2c_compiled.environments.source import is_environment_class, is_registered, is_tensor_class, resolved
from a2c_compiled.environments.vector import AsVector
from a2c_compiled.training.evaluation import EVALUATION_SEED, MAX_STEPS, Policy, reset_policy

MAX_FRAMES = 500
"""Largest number of frames. A longer episode keeps every second frame, or every fourth, and so on, and plays at the same speed."""

MIN_SIDE, MAX_SIDE = 200, 400
"""Limits of a frame's longer side, in pixels."""


CAPTION = 18
"""Height of the caption above a frame, in pixels."""


class Film(NamedTuple):
    """Frames of an episode.

    Attributes:
        frames: rendered before every ``stride``-th step, so without the episode's final state.
        returns: for each frame, the sum of the rewards before it.
        stride: number of steps between two frames.
        seconds: time between two frames.
        total_return: undiscounted return of the episode.
    """

    frames: List[Image.Image]
    returns: List[float]
    stride: int
    seconds: float
    total_return: float

    def caption(self, i: int) -> str:
        """Returns the text above frame ``i``: its step, and the return so far."""
        return f"step {i * self.stride:,}   return {self.returns[i]:,.6g}"


def film_episode(
    policy: Policy, env_id: EnvironmentSource, path: AnyPath, seed: int = EVALUATION_SEED, **env_options: Any
) -> Film:
    """Plays an episode and writes it to ``path``. Above each frame are its step and the return so far.

    Args:
        policy: maps observations to actions.
        env_id: what :func:`~a2c_compiled.environments.make_vector` makes the environment from. A function must make it with
            ``render_mode="rgb_array"``.
        path: file with the ending ``.gif``, ``.mp4`` (requires imageio-ffmpeg), or ``.png`` (up to eight frames in one picture).
        seed: seed of the environment.
        env_options: options of :func:`~a2c_compiled.environments.make_vector`.

    Raises:
        ValueError: the file has another ending, imageio-ffmpeg is not installed, or the environment cannot be made or rendered here.
        TypeError: ``path`` is not a path.
    """
    path = as_path("path", path)
    write = _WRITERS.get(path.suffix)
    if write is None:
        raise ValueError(f"video: expected a file ending in {', '.join(_WRITERS)}, got {path}")
    if write is _write_mp4 and find_spec("imageio_ffmpeg") is None:
        raise ValueError(
            "video: expected imageio-ffmpeg for an .mp4, found none: pip install 'a2c-compiled[environments]', or write a .gif"
        )
    film = record_episode(policy, env_id, seed, **env_options)
    with atomic_file(path) as temporary:
        write(film, temporary)
    return film


def record_episode(policy: Policy, env_id: EnvironmentSource, seed: int = EVALUATION_SEED, **env_options: Any) -> Film:
    """Plays an episode and returns its frames. Arguments: see :func:`film_episode`.

    Raises:
        ValueError: the environment cannot be made or rendered here, or ``seed`` is negative or has more than 63 bits.
        TypeError: ``seed`` is not an integer.
    """
    check_seed("seed", seed)
    envs = _rendered_environment(env_id, seed, **env_options)
    environment_action = EnvironmentAction(envs.single_action_space)
    frames: List[Image.Image] = []
    returns: List[float] = []
    stride, total_return = 1, 0.0
    reset_policy(policy)
    try:
        observation, _ = envs.reset(seed=seed)
        for step in range(MAX_STEPS):
            if step == stride * MAX_FRAMES:
                frames, returns, stride = frames[::2], returns[::2], 2 * stride
            if step % stride == 0:
                frames.append(_frame(env_id, envs))
                returns.append(total_return)
            observation, reward, terminated, truncated, _ = envs.step(environment_action.of_array(policy(observation)))
            total_return += float(reward[0])
            if terminated[0] or truncated[0]:
                break
    finally:
        envs.close()
    return Film(frames, returns, stride, stride / envs.metadata.get("render_fps", 30), total_return)


def _rendered_environment(env_id: EnvironmentSource, seed: int, **env_options: Any) -> VectorEnv:
    """Makes one environment that renders frames.

    Raises:
        ValueError: the environment cannot be made here, or does not render frames.
    """
    source = resolved(env_id)
    # Of gymnasium's environments, the single ones render; their checker would warn about render modes.
    options: Dict[str, Any] = {"vectorization": "sync", "disable_env_checker": True} if is_registered(source) else {}
    with closing(make_vector(source, 1, seed=seed, **options, **env_options)) as envs:
        modes = envs.metadata.get("render_modes") or ["nothing"]
        made_here = isinstance(source, str) or is_environment_class(source)
        if not made_here:
            modes = [str(envs.render_mode)]
    if "rgb_array" not in modes:
        raise ValueError(
            f"env: expected an environment with render mode rgb_array, got {env_id}, which renders {', '.join(modes)}"
            f"{_how_to_render(source, envs)}"
        )
    _render_without_display()
    if made_here:
        options["render_mode"] = "rgb_array"
    return make_vector(source, 1, seed=seed, **options, **env_options)


def _how_to_render(source: Any, envs: VectorEnv) -> str:
    """Returns what makes the environments of ``source`` render frames, as the end of a message; empty for those of gymnasium."""
    if is_environment_class(source):
        return (
            "; the class needs the mode in metadata['render_modes'], an argument render_mode, and a method render that returns pixels"
            " [height, width, 3]"
        )
    if isinstance(source, str):
        return ""
    if isinstance(envs, AsVector):
        kind = "in torch" if is_tensor_class(source) else "that are not gymnasium's"
        return f"; environments {kind} have no video"
    return "; the function has to pass render_mode='rgb_array' to the environments that it makes"


def _frame(env_id: EnvironmentSource, envs: VectorEnv) -> Image.Image:
    """Renders the first environment. Scales the frame if its longer side is below ``MIN_SIDE`` or above ``MAX_SIDE`` pixels."""
    try:
        rendered = envs.render()
    except Exception as error:  # environments raise errors of many types
        raise ValueError(f"env: expected an environment that can be rendered here, got {env_id} ({error})") from error
    pixels = np.asarray(None if rendered is None else rendered[0])
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"env: expected frames of shape [height, width, 3] to film, got {list(pixels.shape)} from {env_id}")
    if pixels.dtype.kind == "f":
        pixels = 255 * pixels  # floats are between 0 and 1
    image = Image.fromarray(pixels.astype(np.uint8))
    side = max(image.size)
    if side > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    elif side < MIN_SIDE:
        factor = -(-MIN_SIDE // side)  # rounded up to an integer, so that all pixels become equal squares
        image = image.resize([factor * length for length in image.size], Image.Resampling.NEAREST)
    return image


def _render_without_display() -> None:
    """Makes pygame and MuJoCo draw into memory if there is no display."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")


def _captioned(film: Film, chosen: Optional[Sequence[int]] = None) -> List[Image.Image]:
    """Returns the frames ``chosen``, None: all, with their captions above them."""
    width, height = film.frames[0].size
    captioned = []
    for i in range(len(film.frames)) if chosen is None else chosen:
        image = Image.new("RGB", (width, height + CAPTION), "gainsboro")
        ImageDraw.Draw(image).text((4, 2), film.caption(i), fill="black", font_size=12)
        image.paste(film.frames[i], (0, CAPTION))
        captioned.append(image)
    return captioned


def _write_gif(film: Film, path: Path) -> None:
    """Writes an animation that repeats for ever and shows the last frame for a second."""
    # GIF stores durations in hundredths of a second, and viewers slow down durations below two hundredths.
    milliseconds = max(20, round(film.seconds * 100) * 10)
    # Each frame has its own palette. FASTOCTREE is several times as fast as Pillow's default method.
    frames = _captioned(film)
    first, *others = [frame.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) for frame in frames]
    durations = [milliseconds] * len(others) + [1000]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)


def _write_strip(film: Film, path: Path) -> None:
    """Writes up to eight frames in rows of four."""
    frames = _captioned(film, sorted(set(np.linspace(0, len(film.frames) - 1, 8).round().astype(int).tolist())))
    width, height = frames[0].size
    columns, margin = min(4, len(frames)), 8
    cell_width, cell_height = width + margin, height + margin
    strip = Image.new("RGB", (columns * cell_width + margin, -(-len(frames) // columns) * cell_height + margin), "gainsboro")
    for i, frame in enumerate(frames):
        strip.paste(frame, (margin + i % columns * cell_width, margin + i // columns * cell_height))
    strip.save(path)


def _write_mp4(film: Film, path: Path) -> None:
    """Writes a video with one frame for each frame of ``film``, at the speed of the environment."""
    import imageio.v3 as imageio

    frames = _captioned(film)
    width, height = frames[0].size
    even = (0, 0, width - width % 2, height - height % 2)  # players expect even sizes
    pixels = [np.asarray(frame.crop(even)) for frame in frames]
    imageio.imwrite(path, pixels, plugin="FFMPEG", fps=1 / film.seconds, macro_block_size=2)


_WRITERS: Dict[str, Callable[[Film, Path], None]] = {".gif": _write_gif, ".mp4": _write_mp4, ".png": _write_strip}
