"""Heads as chains of dense layers: read-outs that take values of other modules.

The first layer has rows for the features and extra inputs of all modules of the chain; those of
later modules, and outputs that a later module takes, pass through the layers between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast.kernels.triton.networks import Layer, layers_of
from cace_fast.spec import Head, Readout

_Name = tuple[str, int]  # rows between layers: "root", "hidden" or "outputs" of a module


class _Rows(NamedTuple):
    """Rows of a layer: activations, bias, and weights for the rows before, by their names."""

    name: _Name
    kinds: tuple[str, ...]
    bias: Tensor
    weights: dict[_Name, Tensor]


class _Module(NamedTuple):
    """A module's first layer on [features, extra inputs] and on outputs of others; the rest."""

    first: Layer
    others: dict[int, Tensor]
    rest: list[Layer]


def chain_layers(head: Head, weights: Mapping[str, Tensor]) -> list[Layer]:
    """Return a head as layers of [features, extra inputs], features in the order of files."""
    modules = {place: _module(head, place, weights) for place in head.order}
    start, *later = head.order
    first = [modules[start].first, *(_plain(modules[place].first) for place in later)]
    layers = [
        Layer(
            torch.cat([layer.weight for layer in first]),
            torch.cat([layer.bias for layer in first]),
            tuple(kind for layer in first for kind in layer.kinds),
        )
    ]
    names: list[_Name] = [("hidden", start), *(("root", place) for place in later)]
    sizes = {name: len(layer.bias) for name, layer in zip(names, first, strict=True)}
    for number, place in enumerate(head.order):
        if number:
            root, own = ("root", place), modules[place]
            taken = {("outputs", p): weight for p, weight in own.others.items()}
            one = {root: torch.eye(sizes[root]).double()}
            bias = torch.zeros(sizes[root]).double()
            rows = _Rows(("hidden", place), own.first.kinds, bias, one | taken)
            needed = {p for q in head.order[number + 1 :] for p in modules[q].others}
            left = [n for n in names if n != root and (n[0] == "root" or n[1] in needed)]
            layers.append(_layer([rows, *(_through(n, sizes[n]) for n in left)], names, sizes))
            names, sizes[rows.name] = [rows.name, *left], sizes[root]
        for layer in modules[place].rest:
            rows = _Rows(names[0], layer.kinds, layer.bias, {names[0]: layer.weight})
            others = [_through(n, sizes[n]) for n in names[1:]]
            layers.append(_layer([rows, *others], names, sizes))
            sizes[names[0]] = len(layer.bias)
        sizes["outputs", place] = sizes[names[0]]
        names[0] = ("outputs", place)
    return layers


def _module(head: Head, place: int, weights: Mapping[str, Tensor]) -> _Module:
    module, blocks = head.sub.modules[place], head.inputs[place]
    if isinstance(module, Readout):
        layer, *rest = layers_of(module.mlp, weights, head.prefix(place), module.linear)
    else:  # a sum
        n = blocks[0].width
        whole = torch.cat([torch.eye(n).double()] * len(blocks), 1)
        layer, rest = Layer(whole, torch.zeros(n).double(), ("",) * n), []
    first = layer.weight.new_zeros(len(layer.bias), head.n_features + head.n_extra)
    others: dict[int, Tensor] = {}
    parts = layer.weight.split([block.width for block in blocks], 1)
    for block, part in zip(blocks, parts, strict=True):
        if block.kind == "outputs":
            others[block.first] = others.get(block.first, 0.0) + part
        else:
            at = head.n_features + block.first if block.kind == "extra" else 0
            first[:, at : at + block.width] += part
    return _Module(layer._replace(weight=first), others, rest)


def _plain(layer: Layer) -> Layer:
    return layer._replace(kinds=("",) * len(layer.bias))


def _through(name: _Name, size: int) -> _Rows:
    one, none = torch.eye(size).double(), torch.zeros(size).double()
    return _Rows(name, ("",) * size, none, {name: one})


def _layer(rows: list[_Rows], names: list[_Name], sizes: Mapping[_Name, int]) -> Layer:
    """Return the layer that makes new rows of the rows called ``names``, in their order."""
    empty = [torch.zeros(len(r.bias), sum(sizes[n] for n in names)).double() for r in rows]
    first = {n: sum(sizes[m] for m in names[:k]) for k, n in enumerate(names)}
    for weight, row in zip(empty, rows, strict=True):
        for name, part in row.weights.items():
            weight[:, first[name] : first[name] + sizes[name]] = part
    kinds = tuple(kind for row in rows for kind in row.kinds)
    return Layer(torch.cat(empty), torch.cat([row.bias for row in rows]), kinds)
