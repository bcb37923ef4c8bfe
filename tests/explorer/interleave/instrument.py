"""Rewrites the source of a module so that the scheduler sees every step that another thread could see, too.

The explored modules are private copies; production code has no hook in it. ``obj.attr`` becomes
``_x_get(obj, where).attr``, a hook right before the access, and so on for stores, deletes, subscripts, calls of C
functions and truth tests of containers. That is as fine as single opcodes: without the GIL, other threads come between
any two of them.

CPython raises asynchronous exceptions and runs signal handlers where it checks its "eval breaker": after a call of a C
function, on entry of a Python function, when a generator is resumed and when a loop jumps back; not when a Python
function returns, nor between plain loads, stores and deletes. Hooks stand at just these places. (Tracing by opcode
would see the same, but raises one instruction late, which may be outside of the ``try``.) Not covered: ``with`` on C
objects, and the end of the stack. ``obj.attr += value`` is taken for ``obj.attr = obj.attr + value``. Module globals
and variables of closures are taken for constants, and the death of an object for no step.
"""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a hook stands."""

    file: str
    line: int
    name: str | None  # of the attribute; None for what is inside a container
    text: str

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line:<4} {self.text}" if self.file else f"    {self.text}"


class Instrument(ast.NodeTransformer):
    """Puts hooks into the functions of a module. Those named in ``constants`` are attributes that never change."""

    def __init__(self, path: str, source: str, places: list[Place], constants: frozenset[str]) -> None:
        self.path = path
        self.lines = source.splitlines()
        self.places = places
        self.constants = constants
        self.depth = 0  # of functions

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def where(self, node: Any, name: str | None = None) -> ast.Constant:
        self.places.append(Place(self.path, node.lineno, name, self.lines[node.lineno - 1].strip()))
        return ast.copy_location(ast.Constant(len(self.places) - 1), node)

    def hook(self, kind: str, node: Any, *before: ast.expr, name: str | None = None, after: Any = ()) -> ast.Call:
        function = ast.copy_location(ast.Name(f"_x_{kind}", ast.Load()), node)
        return ast.copy_location(ast.Call(function, [*before, self.where(node, name), *after], []), node)

    def statement(self, kind: str, node: Any) -> ast.Expr:
        return ast.copy_location(ast.Expr(self.hook(kind, node)), node)

    def see(self, node: Any) -> Any:
        """An expression whose truth, equality or items are looked at: with a container that reads its contents."""
        seen = self.visit(node)
        return self.hook("see", node, seen) if isinstance(node, (ast.Name, ast.Attribute)) else seen

    # -- accesses ------------------------------------------------------------------------------------------------------

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        value = self.visit(node.value)
        if self.depth and node.attr not in self.constants:
            value = self.hook("get" if isinstance(node.ctx, ast.Load) else "set", node, value, name=node.attr)
        return ast.copy_location(ast.Attribute(value, node.attr, node.ctx), node)

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        value, index = self.visit(node.value), self.visit(node.slice)
        if self.depth:
            value = self.hook("get" if isinstance(node.ctx, ast.Load) else "set", node, value)
        return ast.copy_location(ast.Subscript(value, index, node.ctx), node)

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        target = node.target
        if isinstance(target, ast.Name):
            thing = ast.copy_location(ast.Name(target.id, ast.Load()), node)
            node.value = self.hook("update", node, thing, after=[self.visit(node.value)])
            return node
        if not isinstance(target, ast.Attribute) or not isinstance(target.value, ast.Name):
            return self.generic_visit(node)
        # obj.attr += value reads, computes and writes: obj.attr = update(obj.attr, value)
        new = ast.BinOp(copy.deepcopy(target), node.op, node.value)
        new.left.ctx = ast.Load()
        return self.visit(ast.copy_location(ast.Assign([target], ast.copy_location(new, node)), node))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        node.target = self.visit(node.target)
        node.value = node.value and self.visit(node.value)
        return node

    def visit_Call(self, node: ast.Call) -> Any:
        if not self.depth or (isinstance(node.func, ast.Name) and node.func.id == "super"):
            return self.generic_visit(node)
        function = node.func
        if isinstance(function, ast.Attribute):  # looking up a method is no access
            function.value = self.visit(function.value)
        else:
            function = self.visit(function)
        node.args = [self.visit(argument) for argument in node.args]
        node.keywords = [self.visit(keyword) for keyword in node.keywords]
        node.func = ast.copy_location(ast.Name("_x_call", ast.Load()), node)
        node.args = [function, self.where(node), *node.args]
        return node

    # -- looks ---------------------------------------------------------------------------------------------------------

    def visit_If(self, node: Any) -> Any:
        if self.depth:
            node.test = self.see(node.test)
            node.body = self.block(node.body)
            node.orelse = self.block(node.orelse)
            return node
        return self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        node.test, node.body, node.orelse = self.see(node.test), self.visit(node.body), self.visit(node.orelse)
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        node.values = [self.see(value) for value in node.values]
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        node.operand = self.see(node.operand) if isinstance(node.op, ast.Not) else self.visit(node.operand)
        return node

    def visit_Compare(self, node: ast.Compare) -> Any:
        look = self.visit if all(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops) else self.see
        node.left, node.comparators = look(node.left), [look(item) for item in node.comparators]
        return node

    def visit_comprehension(self, node: ast.comprehension) -> Any:
        node.target, node.iter = self.visit(node.target), self.see(node.iter)
        node.ifs = [self.see(test) for test in node.ifs]
        return node

    # -- jumps, entries and resumptions: where an interrupt may come ---------------------------------------------------

    def block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """The statements, each rewritten."""
        out: list[ast.stmt] = []
        for statement in body:
            new = self.visit(statement)
            if isinstance(new, list):
                out += new
            elif new is not None:
                out.append(new)
        return out

    def visit_While(self, node: ast.While) -> Any:
        jump = self.statement("jump", node)
        node.test, node.body, node.orelse = self.see(node.test), [*self.block(node.body), jump], self.block(node.orelse)
        return node

    def visit_For(self, node: ast.For) -> Any:
        jump = self.statement("jump", node)
        node.target, node.iter = self.visit(node.target), self.see(node.iter)
        node.body, node.orelse = [*self.block(node.body), jump], self.block(node.orelse)
        return node

    def visit_Continue(self, node: ast.Continue) -> Any:
        return [self.statement("jump", node), node]

    def visit_GeneratorExp(self, node: Any) -> Any:
        self.generic_visit(node)
        node.elt = self.hook("after", node, node.elt)
        return node

    visit_ListComp = visit_SetComp = visit_GeneratorExp

    def visit_Yield(self, node: ast.Yield) -> Any:
        self.generic_visit(node)
        return self.hook("after", node, node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        if node.name == "__repr__":
            return None  # only for people; the one of object makes no steps
        self.depth += 1
        body = self.block(node.body)
        self.depth -= 1
        first = 1 if ast.get_docstring(node, clean=False) is not None else 0
        node.body = [*body[:first], self.statement("jump", node), *body[first:]]
        return node

    def visit_Lambda(self, node: ast.Lambda) -> Any:
        self.depth += 1
        node.body = self.visit(node.body)
        self.depth -= 1
        node.body = ast.copy_location(ast.BoolOp(ast.Or(), [self.hook("jump", node), node.body]), node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        depth, self.depth = self.depth, 0
        node.body = self.block(node.body)
        self.depth = depth
        return node


def instrument(tree: ast.Module, path: str, source: str, places: list[Place], constants: frozenset[str]) -> ast.Module:
    return ast.fix_missing_locations(Instrument(path, source, places, constants).visit(tree))
