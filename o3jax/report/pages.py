"""How pages are made of their templates, which stand beside the modules that fill them."""

from __future__ import annotations

from pathlib import Path

import jinja2


def page_template(path: Path) -> jinja2.Template:
    """Returns a template of HTML: values are escaped, and a name that it does not know is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(path.name)
