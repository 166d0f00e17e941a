"""In which order a mesh takes the devices of a machine."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import jax
import numpy as np

from o3jax.sharding import _ordered, make_mesh


def slice_of(*shape: int) -> list[SimpleNamespace]:
    """Devices of a TPU slice, numbered with the last axis of its torus slowest, as libtpu does."""
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    coords = sorted(map(tuple, places.reshape(-1, len(shape)).tolist()), key=lambda at: at[::-1])
    return [
        SimpleNamespace(
            id=i,
            coords=at,
            core_on_chip=0,
            platform="tpu",
            device_kind="TPU v4",
            process_index=i // 4,
            slice_index=0,
        )
        for i, at in enumerate(coords)
    ]


def test_an_axis_of_the_mesh_is_a_line_of_the_machine():
    mesh = _ordered((1, 4, 4, 1, 1), slice_of(4, 4, 1)).reshape(4, 4)
    for lines in (mesh, mesh.T):
        for line in lines:
            along = np.ptp([device.coords for device in line], axis=0)
            assert sorted(along.tolist()) == [0, 0, 3], "the devices of a mesh axis share two coordinates"


def test_a_part_of_a_slice_is_taken_as_it_is_numbered(caplog):
    devices = slice_of(2, 2, 1)[:3]
    with caplog.at_level(logging.WARNING):
        mesh = _ordered((3, 1, 1, 1, 1), devices)
    assert mesh.ravel().tolist() == devices and "as they are numbered" in caplog.text


def test_on_one_host_devices_keep_their_order():
    assert make_mesh(fsdp=4, tensor=2).devices.ravel().tolist() == jax.devices()
