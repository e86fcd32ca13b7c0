"""One page for a person, that works offline and on a phone, and the same answers as JSON."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from matplotlib import colormaps
from PIL import Image

from ..inference.story import QUANTILES, UNUSUAL, Story
from ..labels import LABELS, Label
from ..units import REFERENCE_STARS
from . import (
    answer_dict,
    errors,
    familiarity_sentence,
    familiarity_word,
    given_labels,
    headline,
    is_shipped,
    json_ready,
    likely_stage,
    limits,
    make_folder,
    model_line,
    number,
    percent,
    printable,
    scale_sentence,
    short_name,
    short_names,
    shorten,
    twin,
    unit,
    write_file,
)
from .figures import CMAP, DISTANCE, N_MATCHES, THEME, match_lines, save_story, tick_text, tick_values

__all__ = ["write_report", "STYLE", "safe_name"]

_PICTURE_SIDE = 480  # px; the whole picture is in the figure


def write_report(stories: list[Story | tuple[str, str]], folder) -> Path:
    """Write `index.html`, one figure per picture and `stories.json` into a folder.

    Parameters
    ----------
    stories : list of Story or (image, error)
        In the order they shall appear; a tuple is a picture that failed, with its line of error.
    folder : path
        Made where it is missing. Files of the same names are replaced, each as a whole.

    Returns
    -------
    page : Path
        The page. It shows pictures inline and links to the figures beside it; about 100 KB per picture, and 1.5 MB
        for its twin.

    Raises
    ------
    DeepGalaxyError
        If the folder cannot be written.
    """
    folder = make_folder(folder)
    taken = {"index", "stories"}
    entries = []
    # A report may go where the pictures lie: they are not to be written over.
    pictures = {os.path.realpath(story.image) for story in stories if isinstance(story, Story)}
    names = short_names(stories)
    for story in stories:
        if isinstance(story, Story):
            figure = safe_name(story.image, taken) + "_story.png"
            while os.path.realpath(folder / figure) in pictures:
                figure = safe_name(story.image, taken) + "_story.png"
            save_story(story, folder / figure)
            entries.append(_entry(story, figure, names[story.image]))
        else:
            image, error = story
            entries.append({"name": shorten(names[image], 60), "path": printable(image),
                            "error": printable(error)})
    answers = json_ready([answer_dict(story) for story in stories])
    write_file(folder / "stories.json", json.dumps(answers, indent=1, allow_nan=False) + "\n")
    good = [story for story in stories if isinstance(story, Story)]
    page = fill(
        _BODY, f"Colliding galaxies: {len(good)} {'story' if len(good) == 1 else 'stories'}", entries=entries,
        labels=[label for label in LABELS if any(label.name in s.properties for s in good)],
        models=list(dict.fromkeys((model_line(story.model), printable(str(story.model.get("sha256") or "")))
                                  for story in good)),
        n_good=len(good), n_bad=len(stories) - len(good), unknowns=_unknowns(good), distance=DISTANCE,
        quantiles=list(QUANTILES), more_style=Markup(twin.STYLE),
        script=Markup(twin.SCRIPT) if any(story.twin for story in good) else None)
    return write_file(folder / "index.html", page)


def safe_name(image: str, taken: set[str]) -> str:
    """A file name for every system, from an image's name; `taken` (lower case) grows by it."""
    stem = re.sub(r"\.(gz|fz|bz2)$", "", short_name(image), flags=re.IGNORECASE)
    stem = stem.rsplit(".", 1)[0] if "." in stem[1:] else stem
    ascii_stem = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    base = re.sub(r"[^A-Za-z0-9_-]+", "_", ascii_stem).strip("_-")[:80] or "image"
    name, n = base, 1
    while name.lower() in taken:
        n += 1
        name = f"{base}_{n}"
    taken.add(name.lower())
    return name


