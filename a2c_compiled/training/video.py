"""An episode as a picture: an animated GIF, an MP4, or a strip of some of its frames."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv
from PIL import Image, ImageDraw

from a2c_compiled._files import written_whole
from a2c_compiled.environments import make_vector
from a2c_compiled.training.evaluation import EVALUATION_SEED, MAX_STEPS, Policy, forget

MAX_FRAMES = 500
"""Of longer episodes every second frame is kept, or every fourth, and so on; they play as fast."""

SMALLEST, LARGEST = 200, 400
"""Pixels of a frame's longer side."""


class Film(NamedTuple):
    """An episode to look at.

    Attributes:
        frames: one for every ``stride`` steps, the last before the episode's end.
        stride: steps from frame to frame.
        seconds: from frame to frame.
        total_return: of the episode, undiscounted.
    """

    frames: List[Image.Image]
    stride: int
    seconds: float
    total_return: float


def film_episode(policy: Policy, env_id: str, path: Path, seed: int = EVALUATION_SEED, **env_options: Any) -> Film:
    """Play an episode, and write it to ``path``: ``.gif``, ``.mp4``, which takes imageio's ffmpeg, or ``.png``, eight frames side by side.

    Raises:
        ValueError: the file's ending is none of these, imageio's ffmpeg is not installed, or the environment cannot be rendered.
    """
    write = _WRITERS.get(path.suffix)
    if write is None:
        raise ValueError(f"video: expected a file ending in {', '.join(_WRITERS)}, got {path}")
    if write is _write_mp4 and find_spec("imageio_ffmpeg") is None:
        raise ValueError(
            "video: expected imageio-ffmpeg for an .mp4: pip install 'a2c-compiled[environments]', or write a .gif"
        )
    film = record_episode(policy, env_id, seed, **env_options)
    with written_whole(path) as temporary:
        write(film, temporary)
    return film


def record_episode(policy: Policy, env_id: str, seed: int = EVALUATION_SEED, **env_options: Any) -> Film:
    """Play an episode and keep what it looks like.

    Raises:
        ValueError: the environment cannot be rendered.
    """
    envs = make_vector(env_id, 1, "sync", **env_options)
    modes = envs.metadata.get("render_modes") or ["nothing"]
    envs.close()
    if "rgb_array" not in modes:
        raise ValueError(
            f"env: expected one that renders as rgb_array to film it, got {env_id}, which renders {', '.join(modes)}"
        )
    _need_no_display()
    envs = make_vector(env_id, 1, "sync", render_mode="rgb_array", disable_env_checker=True, **env_options)
    frames: List[Image.Image] = []
    stride, total_return = 1, 0.0
    forget(policy)
    try:
        observation, _ = envs.reset(seed=seed)
        for step in range(MAX_STEPS):
            if step == stride * MAX_FRAMES:
                frames, stride = frames[::2], 2 * stride
            if step % stride == 0:
                frames.append(_frame(env_id, envs))
            observation, reward, terminated, truncated, _ = envs.step(policy(observation))
            total_return += float(reward[0])
            if terminated[0] or truncated[0]:
                break
    finally:
        envs.close()
    return Film(frames, stride, stride / envs.metadata.get("render_fps", 30), total_return)


def _frame(env_id: str, envs: VectorEnv) -> Image.Image:
    """Of the first environment, made larger or smaller where it is too small or large to look at."""
    try:
        rendered = envs.render()
    except Exception as error:  # each kind of environment has its own
        raise ValueError(f"env: expected one that can be rendered here, got {env_id} ({error})") from error
    pixels = np.asarray(None if rendered is None else rendered[0])
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"env: expected frames of shape [height, width, 3] to film, got {list(pixels.shape)} from {env_id}")
    image = Image.fromarray((255 * pixels if pixels.dtype.kind == "f" else pixels).astype(np.uint8))
    side = max(image.size)
    if side > LARGEST:
        image.thumbnail((LARGEST, LARGEST))
    elif side < SMALLEST:
        image = image.resize([-(-SMALLEST // side) * length for length in image.size], Image.Resampling.NEAREST)
    return image


def _need_no_display() -> None:
    """Have pygame and MuJoCo draw into memory where there is no display."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")


def _write_gif(film: Film, path: Path) -> None:
    # In hundredths of a second, and viewers slow down what is faster than two.
    milliseconds = max(20, round(film.seconds * 100) * 10)
    # Each with colours of its own; Pillow's default method takes several times as long.
    first, *others = [frame.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) for frame in film.frames]
    durations = [milliseconds] * len(others) + [1000]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)


def _write_strip(film: Film, path: Path) -> None:
    """Two rows of four frames, with the step of each above it."""
    chosen = sorted(set(np.linspace(0, len(film.frames) - 1, 8).round().astype(int).tolist()))
    width, height = film.frames[0].size
    columns, margin, caption = min(4, len(chosen)), 8, 16
    cell_width, cell_height = width + margin, height + margin + caption
    strip = Image.new("RGB", (columns * cell_width + margin, -(-len(chosen) // columns) * cell_height + margin), "gainsboro")
    draw = ImageDraw.Draw(strip)
    for i, frame in enumerate(chosen):
        left, top = margin + i % columns * cell_width, i // columns * cell_height + margin
        draw.text((left, top), f"step {frame * film.stride:,}", fill="black", font_size=12)
        strip.paste(film.frames[frame], (left, top + caption))
    strip.save(path)


def _write_mp4(film: Film, path: Path) -> None:
    import imageio.v3 as imageio

    width, height = film.frames[0].size
    even = (0, 0, width - width % 2, height - height % 2)  # as players expect
    frames = [np.asarray(frame.crop(even)) for frame in film.frames]
    imageio.imwrite(path, frames, plugin="FFMPEG", fps=1 / film.seconds, macro_block_size=2)


_WRITERS: Dict[str, Callable[[Film, Path], None]] = {".gif": _write_gif, ".mp4": _write_mp4, ".png": _write_strip}
