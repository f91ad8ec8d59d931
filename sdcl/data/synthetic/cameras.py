"""What a camera sees: its place, its light, its boxes; and the whole way from an address to a finished image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sdcl.data.synthetic.canvas import Canvas
from sdcl.data.synthetic.figures import draw_figure, draw_pose
from sdcl.data.synthetic.people import OBSTACLE, SKIN, Person, draw_person
from sdcl.data.synthetic.randomness import CAMERA, IMAGE, TRACK, Draws
from sdcl.data.synthetic.settings import INDOOR_CAMERAS, INFRARED_CAMERAS, SyntheticConfig

# RegDB's pair of cameras, in the numbering that follows SYSU-MM01's 1 … 6.
REGDB_VISIBLE, REGDB_THERMAL = 7, 8


@dataclass(frozen=True)
class Camera:
    """One camera of a world; lengths in image sizes, brightness relative."""

    infrared: bool
    indoor: bool
    heading: float
    steepness: float
    """0 … 0.3: how far it looks down on people, which makes the upper body larger."""
    light: float
    gain: float
    cast: tuple[float, float, float]
    slope: tuple[float, float]
    """Change of the light over the width and the height (visible); middle of the lamp's beam (infrared)."""
    falloff: float
    curve: float
    """Above 0 lifts the middle tones, below 0 darkens them."""
    haze: float
    blur: float
    grain: float


@lru_cache(maxsize=64)
def draw_camera(seed: int, number: int, strength: float) -> Camera:
    """Camera `number` of the world `seed`; `strength` scales how far it differs from a neutral one."""
    draws = Draws(seed, CAMERA, camera=number)
    infrared, indoor = number in (*INFRARED_CAMERAS, REGDB_THERMAL), number in INDOOR_CAMERAS
    warm = draws.uniform(0.02, 0.2) if indoor else draws.uniform(-0.16, 0.06)
    return Camera(
        infrared,
        indoor,
        heading=draws.uniform(),
        steepness=draws.uniform(0.0, 0.3),
        light=draws.uniform(-1.0, 1.0),
        gain=1.0 + strength * draws.uniform(-0.25, 0.15),
        cast=(1.0 + strength * warm, 1.0 + strength * draws.uniform(-0.06, 0.06), 1.0 - strength * warm),
        slope=(strength * draws.uniform(-0.3, 0.3), strength * draws.uniform(-0.3, 0.3)),
        falloff=strength * draws.uniform(0.5, 1.1),
        curve=strength * draws.uniform(-0.35, 0.35),
        haze=strength * draws.uniform(0.0, 0.16),
        blur=strength * draws.uniform(0.0, 0.8),
        grain=strength * (draws.uniform(5.0, 9.0) if infrared else draws.uniform(2.0, 7.0)),
    )