def _entry(story: Story, figure: str, name: str) -> dict:
    """What the template shows of one story: words and images, nothing left to compute."""
    stage, probability = likely_stage(story)
    properties = []
    for label in given_labels(story):
        quantiles = story.properties[label.name]
        middle, plus, minus = (text.replace("-", "−") for text in errors(label, quantiles))
        properties.append({
            "label": label, "middle": middle, "plus": plus, "minus": minus, "unit": unit(label),
            "row": [number(label, quantiles[name]).replace("-", "−") for name in QUANTILES],
            "curve": _curve(label, quantiles, story.distributions.get(label.name)),
        })
    picture = None if story.display is None else Image.fromarray(np.asarray(story.display, np.uint8))
    return {
        "name": name, "path": printable(story.image), "figure": figure, "error": None,
        "headline": headline(story).replace("-", "−"), "properties": properties,
        "by_name": {p["label"].name: p for p in properties}, "brief": shorten(name, 60),
        "stage": stage, "stage_percent": percent(probability),
        "stages": [(name, percent(p), f"{100 * p:.1f}", p == probability) for name, p in story.stage.items()],
        "familiarity": familiarity_word(story.familiarity), "familiarity_percent": percent(story.familiarity),
        "usual": story.familiarity >= UNUSUAL, "notes": [printable(flag) for flag in story.flags],
        "plain": [scale_sentence(story.scale, story.clock, story.kpc_per_pixel_estimate, is_shipped(story)),
                  familiarity_sentence(story.familiarity)], "limits": limits(story),
        "small": _jpeg(picture, 96), "picture": _jpeg(picture, _PICTURE_SIDE), "box": _box(story),
        "frame": _thumbnail(story.frame), "reconstruction": _thumbnail(story.reconstruction),
        "matches": [{"name": shorten(short_name(match.encounter), 40), "lines": match_lines(match),
                     "image": _thumbnail(match.thumbnail)} for match in story.matches[:N_MATCHES]],
        "model": model_line(story.model), "twin": twin.twin_data(story),
    }


def _data_uri(image: Image.Image, kind: str, **options) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _jpeg(picture, side: int):
    if picture is None:
        return None
    picture = picture.copy()
    picture.thumbnail((side, side))
    return _data_uri(picture, "jpeg", quality=88)


