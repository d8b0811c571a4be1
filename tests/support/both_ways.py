"""Models of upstream, read from a file and from memory."""

from __future__ import annotations

from dataclasses import replace

import torch

from cace_fast import checkpoint
from cace_fast.spec import Provenance
from cace_fast.weights import expected_shapes

from . import upstream_like as u


def both_ways(model, path):
    """Read a model from a file and from memory, and return the one result."""
    u.save(model, path)
    from_file, file_tensors = checkpoint.read(path)
    spec, tensors = checkpoint.from_module(model)
    assert from_file.provenance.source == path.name
    assert len(from_file.provenance.sha256) == 64
    assert replace(from_file, provenance=Provenance()) == spec
    assert tensors.keys() == file_tensors.keys() == expected_shapes(spec).keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, file_tensors[name]), name
        assert not file_tensors[name].requires_grad
    return spec, tensors


def with_outputs(*modules, preprocess=False, steps=()):
    rep = u.representation(steps=steps, forward_features=["charge_states"])
    return u.potential(rep, *modules, preprocess=preprocess)


N_FEATURES = u.n_features(u.representation())
