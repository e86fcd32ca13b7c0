"""Pictures of something else."""

import numpy as np

from deepgalaxy.image.strangers import STRANGERS, strangers


def test_all_kinds_come_in_turn_and_none_twice_the_same():
    made = strangers(18, size=64)
    assert [kind for kind, _ in made] == list(STRANGERS) * 3
    for kind in STRANGERS:
        same = [picture for name, picture in made if name == kind]
        assert all(p.shape == (64, 64) and p.dtype == np.float32 for p in same)
        assert all(np.isfinite(p).all() and np.ptp(p) > 0 for p in same)
        assert np.abs(same[0] - same[1]).max() > 0.01 * np.ptp(same[0])
    again = strangers(18, size=64)
    assert all((a[1] == b[1]).all() for a, b in zip(made, again, strict=True))
    assert any((a[1] != b[1]).any() for a, b in zip(made, strangers(18, size=64, seed=1), strict=True))
