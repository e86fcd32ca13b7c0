"""A page of ours: templates filled with values. No font, script or image of it is from elsewhere."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from .figures import THEME

__all__ = ["fill"]


def fill(template: str, title: str, **values) -> str:
    """A whole page, as text.

    Parameters
    ----------
    template : one of `templates/`, which extends `base.html`.
    title : of the page.
    values : what the template shows, escaped.
    """
    environment = Environment(loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    colours = Markup("".join(f"--{name}:{colour};" for name, colour in THEME.items()))
    return environment.get_template(template).render(page_title=title, colours=colours, **values)
