"""The ray caster: depth, normals and classes are those of the geometry, exactly."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.zoos.rendering import BOX, CLASSES, SPHERE, Style, _rays, box, plane, render, sphere

SIDE = 64


def test_distances_are_those_of_the_shapes() -> None:
    ahead, middle = np.array([[0.0, 0.0, 1.0]]), np.array([0.0, 0.0, 5.0])
    found = sphere(ahead, middle, 1.5)
    assert found.depth[0] == pytest.approx(3.5)
    assert found.normals[0] == pytest.approx([0, 0, -1])
    turned = box(ahead, middle, np.array([1.0, 1.0, 1.0]), np.pi / 4 + 1e-3)
    assert turned.depth[0] == pytest.approx(5 - np.sqrt(2), abs=2e-3)  # the edge, where it is near
    flat = box(ahead, middle, np.array([1.0, 1.0, 0.5]), 0.0)
    assert (flat.depth[0], flat.normals[0].tolist()) == (4.5, [0, 0, -1])
    below = plane(np.array([[0.0, 0.5, 1.0]]), np.array([0.0, -1.0, 0.0]), 1.2)
    assert below.depth[0] == pytest.approx(2.4)
    assert np.isinf(sphere(ahead, np.array([3.0, 0.0, 5.0]), 1.0).depth[0])


def test_every_pixel_has_the_answer_of_one_surface() -> None:
    """Between neighbours on one plane, what the depth says is at a right angle to the normal."""
    scenes, rays = render(6, SIDE, Style(), seed=3), _rays(SIDE).reshape(SIDE, SIDE, 3)
    assert scenes.images.shape == (6, SIDE, SIDE, 3)
    assert np.isfinite(scenes.depth).all() and (scenes.depth > 0).all()
    assert np.allclose(np.linalg.norm(scenes.normals, axis=-1), 1, atol=1e-5)
    assert ((scenes.normals * rays).sum(-1) <= 1e-6).all()  # every normal faces the camera
    assert {SPHERE, BOX} <= set(np.unique(scenes.segments)) <= set(range(len(CLASSES)))
    points = rays * scenes.depth[..., None].astype(np.float64)
    steps = points[:, :, 1:] - points[:, :, :-1]
    same = (scenes.segments[:, :, 1:] == scenes.segments[:, :, :-1]) & (
        np.abs(scenes.normals[:, :, 1:] - scenes.normals[:, :, :-1]).max(-1) < 1e-6
    )
    slope = np.abs((steps * scenes.normals[:, :, 1:]).sum(-1)) / np.linalg.norm(steps, axis=-1)
    on_one_plane = same & (scenes.segments[:, :, 1:] < SPHERE)
    assert on_one_plane.sum() > 1000
    assert np.quantile(slope[on_one_plane], 0.99) < 1e-3
    fewer, other = render(2, SIDE, Style(), seed=3), render(2, SIDE, Style(), seed=4)
    assert np.array_equal(fewer.images, scenes.images[:2])  # by seed and number alone
    assert not np.array_equal(fewer.images, other.images)


def test_plain_scenes_are_of_one_colour_by_surface_and_light() -> None:
    plain = render(1, 32, Style(objects=(0, 0), textured=False, noise=0.0), seed=0)
    assert len(np.unique(plain.images[0].reshape(-1, 3), axis=0)) <= 5
