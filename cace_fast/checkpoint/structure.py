"""Checks of the object graph of a file: no cycles, no deep nesting, no exponential sharing."""

from __future__ import annotations

from typing import Any

from cace_fast.checkpoint.limits import DEPTH, EXPANDED_NODES, Budget, Refused
from cace_fast.checkpoint.records import Record

_CONTAINERS = (list, tuple, dict, set, Record)


def _children(node: Any) -> list[Any]:
    if isinstance(node, Record):
        parts: list[Any] = [node.args, node.state]
    elif isinstance(node, dict):
        parts = [*node.keys(), *node.values()]
    else:
        parts = list(node)
    return [part for part in parts if isinstance(part, _CONTAINERS)]


def check_structure(root: Any, budget: Budget) -> None:
    """Refuse an object graph that is too deep or too large to walk (``docs/user/security.md``).

    Parameters
    ----------
    root
        What the pickle made.
    budget
        What reading may cost; the walk takes time in proportion to the number of objects.

    Raises
    ------
    Refused
        A container holds itself, containers nest deeper than `limits.DEPTH`, or following every
        reference would visit more than `limits.EXPANDED_NODES` objects.
    """
    if not isinstance(root, _CONTAINERS):
        return
    # measured[id] is None while a container is being walked, then (depth, nodes when expanded)
    measured: dict[int, tuple[int, int] | None] = {id(root): None}
    path = [(root, _children(root), 0, 0)]
    n_steps = 0
    while path:
        node, todo, depth, nodes = path.pop()
        n_steps += 1
        if n_steps % 512 == 0:
            budget.check_time()
        while todo:
            child = todo[-1]
            if id(child) not in measured:
                path += [(node, todo, depth, nodes), (child, _children(child), 0, 0)]
                measured[id(child)] = None
                break
            known = measured[id(child)]
            if known is None:
                raise Refused("an object contains itself")
            depth, nodes = max(depth, known[0]), nodes + known[1]
            if depth >= DEPTH:
                raise Refused(f"objects nest deeper than {DEPTH}")
            if nodes > EXPANDED_NODES:
                raise Refused(
                    f"shared objects stand for more than {EXPANDED_NODES} copies of one another"
                )
            todo.pop()
        else:
            measured[id(node)] = (depth + 1, nodes + 1)