@lru_cache(maxsize=64)
def draw_scene(seed: int, number: int, height: int, width: int) -> np.ndarray:
    """The empty place before a camera, float32 [height * 5/4, width * 6, 3 or 1 channels], 0 … 255."""
    camera = draw_camera(seed, number, 0.0)
    draws = Draws(seed, CAMERA, camera=number, image=1)
    rows, columns, channels = height + height // 4, width * 6, 1 if camera.infrared else 3
    scene = np.empty((rows, columns, channels), dtype=np.float32)

    def colour(low: int, high: int, spread: int) -> np.ndarray:
        base = low + draws.below(high - low)
        return np.array([base + draws.below(2 * spread + 1) - spread for _ in range(channels)], dtype=np.float32)

    floor = int(rows * draws.uniform(0.5, 0.68))
    scene[:floor], scene[floor:] = colour(110, 205, 13), colour(80, 170, 11)
    scene[floor:] *= np.linspace(0.8, 1.1, rows - floor, dtype=np.float32)[:, None, None]  # darker far away
    for _ in range(26 if camera.indoor else 34):  # doors, posters and windows; or houses, cars and bushes
        wide = int(columns * draws.uniform(0.015, 0.09))
        left = draws.below(columns - wide)
        foot = floor if draws.chance(0.55) else int(floor * draws.uniform(0.3, 0.9))
        top = int(foot * draws.uniform(0.1, 0.85))
        if not camera.indoor and draws.chance(0.3):
            _bush(scene, draws, left, foot, wide, bright=camera.infrared)
        else:
            scene[top:foot, left : left + wide] = colour(45, 215, 22)
            if draws.chance(0.5):  # panes or panels
                edge = max(wide // 8, 1)
                middle, inner = (top + foot) // 2, slice(left + edge, left + wide - edge)
                pane = colour(45, 215, 22)
                scene[top + edge : middle, inner] = pane
                scene[middle + edge : foot - edge, inner] = pane
    for _ in range(5):  # joints of the floor
        y = floor + draws.below(rows - floor)
        scene[y : y + max(rows // 80, 1)] += draws.uniform(-35, 25)
    for cell, strength in ((max(height // 6, 2), 26.0), (max(height // 24, 1), 16.0 if camera.indoor else 30.0)):
        scene += strength * _clouds(draws, rows, columns, cell)
    return _soften(np.minimum(np.maximum(scene, 5.0), 250.0), 1.0)


def _bush(scene: np.ndarray, draws: Draws, left: int, foot: int, wide: int, bright: bool) -> None:
    """A clump of leaves; leaves shine in infrared."""
    leaf = np.array([205.0] if bright else [60.0, 105.0, 50.0], dtype=np.float32)
    for _ in range(9):
        radius = 2 + draws.below(max(wide // 3, 1))
        x, y = left + draws.below(wide + 1), foot - draws.below(max(foot // 3, 1))
        rows, columns = slice(max(y - radius, 0), y + radius + 1), slice(max(x - radius, 0), x + radius + 1)
        dy = np.arange(rows.start, min(rows.stop, len(scene)))[:, None] - y
        dx = np.arange(columns.start, min(columns.stop, scene.shape[1])) - x
        scene[rows, columns][dy * dy + dx * dx <= radius * radius] = leaf * np.float32(draws.uniform(0.7, 1.1))


def _clouds(draws: Draws, rows: int, columns: int, cell: int) -> np.ndarray:
    """Smooth random spots of about `cell` pixels, float32 [rows, columns, 1] in −0.5 … 0.5."""
    grid = draws.bytes(rows // cell + 2, columns // cell + 2).astype(np.float32) / np.float32(255) - np.float32(0.5)
    y, x = np.arange(rows), np.arange(columns)
    fy, fx = ((np.float32(1) * (at % cell) / np.float32(cell)).astype(np.float32) for at in (y, x))
    upper, lower = grid[y // cell], grid[y // cell + 1]
    lines = upper + fy[:, None] * (lower - upper)
    left, right = lines[:, x // cell], lines[:, x // cell + 1]
    return (left + fx * (right - left))[..., None]


def draw_image(
    config: SyntheticConfig, identity: int, camera: int, image: int, response: int | None = None
) -> np.ndarray:
    """One image of the data set, drawn alone.

    Args:
        config: the data set; image counts play no part.
        identity: its number, 1 … .
        camera: 1 … 6 as in SYSU-MM01 (3 and 6 infrared); 7 and 8 are RegDB's visible and thermal camera.
        image: its number within identity and camera, 1 … .
        response: an infrared camera, to have the same moment of a visible camera as that one would develop it: person,
            pose, box and place are those of `camera`, light and film those of `response`.

    Returns:
        uint8 [height, width, 3]; infrared images have three equal channels. The same bytes on every machine.
    """
    eye = draw_camera(config.seed, camera, config.camera_strength)
    person = draw_person(config.seed, identity)
    track = Draws(config.seed, TRACK, identity, camera)
    draws = Draws(config.seed, IMAGE, identity, camera, image)
    pose = draw_pose(track, draws, eye.heading, config.view_range)

    loose = config.crop_jitter
    zoom = 1.1 + loose * draws.uniform(-0.1, 0.16)  # the box's height in units of the person's
    middle, top = loose * draws.uniform(-0.065, 0.065), 0.5 - 0.5 * zoom + loose * draws.uniform(-0.06, 0.06)
    # A box is twice as high as wide, whatever the image's size: people are scaled into it.
    x = ((np.arange(2 * config.width) + 0.5) / (2 * config.width) - 0.5) * (0.5 * zoom) - middle
    y = (np.arange(2 * config.height) + 0.5) / (2 * config.height) * zoom + top
    canvas = Canvas(x, y - eye.steepness * y * (1.0 - y), eye.light)
    draw_figure(canvas, person, pose)
    if draws.chance(config.occlusion):
        _obstruct(canvas, draws)

    scene = draw_scene(config.seed, camera, config.height, config.width)
    left = int((scene.shape[1] - config.width) * (0.8 * track.uniform() + 0.2 * draws.uniform()))
    above = draws.below(len(scene) - config.height + 1)
    view = scene[above : above + config.height, left : left + config.width]
    if response is not None:
        eye, view = draw_camera(config.seed, response, config.camera_strength), view.mean(2, keepdims=True)
    return _develop(canvas, view, person, eye, config.own_infrared, draws)


def _obstruct(canvas: Canvas, draws: Draws) -> None:
    """Something before the person: a post, a low wall or table, or a passer-by at the edge."""
    left, right = float(canvas.x[0]), float(canvas.x[-1])
    wide, kind, side = right - left, draws.below(3), draws.choose((-1, 1))
    if kind == 0:
        at, half = left + wide * draws.uniform(0.15, 0.85), wide * draws.uniform(0.035, 0.07)
        canvas.column([(-1.0, at, half), (2.0, at + wide * draws.uniform(-0.3, 0.3), half)], OBSTACLE)
    elif kind == 1:
        height = draws.uniform(0.62, 0.85)
        canvas.column([(height, side * 0.1, wide * draws.uniform(0.3, 0.7)), (2.0, side * 0.1, wide)], OBSTACLE)
    else:
        at = side * draws.uniform(0.2, 0.26)
        canvas.ellipse((at, 0.08), 0.05, 0.065, OBSTACLE)
        body = ((0.13, 0.03), (0.17, 0.05), (0.2, 0.12), (0.46, 0.11), (0.58, 0.085))
        canvas.column([(y, at, half) for y, half in body], OBSTACLE)
        for leg in (-1, 1):
            canvas.limb((at + 0.04 * leg, 0.55), (at + 0.07 * leg, 0.97), 0.05, 0.028, OBSTACLE)


def _develop(canvas: Canvas, view: np.ndarray, person: Person, eye: Camera, own: float, draws: Draws) -> np.ndarray:
    """From materials to the camera's picture: colours before the background, light, lens, noise."""
    colours = np.zeros((OBSTACLE + 1, view.shape[2]), dtype=np.float32)
    for material, dye in person.dyes.items():
        if eye.infrared:
            share = 1.0 if material == SKIN else own  # skin shines in infrared, whatever the garments do
            colours[material] = (1.0 - share) * dye.grey + share * dye.own_infrared
        else:
            colours[material] = dye[:3]
    base = 30 + draws.below(150)
    colours[OBSTACLE] = [base + draws.below(31) - 15 for _ in range(view.shape[2])]

    lit = colours[canvas.material] * canvas.shade[..., None]
    covered = (canvas.material > 0).astype(np.float32)[..., None]
    picture = _quarter(lit) + (np.float32(1) - _quarter(covered)) * view * _shadow(canvas)
    picture = _soften(_expose(picture, eye, draws.uniform(0.88, 1.12)), eye.blur * draws.uniform(0.6, 1.3))
    picture += np.float32(eye.grain) * draws.noise(*picture.shape)
    pixels = np.minimum(np.maximum(np.floor(picture + np.float32(0.5)), 0), 255).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if eye.infrared else pixels


def _expose(picture: np.ndarray, eye: Camera, exposure: float) -> np.ndarray:
    """Light, tone curve and haze of a camera on a float32 picture of 0 … 255."""
    height, width, channels = picture.shape
    y = ((np.arange(height) + 0.5) / height - 0.5)[:, None, None]
    x = ((np.arange(width) + 0.5) / width - 0.5)[None, :, None]
    if eye.infrared:  # a lamp beside the lens: bright in its beam, dark around
        beam_x, beam_y = x - 0.6 * eye.slope[0], y - 0.6 * eye.slope[1]
        light = 1.1 - eye.falloff * (beam_x * beam_x + beam_y * beam_y)
        cast = np.ones(1)
    else:
        light, cast = 1.0 + eye.slope[0] * x + eye.slope[1] * y, np.array(eye.cast)
    level = (light * cast * (eye.gain * exposure / 255.0)).astype(np.float32)
    tone = np.minimum(picture * level, np.float32(1))
    tone = tone + np.float32(eye.curve) * tone * (np.float32(1) - tone)
    haze = np.float32(eye.haze)
    return np.float32(255) * (np.float32(0.6) * haze + (np.float32(1) - haze) * tone)


def _shadow(canvas: Canvas) -> np.ndarray:
    """Darker ground around the feet, float32 [height, width, 1]."""
    u, v = (canvas.x[::2] - 0.03 * canvas.light) / 0.17, (canvas.y[::2, None] - 0.99) / 0.035
    return (1.0 - 0.45 * np.maximum(1.0 - u * u - v * v, 0.0)).astype(np.float32)[..., None]


def _quarter(fine: np.ndarray) -> np.ndarray:
    """Mean over blocks of 2 x 2 pixels."""
    lines = fine[0::2] + fine[1::2]
    return (lines[:, 0::2] + lines[:, 1::2]) * np.float32(0.25)


def _soften(picture: np.ndarray, strength: float) -> np.ndarray:
    """Blend with the picture blurred by the weights 1 2 1 in both directions."""
    soft = picture
    for axis in (0, 1):
        size = picture.shape[axis]
        before, after = np.maximum(np.arange(size) - 1, 0), np.minimum(np.arange(size) + 1, size - 1)
        soft = (soft.take(before, axis) + soft.take(after, axis)) * np.float32(0.25) + soft * np.float32(0.5)
    return picture + np.float32(strength) * (soft - picture)
