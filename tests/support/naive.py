"""The formulas of docs/theory.md as written: every edge, every monomial, every channel.

Slow and independent of ``reference/``: the edge tensor phi [n_edges, n_rbf, n_A, C] is made in
full, contractions run over the product tables.
"""

from __future__ import annotations

import torch

from cace_fast import tables


def degrees(l_max):
    return [sum(m) for m in tables.monomials(l_max)]


def phi(vectors, senders, receivers, species, weights, spec):
    r = vectors.square().sum(1).sqrt()
    u = vectors / (r + 1e-9)[:, None]
    x = r / spec.cutoff_function.cutoff
    p = spec.cutoff_function.p
    f_c = (
        1
        - (p + 1) * (p + 2) / 2 * x**p
        + p * (p + 2) * x ** (p + 1)
        - p * (p + 1) / 2 * x ** (p + 2)
    )
    f_c = torch.where(x < 1, f_c, 0.0 * x)
    radial = torch.stack(
        [spec.radial.prefactor * torch.sin(w * r) / r for w in weights["radial.frequencies"]], 1
    )
    angular = torch.stack(
        [u[:, 0] ** a * u[:, 1] ** b * u[:, 2] ** c for a, b, c in tables.monomials(spec.l_max)], 1
    )
    receiver = weights["embedding.sender" if spec.shared_embedding else "embedding.receiver"]
    chi = torch.einsum(
        "ea,eb->eab", weights["embedding.sender"][species[senders]], receiver[species[receivers]]
    )
    whole = torch.einsum("en,em,ec->enmc", radial * f_c[:, None], angular, chi.flatten(1))
    return whole, r, f_c


def mix(a0, weights, spec):
    parts = [
        torch.einsum("jnc,nqc->jqc", a0[:, :, m], weights[f"mixing.{degree}"])
        for m, degree in enumerate(degrees(spec.l_max))
    ]
    return torch.stack(parts, 2)


def moments(vectors, senders, receivers, species, weights, spec):
    whole, _, _ = phi(vectors, senders, receivers, species, weights, spec)
    a0 = whole.new_zeros(len(species), *whole.shape[1:]).index_add(0, receivers, whole)
    return mix(a0, weights, spec)


def contraction(a, l_max, nu_max):
    found = []
    for feature in tables.features(l_max, nu_max):
        total = torch.zeros_like(a[:, :, 0])
        for prefactor, factors in tables.terms(feature):
            product = prefactor * a[:, :, factors[0]]
            for factor in factors[1:]:
                product = product * a[:, :, factor]
            total = total + product
        found.append(total)
    return torch.stack(found, 2)


def messages(a, b, vectors, senders, receivers, species, weights, spec, step):
    parts, prefix = spec.steps[step], f"messages.{step}"
    whole, r, f_c = phi(vectors, senders, receivers, species, weights, spec)
    of = degrees(spec.l_max)
    out = torch.zeros_like(a)
    if parts.bchi is not None:
        x = b.flatten(1)
        for k in range(parts.bchi.mlp.n_layers):
            x = (
                x @ weights[f"{prefix}.bchi.layers.{k}.weight"].T
                + weights[f"{prefix}.bchi.layers.{k}.bias"]
            )
            x = torch.tanh(x) if k < parts.bchi.mlp.n_layers - 1 else x
        n_l = 1 if parts.bchi.shared_l else spec.l_max + 1
        w = x.reshape(len(x), n_l, -1)
        w = w.expand(-1, spec.l_max + 1, spec.n_channels)[:, of]
        bc0 = torch.einsum("enmc,emc->enmc", whole, w[senders])
        bc0 = bc0.new_zeros(len(a), *bc0.shape[1:]).index_add(0, receivers, bc0)
        out = out + mix(bc0, weights, spec)
    if parts.ar:
        p = torch.stack([weights[f"{prefix}.ar.prefactor.{d}"] for d in of], 1)
        v = torch.stack([weights[f"{prefix}.ar.inverse_range.{d}"] for d in of], 1)
        sent = a[senders] * p * torch.exp(-r[:, None, None, None] * v) * f_c[:, None, None, None]
        out = out.index_add(0, receivers, sent)
    out = spec.mp_norm_factor * out
    if parts.memory:
        out = out + a * torch.stack([weights[f"{prefix}.memory.{d}"] for d in of], 1)
    return out