def _thumbnail(image):
    """(P, P) 0..1, y upwards -> a PNG of 256 colours, y downwards."""
    if image is None:
        return None
    grey = np.nan_to_num(np.asarray(image, np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    picture = Image.fromarray(np.round(255 * np.clip(grey, 0, 1)).astype(np.uint8)[::-1])
    picture.putpalette((colormaps[CMAP](np.arange(256), bytes=True)[:, :3]).tobytes())
    return _data_uri(picture, "png", optimize=True)


def _box(story: Story):
    """The frame's box as a path over the picture."""
    if story.display is None or story.frame_box is None:
        return None
    height, width = story.display.shape[:2]
    points = " ".join(f"{x + 0.5:.1f},{y + 0.5:.1f}" for x, y in np.asarray(story.frame_box, float))
    return Markup(f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
                  f'<polygon points="{points}" vector-effect="non-scaling-stroke"/></svg>')


def _curve(label: Label, quantiles: dict, distribution) -> Markup:
    """The posterior as SVG, numbers only: 320 x 100 units."""
    width, base, top = 320.0, 78.0, 4.0
    # In Myr of a system the curve may reach beyond the range of the label.
    edges = (label.low, label.high) if distribution is None else distribution[0]
    left, right = min(0.0, label.position(edges[0])), max(label.n_bins, label.position(edges[-1]))

    def x_of(value):
        fraction = np.clip((label.position(np.asarray(value, float)) - left) / (right - left), 0, 1)
        return 10 + (width - 20) * float(fraction)

    parts = []
    if distribution is None:
        for low, high, name in (("p05", "p95", "light"), ("p16", "p84", "dark")):
            x = x_of(quantiles[low])
            parts.append(f'<rect class="{name}" x="{x:.1f}" y="30" '
                         f'width="{x_of(quantiles[high]) - x:.1f}" height="36"/>')
    else:
        edges, probability = (np.asarray(values, float) for values in distribution)
        heights = base - (base - top) * probability / max(probability.max(), 1e-9)
        xs, ys = [x_of(edge) for edge in np.repeat(edges, 2)[1:-1]], np.repeat(heights, 2)
        for low, high, name in ((None, None, "all"), ("p05", "p95", "light"), ("p16", "p84", "dark")):
            inside = xs if low is None else np.clip(xs, x_of(quantiles[low]), x_of(quantiles[high]))
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(inside, ys, strict=True))
            parts.append(f'<polygon class="{name}" points="{inside[0]:.1f},{base} {points} '
                         f'{inside[-1]:.1f},{base}"/>')
    if label.unit == "Myr":
        parts.append(f'<line class="zero" x1="{x_of(0):.1f}" x2="{x_of(0):.1f}" y1="{top}" y2="{base}"/>')
    x = x_of(quantiles["p50"])
    parts.append(f'<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{base}"/>'
                 f'<line class="axis" x1="10" x2="{width - 10}" y1="{base}" y2="{base}"/>')
    for tick in tick_values(label):
        x, anchor = x_of(tick), ""
        if not 22 <= x <= width - 22:  # else half of it lies outside
            x, anchor = (0, ' style="text-anchor:start"') if x < 22 else (width, ' style="text-anchor:end"')
        parts.append(f'<text x="{x:.1f}" y="94"{anchor}>{tick_text(label, tick)}</text>')
    return Markup(f'<svg class="curve" viewBox="0 0 {width:.0f} 100" aria-hidden="true">'
                  f'{"".join(parts)}</svg>')


#: Of the primary, the physics and the light of the encounters that the shipped model learned from, and of any others.
_SHIPPED = (
    "All was learned with a primary like the Milky Way (stars 6e10 Msun, disc scale length 2 to 4 kpc).",
    "What gas, star formation and dust do, and galaxies that are not discs: the simulated pairs are discs with bulges "
    "in dark haloes, of stars and dark matter alone.",
    "the model that ships was taught that galaxies differ by 0.15 dex. More, as between a burst of young stars and an "
    "old galaxy, is not in the error bars.")
_OF_ANY = (
    f"The times are for a primary of {REFERENCE_STARS:.2g} Msun of stars.",
    "What the simulations of the training left out, be it gas, star formation, dust or galaxies of other kinds: the "
    "limits of the answers are those of these simulations.",
    "where they differ by more than in the images of the training, it is not in the error bars.")


def _unknowns(stories: list[Story]) -> list[str]:
    """What the page does not know, in plain words, most important first."""
    ranges = [f"{label.title.lower()} {number(label, label.low)} to {number(label, label.high)}{unit(label)}"
              for label in LABELS]
    without = sum(story.scale.get("kpc_per_pixel") is None for story in stories)
    strange = sum(story.familiarity < UNUSUAL for story in stories)
    never_shown = [plural for name, plural in (("single", "single galaxies"), ("chance pair", "chance alignments"))
                   if any(name in story.training.get("unseen_stages", ()) for story in stories)]
    apart = ("Single galaxies and chance alignments are stages of their own, told apart as well as one picture allows; "
             "before two discs have touched, nothing tells a pair that will meet from one that will not.")
    if never_shown:
        apart = (f"No image of the training showed {' or '.join(never_shown)}: these are not told from pairs that "
                 "meet.")
    # A page without an answer does not know whose it would have been.
    primary, physics, light = _SHIPPED if stories and all(map(is_shipped, stories)) else _OF_ANY
    lines = [
        f"Whether a picture shows two galaxies that meet at all. {apart} Of three galaxies or a cluster the answer "
        "means nothing.",
        f"The mass of the galaxies in Msun, and so the clock. {primary} Times grow as the square root of size³/mass of "
        "the primary: at the same size and half the mass, everything takes 1.4 times as long.",
        physics,
        f"How bright each galaxy is for its mass. Ratios are of mass, pictures show light: {light}",
        f"Anything beyond its ranges: {'; '.join(ranges).replace('-', '−')}. What lies outside is pressed to "
        "the nearest edge.",
        "Depth and speed. One picture has neither, so different encounters can look the same: look at the "
        "whole curve, not only at its median, and at the look-alikes. Front and back of the orbit cannot be "
        "told apart.",
        "Whether the error bars hold on the real sky. They can be checked on simulated pictures of "
        "encounters that the model has never seen; for real pairs nobody knows the true time.",
        "Whether familiarity means correctness. It says how usual a picture is for the model, nothing else.",
    ]
    if strange:
        lines.insert(0, f"What to say of {_of(strange, stories)} that resemble little in the library: "
                        "their numbers are hardly worth more than a guess.")
    if without:
        lines.insert(0, f"The physical scale of {_of(without, stories)}. The distance between the galaxies "
                        "in kpc is a strong clue to time; without it the shape alone must do.")
    return lines


def _of(n: int, stories: list) -> str:
    return f"{n} of {len(stories)} pictures" if len(stories) > 1 else "the picture"


def fill(body: str, title: str, **values) -> str:
    """A whole page of ours: `body` is a template of what stands in it, filled with the values, escaped."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_HEAD + body + "</body>\n</html>\n").render(
        page_title=title, style=Markup(STYLE), **values)


_COLOURS = "".join(f"--{name}:{colour};" for name, colour in THEME.items())

#: Shared by all pages of deepgalaxy; no font, script or image from elsewhere.
STYLE = f":root{{{_COLOURS}color-scheme:dark}}" + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0 auto;max-width:1240px;padding:2.5rem 1.5rem 4rem;background:var(--ground);color:var(--text);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI","Helvetica Neue",Arial,"DejaVu Sans",sans-serif}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.01em}
h2{font-size:1.35rem;line-height:1.3;margin:0;overflow-wrap:anywhere}
h3{font-size:.95rem;margin:1.6rem 0 .6rem;font-weight:600}
a{color:var(--frame);text-decoration:none}a:hover{text-decoration:underline}
p{margin:.4rem 0;max-width:100ch}
h3 small{font-weight:400}
.muted,figcaption,small{color:var(--muted)}
.name{overflow-wrap:anywhere;min-width:11rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{color:var(--muted);font-weight:500;font-size:.85rem;text-align:left;vertical-align:bottom}
th,td{padding:.5rem .7rem .5rem 0;border-bottom:1px solid var(--line)}
td img{display:block;border-radius:4px;width:64px;height:64px;object-fit:cover}
.pm{display:inline-flex;flex-direction:column;font-size:.68em;line-height:1.15;vertical-align:middle;
 margin-left:.15em;color:var(--muted)}
.num{white-space:nowrap}
.warn{color:var(--accent)}.error{color:var(--error);overflow-wrap:anywhere}
section{margin-top:3.2rem;padding-top:2rem;border-top:1px solid var(--line)}
figure{margin:0;min-width:0}figcaption{font-size:.85rem;margin-top:.35rem}
.see{display:grid;grid-template-columns:minmax(0,2fr) minmax(0,1fr);gap:1.2rem;margin-top:1.2rem;
 max-width:860px}
.see .pair{display:grid;gap:.8rem;align-content:start}
.see img,.matches img{display:block;width:100%;border-radius:4px}
.frame img{outline:1.5px solid var(--frame)}
.picture{position:relative;overflow:hidden;border-radius:4px}
.picture svg{position:absolute;inset:0;width:100%;height:100%}
.picture polygon{fill:none;stroke:var(--frame);stroke-width:2}
.top{display:grid;grid-template-columns:minmax(0,1.75fr) minmax(0,1fr);gap:2.4rem}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,250px),1fr));gap:1.2rem 2rem;
 align-items:end}
.curve{display:block;width:100%;margin-top:.3rem}
.curve text{fill:var(--muted);font-size:11px;text-anchor:middle}
.curve .all{fill:var(--accent);fill-opacity:.1;stroke:var(--accent);stroke-width:1.2}
.curve .light{fill:var(--accent);fill-opacity:.25}.curve .dark{fill:var(--accent);fill-opacity:.5}
.curve .median{stroke:var(--text);stroke-width:1.6}.curve .axis{stroke:var(--line)}
.curve .zero{stroke:var(--muted);stroke-width:.8;stroke-dasharray:3 3}
.head{display:flex;justify-content:space-between;align-items:center;gap:1rem;font-size:.92rem}
.head b{color:var(--accent);font-size:1.1rem;white-space:nowrap}
.bar{display:grid;grid-template-columns:7.5rem 1fr 3.2rem;align-items:center;gap:.6rem;font-size:.92rem;
 color:var(--muted);margin:.25rem 0}
.bar i{display:block;height:9px;background:var(--panel);border-radius:2px}
.bar i span{display:block;height:100%;background:var(--accent);opacity:.5;border-radius:2px}
.bar b,.bar em{font-style:normal;font-weight:inherit;text-align:right}
.best{color:var(--text);font-weight:600}.best i span{opacity:1}
.matches{display:grid;grid-template-columns:repeat(5,minmax(0,1fr));gap:1.2rem;font-size:.88rem;
 line-height:1.45}
.matches b{display:block;margin-top:.4rem;overflow-wrap:anywhere}
.matches span{display:block;color:var(--muted)}
.matches span:first-of-type{color:var(--text)}
.notes{margin:1.4rem 0 0;padding:.9rem 1.2rem .9rem 2.2rem;background:var(--panel);border-radius:6px}
.notes li{margin:.2rem 0;overflow-wrap:anywhere}
.unknowns li{margin:.5rem 0;max-width:85ch}
.none{display:grid;place-items:center;aspect-ratio:1;background:var(--panel);color:var(--muted);
 border-radius:4px;font-size:.85rem}
.plot{display:block;width:100%;height:auto;border-radius:4px}
@media(max-width:820px){.top{grid-template-columns:minmax(0,1fr);gap:1.4rem}}
@media(max-width:700px){
 body{padding:1.4rem 1rem 3rem}h1{font-size:1.5rem}section{margin-top:2rem;padding-top:1.4rem}
 .see{gap:.7rem}.matches{display:flex;overflow-x:auto;gap:.9rem;padding-bottom:.6rem}
 .matches figure{flex:0 0 42%}
 .summary thead{display:none}.summary tr{display:grid;grid-template-columns:64px minmax(0,1fr) minmax(0,1fr);
  gap:.35rem .9rem;align-items:start;
  padding:.9rem 0;border-bottom:1px solid var(--line)}
 .summary td{border:0;padding:0;min-width:0;white-space:normal}
 .summary td[data-name]::before{content:attr(data-name);display:block;
  color:var(--muted);font-size:.75rem}
 .summary .thumb{grid-row:1/span 4}.summary .title,.summary .error{grid-column:2/-1}
 .summary .match{display:none}
}
@media print{
 :root{--ground:#fff;--panel:#f2f2f2;--line:#ccc;--text:#111;--muted:#555;--accent:#b4690e;--frame:#0a7ab0;
  --error:#b3261e;color-scheme:light}
 body{max-width:none;padding:0}section{break-before:page;border:0;margin:0}.nav{display:none}
 *{-webkit-print-color-adjust:exact;print-color-adjust:exact}
}
"""

_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{{ page_title }}</title>
<style>{{ style }}{{ more_style }}</style>
</head>
<body>
"""

_BODY = """\
{% macro value(p) %}{{ p.middle }}\
<span class="pm"><span>+{{ p.plus }}</span><span>−{{ p.minus }}</span></span>{{ p.unit }}{% endmacro %}
{% macro image(source, alt) %}{% if source %}<img src="{{ source }}" alt="{{ alt }}">\
{% else %}<div class="none">none</div>{% endif %}{% endmacro %}
<header id="top">
<h1>Colliding galaxies and their stories</h1>
<p>From each picture: how long since the two galaxies met, how heavy and how large one is against the
other, from where we look, and which simulated encounters look the same. Error bars are 68 %.</p>
<p class="muted">{% if models %}deepgalaxy model {% for m, sha in models %}\
<span title="sha256 {{ sha }}">{{ m }}</span>{{ ", " if not loop.last }}{% endfor %} · \
{% endif %}{{ n_good }} \
{{ "picture" if n_good == 1 else "pictures" }}{% if n_bad %} · \
<span class="error">{{ n_bad }} could not be read</span>{% endif %} · \
<a href="stories.json">the same as JSON</a> · <a href="#unknown">what this page does not know</a></p>
</header>
<div class="scroll">
<table class="summary">
<thead><tr><th></th><th>Picture</th>{% for label in labels %}<th>{{ label.title }}</th>{% endfor %}\
<th>Stage</th><th>Familiarity</th><th>Best match</th></tr></thead>
<tbody>
{% for e in entries %}
{% if e.error %}
<tr><td class="thumb"></td><td class="title name" title="{{ e.path }}">{{ e.name }}</td>\
<td class="error" colspan="{{ labels|length + 3 }}">{{ e.error }}</td></tr>
{% else %}
<tr><td class="thumb"><a href="#story-{{ loop.index }}">{{ image(e.small, "") }}</a></td>
<td class="title name" title="{{ e.path }}"><a href="#story-{{ loop.index }}">{{ e.brief }}</a>\
{% if e.notes %}<br><small class="warn">{{ e.notes|length }} {{ "note" if e.notes|length == 1 else "notes" }}\
</small>{% endif %}</td>
{% for label in labels %}<td class="num" data-name="{{ label.title }}">\
{% if label.name in e.by_name %}{{ value(e.by_name[label.name]) }}{% else %}–{% endif %}</td>
{% endfor %}
<td data-name="Stage">{{ e.stage }} <small class="num">{{ e.stage_percent }}</small></td>
<td data-name="Familiarity"{% if not e.usual %} class="warn"{% endif %}>{{ e.familiarity }} \
<small class="num">{{ e.familiarity_percent }}</small></td>
<td class="match">{% if e.matches %}{{ image(e.matches[0].image, e.matches[0].name) }}{% else %}–{% endif %}\
</td></tr>
{% endif %}
{% endfor %}
</tbody>
</table>
</div>
{% for e in entries %}
{% if not e.error %}
<section class="story" id="story-{{ loop.index }}">
<h2 title="{{ e.path }}">{{ e.name }}</h2>
<p>{{ e.headline }}</p>
<p class="muted nav"><a href="{{ e.figure }}">All of this as one figure</a> · \
<a href="#top">back to the table</a>\
{% if models|length > 1 %} · {{ e.model }}{% endif %}</p>
<div class="top">
<div class="see{{ " two" if e.twin }}">
<figure><div class="picture">{{ image(e.picture, "the picture " ~ e.name) }}{{ e.box or "" }}</div>
<figcaption>The picture as read{% if e.box %}; the box is what the model looks at{% endif %}</figcaption>
</figure>
{% if e.twin %}
<figure class="twin" {{ e.twin.attributes }}>
<canvas width="400" height="400" tabindex="0" role="application" aria-label="The simulated twin, seen as the picture \
shows its galaxies; arrow keys turn it"></canvas>
<div class="controls"><button type="button" name="turn" aria-pressed="false">Turn</button>\
<button type="button" name="play" aria-pressed="false">Film</button>\
<button type="button" name="back">As in the picture</button>\
<input type="range" min="0" step="any" aria-label="time"><output></output></div>
<noscript><p class="warn">It needs JavaScript to turn.</p></noscript>
<figcaption>The best match, {{ e.twin.encounter }} at {{ e.twin.time }} Myr, simulated anew and laid on the picture \
(they agree to {{ e.twin.agreement }}): \
<span class="first">primary</span>, <span class="second">secondary</span>. A look-alike, not these galaxies \
themselves; drag to turn it.</figcaption>
</figure>
{% endif %}
<div class="pair">
<figure class="frame">{{ image(e.frame, "the frame, prepared for the model") }}\
<figcaption>As the model sees it</figcaption></figure>
<figure>{{ image(e.reconstruction, "reconstruction") }}<figcaption>Without sky and stars</figcaption></figure>
</div>
</div>
<div>
<h3 style="margin-top:1.2rem">Stage</h3>
{% for name, text, width, best in e.stages %}
<div class="bar{{ " best" if best }}"><em style="text-align:left">{{ name }}</em>\
<i><span style="width:{{ width }}%"></span></i><b class="num">{{ text }}</b></div>
{% endfor %}
<ul class="notes">
{% for note in e.notes %}<li class="warn">{{ note }}</li>
{% endfor %}
{% for note in e.plain %}<li>{{ note }}</li>
{% endfor %}
<li class="muted">{{ e.limits }}</li>
</ul>
</div>
</div>
<h3>What it says \
<small>· line: median; dark: 68 %, light: 90 % of the probability; dashed: first pericentre</small></h3>
<div class="curves">
{% for p in e.properties %}
<div><div class="head"><span>{{ p.label.title }}</span><b>{{ value(p) }}</b></div>{{ p.curve }}</div>
{% endfor %}
</div>
<h3>Best matches in the library <small>· turned as the picture is, in its brightnesses; {{ distance }}</small></h3>
{% if e.matches %}
<div class="matches">
{% for m in e.matches %}
<figure>{{ image(m.image, m.name) }}<b>{{ m.name }}</b>
{% for line in m.lines %}<span>{{ line }}</span>{% endfor %}</figure>
{% endfor %}
</div>
{% else %}
<p class="muted">None: no library was searched.</p>
{% endif %}
<h3>The numbers <small>· quantiles of the probability</small></h3>
<div class="scroll">
<table>
<thead><tr><th></th>{% for q in quantiles %}<th>{{ q[1:]|int }} %</th>{% endfor %}</tr></thead>
<tbody>
{% for p in e.properties %}
<tr><td>{{ p.label.title }} <small>{{ p.label.unit }}</small></td>\
{% for x in p.row %}<td class="num">{{ x }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
{% endif %}
{% endfor %}
<section id="unknown">
<h2>What this page does not know</h2>
<ul class="unknowns">
{% for line in unknowns %}<li>{{ line }}</li>
{% endfor %}
</ul>
</section>
{% if script %}<script>{{ script }}</script>
{% endif %}
"""
