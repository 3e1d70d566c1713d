"""A small ray caster: rooms with spheres and boxes, with exact depth, normals and classes.

The camera sits at the origin and looks along +z; x points right and y down. Depth is the z of what
a pixel's ray hits, in metres; normals are unit vectors in the camera's axes that face the camera.
One ray per pixel, through its centre. Pure numpy; a scene takes some milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CLASSES = ("floor", "ceiling", "wall", "sphere", "box")
FLOOR, CEILING, WALL, SPHERE, BOX = range(len(CLASSES))
_HALF_WIDTH = 0.6  # of the image at a depth of 1: a field of view of 62 degrees
_LEAST = 1e-6  # what is nearer to the camera than this is behind it


@dataclass(frozen=True)
class Style:
    """What a set of scenes looks like.

    Attributes
    ----------
    objects
        Fewest and most objects of a scene.
    textured
        Whether surfaces carry stripes or checks.
    noise
        Standard deviation of what the sensor adds, of 255.
    """

    objects: tuple[int, int] = (3, 6)
    textured: bool = True
    noise: float = 6.0


@dataclass(frozen=True)
class Scenes:
    """N rendered scenes of side S.

    Attributes
    ----------
    images
        uint8 [N, S, S, 3].
    segments
        Index into ``CLASSES``, uint8 [N, S, S].
    depth
        Metres, float32 [N, S, S].
    normals
        Unit vectors, float32 [N, S, S, 3].
    """

    images: NDArray[np.uint8]
    segments: NDArray[np.uint8]
    depth: NDArray[np.float32]
    normals: NDArray[np.float32]


def render(count: int, side: int, style: Style, seed: int) -> Scenes:
    """``count`` scenes of ``side`` x ``side`` pixels; scene i depends on ``seed`` and i alone."""
    rays = _rays(side)
    made = [_scene(np.random.default_rng((seed, index)), rays, style) for index in range(count)]
    shape = (count, side, side)
    columns = [np.stack(column) for column in zip(*made, strict=True)]
    images, segments, depth, normals = columns
    return Scenes(
        images.reshape(*shape, 3),
        segments.reshape(shape),
        depth.reshape(shape).astype(np.float32),
        normals.reshape(*shape, 3).astype(np.float32),
    )


def _rays(side: int) -> Floats:
    """Directions [S·S, 3] with z = 1, row by row: the distance along one is the depth."""
    steps = ((np.arange(side) + 0.5) / side * 2 - 1) * _HALF_WIDTH
    down, right = np.meshgrid(steps, steps, indexing="ij")
    return np.stack([right.ravel(), down.ravel(), np.ones(side * side)], axis=1)


@dataclass(frozen=True)
class Hits:
    """What M rays meet on a surface: depth [M], infinite where they miss, and normals [M, 3]."""

    depth: Floats
    normals: Floats


def plane(rays: Floats, normal: Floats, distance: float) -> Hits:
    """The plane of all p with normal · p = -distance; ``normal`` [3] faces the camera."""
    facing = rays @ normal
    with np.errstate(divide="ignore"):
        depth = np.where(facing < -_LEAST, -distance / facing, np.inf)
    return Hits(depth, np.broadcast_to(normal, rays.shape))


def sphere(rays: Floats, centre: Floats, radius: float) -> Hits:
    """A sphere that does not hold the camera."""
    square = (rays * rays).sum(1)
    along = rays @ centre
    inside = along**2 - square * (centre @ centre - radius**2)
    near = (along - np.sqrt(np.maximum(inside, 0))) / square
    depth = np.where((inside > 0) & (near > _LEAST), near, np.inf)
    points = rays * np.where(np.isfinite(depth), depth, 0)[:, None]
    return Hits(depth, (points - centre) / radius)


def box(rays: Floats, centre: Floats, half: Floats, turn: float) -> Hits:
    """A box of half sides ``half`` [3], turned by ``turn`` radians about the vertical (slabs)."""
    cos, sin = np.cos(turn), np.sin(turn)
    axes = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])  # rows: the box's own axes
    directions = rays @ axes.T
    directions = np.where(np.abs(directions) < _LEAST, _LEAST, directions)
    middle = axes @ centre
    first, second = (middle - half) / directions, (middle + half) / directions
    enter = np.minimum(first, second)
    near, far = enter.max(1), np.maximum(first, second).min(1)
    depth = np.where((near < far) & (near > _LEAST), near, np.inf)
    side = enter.argmax(1)
    signs = -np.sign(np.take_along_axis(directions, side[:, None], 1))
    return Hits(depth, axes[side] * signs)


def _scene(random: np.random.Generator, rays: Floats, style: Style) -> tuple[Any, Any, Any, Any]:
    """Image uint8 [M, 3], classes uint8 [M], depth [M] and normals [M, 3] of one scene."""
    surfaces = [*_room(random, rays), *_objects(random, rays, style)]
    depths = np.stack([hits.depth for _, hits in surfaces])
    nearest = depths.argmin(0)
    pixels = np.arange(len(rays))
    depth = depths[nearest, pixels]
    normals = np.stack([hits.normals for _, hits in surfaces])[nearest, pixels]
    segments = np.array([name for name, _ in surfaces], np.uint8)[nearest]
    colours = random.uniform(0.15, 1.0, (len(surfaces), 3))[nearest]
    if style.textured:
        colours = colours * _texture(random, rays * depth[:, None], nearest, len(surfaces))
    image = colours * _light(random, normals)[:, None] * 255
    image = image + random.normal(0, style.noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), segments, depth, normals


def _room(random: np.random.Generator, rays: Floats) -> list[tuple[int, Hits]]:
    """Floor, ceiling, the wall ahead and two at the sides, which close the view."""
    floor, ceiling = random.uniform(1.0, 1.8), random.uniform(1.0, 2.0)
    turn = random.uniform(-0.5, 0.5)  # the walls', about the vertical
    ahead = np.array([np.sin(turn), 0.0, -np.cos(turn)])
    right = np.array([-np.cos(turn), 0.0, -np.sin(turn)])
    return [
        (FLOOR, plane(rays, np.array([0.0, -1.0, 0.0]), floor)),
        (CEILING, plane(rays, np.array([0.0, 1.0, 0.0]), ceiling)),
        (WALL, plane(rays, ahead, random.uniform(4.0, 8.0))),
        (WALL, plane(rays, right, random.uniform(1.5, 4.0))),
        (WALL, plane(rays, -right, random.uniform(1.5, 4.0))),
    ]


def _objects(random: np.random.Generator, rays: Floats, style: Style) -> list[tuple[int, Hits]]:
    found: list[tuple[int, Hits]] = []
    for _ in range(random.integers(style.objects[0], style.objects[1] + 1)):
        ahead = random.uniform(2.0, 5.5)
        size = random.uniform(0.25, 0.7)
        centre = np.array(
            [random.uniform(-0.5, 0.5) * ahead, random.uniform(-0.4, 0.5) * ahead, ahead]
        )
        if random.random() < 0.5:
            found.append((SPHERE, sphere(rays, centre, size)))
        else:
            half = size * random.uniform(0.6, 1.2, 3)
            found.append((BOX, box(rays, centre, half, random.uniform(0, np.pi / 2))))
    return found


def _texture(
    random: np.random.Generator, points: Floats, nearest: NDArray[np.intp], surfaces: int
) -> Floats:
    """A factor [M, 1] of the colour at the points [M, 3]: plain, stripes or checks by surface."""
    waves = random.uniform(3, 12, (surfaces, 3)) * (random.random((surfaces, 3)) < 0.5)
    shifts = random.uniform(0, 2 * np.pi, (surfaces, 3))
    phases = points * waves[nearest] + shifts[nearest]
    product: Floats = np.sign(np.sin(phases)).prod(axis=1, keepdims=True)
    return 0.8 + 0.2 * product


def _light(random: np.random.Generator, normals: Floats) -> Floats:
    """Brightness [M] by Lambert's law under one distant light from above, and what is around."""
    direction = random.normal(0, 1, 3) + np.array([0.0, -1.5, -1.0])
    direction /= np.linalg.norm(direction)
    around = random.uniform(0.25, 0.5)
    bright: Floats = around + (1 - around) * np.maximum(normals @ direction, 0)
    return bright
