"""Scripts that test_process runs in separate processes: forks, and signals at any moment."""

FORK = """
import os, signal, sys, threading
import numpy as np, torch
from ase.build import bulk
import cace_fast
torch.set_num_threads(2)
atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat({repeats})
atoms.rattle(0.05, seed=0)
sys.path.insert(0, {tests!r})
from support.tiny_models import tiny_spec, tiny_weights
from cace_fast import CACECalculator, Potential
spec = tiny_spec(elements=(11, 17), ewald_channels=1)
potential = Potential(spec, tiny_weights(spec), backend={backend!r}, device="cpu",
                      long_range={method!r})
calculator = CACECalculator(potential)
atoms.calc = calculator
want = atoms.get_forces()
busy = threading.Event()
def hammer():
    other = atoms.copy()
    other.calc = calculator
    while not busy.is_set():
        other.positions += 0.001
        other.get_forces()
thread = threading.Thread(target=hammer, daemon=True)
if {threads}:
    thread.start()
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a hang ends here
        mine = atoms.copy()
        mine.positions[0] += 0.01
        mine.calc = calculator
        mine.get_forces()
        mine.positions[0] -= 0.01
        got = mine.get_forces()
        alone = potential.compute(mine, ("energy", "forces"))["forces"]
        right = np.abs(got - want).max() < 1e-4 and np.abs(alone - want).max() < 1e-4
        os._exit(0 if right else 3)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"child ended with {{status}}"
busy.set()
if {threads}:
    thread.join()
print("children are right")
"""

SIGNALS = """
import os, signal, sys, threading, time
import numpy as np
sys.path.insert(0, {tests!r})
from test_process import model, structure
from cace_fast import CACECalculator
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit another
potential = model()
calculator = CACECalculator(potential, skin=0.1)
rng = np.random.default_rng(0)
atoms = structure()
hits = 0
for _ in range(60):
    atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
    atoms.calc = calculator
    timer = threading.Timer(rng.uniform(0.0, 0.006), os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        for _ in range(20):
            atoms.get_forces()
            atoms.positions += 1e-3
            time.sleep(1e-4)
        timer.join()
    except KeyboardInterrupt:
        hits += 1
    timer.join()
    want = potential.compute(atoms)["forces"]
    assert np.abs(atoms.get_forces() - want).max() < 1e-9
print(f"{{hits}} interrupts")
"""
