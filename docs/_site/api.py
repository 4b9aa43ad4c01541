"""``{api}``: names of a module, as a table of their first lines and their docstrings in full below it."""

from __future__ import annotations

import inspect
from importlib import import_module

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.nodes import nested_parse_with_titles


class Api(Directive):
    """Its argument is a module; its content are names of it, one a line."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        module = import_module(self.arguments[0])
        lines = [f".. currentmodule:: {module.__name__}", "", ".. autosummary::", "   :nosignatures:", ""]
        lines += [f"   {name}" for name in self.content]
        for name in self.content:
            kind = "class" if inspect.isclass(getattr(module, name)) else "function"
            lines += ["", f".. auto{kind}:: {name}", *["   :members:"] * (kind == "class")]
        container = nodes.section()
        container.document = self.state.document
        source, _ = self.state_machine.get_source_and_line(self.lineno)
        nested_parse_with_titles(self.state, StringList(lines, source), container)
        return container.children


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("api", Api)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
