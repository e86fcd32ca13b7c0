"""Forces of all pairs in torch: the same as in double precision, wherever they are computed."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from deepgalaxy.errors import ConfigError, DeepGalaxyWarning
from deepgalaxy.simulate import evolve as evolve_module
from deepgalaxy.simulate import gpu
from deepgalaxy.simulate.encounter import EncounterConfig, initial_conditions
from deepgalaxy.simulate.gpu import DirectForces, require_device
from deepgalaxy.simulate.gravity import direct

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
WAYS = [("cpu", False), pytest.param("cuda", False, marks=NEEDS_GPU), pytest.param("cuda", True, marks=NEEDS_GPU)]


@pytest.mark.parametrize("device, fused", WAYS)
def test_forces_in_torch_agree_with_all_pairs_in_double_precision(device, fused, monkeypatch):
    p = initial_conditions(EncounterConfig(mass_ratio=0.5, resolution={"n_particles": 1500}))
    monkeypatch.setattr(gpu, "_PAIRS", 200_000)  # in several pieces
    a, phi = DirectForces(p.masses, p.softening, device, fused)(p.positions + 50)
    b, psi = direct(p.positions, p.softening, p.positions, p.masses, p.softening)
    errors = np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
    assert np.median(errors) < 1e-5 and np.quantile(errors, 0.99) < 1e-3
    np.testing.assert_allclose(phi, psi, rtol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton here")
def test_kernel_agrees_with_all_pairs_in_double_precision(tmp_path):
    """In Triton's interpreter, which needs no GPU, but a process of its own; 301 particles fill no block of 32."""
    p = initial_conditions(EncounterConfig(mass_ratio=0.5, resolution={"n_particles": 1500}))
    some = np.random.default_rng(0).permutation(len(p.masses))[:301]
    x, m, eps = p.positions[some], p.masses[some], p.softening[some]
    np.savez(tmp_path / "given.npz", x=x + 50, m=m, eps=eps)
    program = """if True:
        import sys, numpy as np
        from deepgalaxy.simulate.gpu import DirectForces
        given = np.load(sys.argv[1])
        a, phi = DirectForces(given["m"], given["eps"], "cpu", fused=True)(given["x"])
        np.savez(sys.argv[2], a=a, phi=phi)
    """
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "given.npz", tmp_path / "out.npz"], text=True,
                          capture_output=True, env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    out = np.load(tmp_path / "out.npz")
    b, psi = direct(x, eps, x, m, eps)
    assert (np.linalg.norm(out["a"] - b, axis=1) / np.linalg.norm(b, axis=1)).max() < 1e-5
    np.testing.assert_allclose(out["phi"], psi, rtol=1e-6)


def test_without_triton_forces_come_from_torch(monkeypatch):
    """With a word about it. "cpu:0" stands for a GPU, as anything but "cpu" does."""
    def missing():
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(gpu, "_pair_kernel", missing)
    p = initial_conditions(EncounterConfig(resolution={"n_particles": 512}))
    with pytest.warns(DeepGalaxyWarning, match="plain torch.*No module named 'triton'"):
        forces = DirectForces(p.masses, p.softening, "cpu:0")
    np.testing.assert_array_equal(forces(p.positions)[0], DirectForces(p.masses, p.softening, "cpu")(p.positions)[0])
    with pytest.raises(ImportError):
        DirectForces(p.masses, p.softening, "cpu:0", fused=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_missing_gpu_is_one_line():
    with pytest.raises(ConfigError, match="no GPU") as caught:
        require_device("cuda")
    assert "\n" not in str(caught.value)


def test_unknown_device_is_one_line():
    with pytest.raises(ConfigError, match="must be cpu or cuda"):
        require_device("tpu")
    require_device("cpu")


def test_a_run_on_a_gpu_takes_the_forces_of_all_pairs(monkeypatch):
    """As far as that can be seen without one: no tree is as exact."""
    monkeypatch.setattr(evolve_module, "DirectForces", lambda m, eps: DirectForces(m, eps, "cpu"))
    potentials = {}
    for device in ("cpu", "cuda"):
        p = initial_conditions(EncounterConfig(resolution={"n_particles": 1024}))
        conservation = evolve_module.Conservation()
        next(evolve_module.evolve(p, 10, 0.95, conservation, device))
        exact = 0.5 * np.sum(p.masses * direct(p.positions, p.softening, p.positions, p.masses, p.softening)[1])
        kinetic = 0.5 * np.sum(p.masses * (p.velocities**2).sum(axis=1))
        potentials[device] = abs(conservation._first[0] - kinetic - exact) / abs(exact)
    assert potentials["cuda"] < 1e-6 < potentials["cpu"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_simulate_on_a_missing_gpu_is_one_line_and_begins_nothing(run, tmp_path):
    (tmp_path / "suite.yaml").write_text("design: {kind: sobol, n_encounters: 2}\n")
    done = run("simulate", tmp_path / "suite.yaml", "-o", tmp_path / "runs", "--device", "cuda")
    assert done.status == 2 and len(done.err.splitlines()) == 1 and "no GPU" in done.err
    assert not (tmp_path / "runs").exists()
