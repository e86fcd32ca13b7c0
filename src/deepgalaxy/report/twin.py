"""The simulated twin on the page: its stars as data, and a few lines of script that turn them."""

from __future__ import annotations

import base64

import numpy as np
from markupsafe import Markup

from ..image.neighbours import neighbour_distances
from ..inference.story import Story
from . import percent, short_name, shorten

__all__ = ["SCRIPT", "STYLE", "twin_data"]

#: The canvas shows so many half sides of the frame from its middle; positions are kept to four times as many.
_FIELD, _REACH = 1.2, 4.8
_MAX_SMOOTHING = 0.25  # half sides
_N_NEIGHBOURS = 8

STYLE = """
.twin canvas{display:block;width:100%;aspect-ratio:1;border-radius:4px;background:#000;cursor:grab;touch-action:pan-y}
.twin canvas:active{cursor:grabbing}
.twin .controls{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center;margin-top:.5rem;font-size:.85rem}
.twin button{font:inherit;color:var(--text);background:var(--panel);border:1px solid var(--line);border-radius:4px;
 padding:.2rem .7rem;cursor:pointer}
.twin button[aria-pressed=true]{border-color:var(--accent);color:var(--accent)}
.twin input{flex:1 1 6rem;min-width:5rem;accent-color:var(--accent)}
.twin output{min-width:5.5rem;text-align:right;font-variant-numeric:tabular-nums}
.twin .first{color:#ffcf8f}.twin .second{color:#8fc2ff}
.see.two{grid-template-columns:repeat(2,minmax(0,1fr));grid-template-rows:auto 1fr}
.see.two .twin{grid-area:1/2/span 2}.see.two .pair{grid-column:1;grid-template-columns:repeat(2,minmax(0,1fr))}
@media(max-width:700px){.see.two{grid-template-columns:minmax(0,1fr)}.see.two .twin{grid-area:auto}}
@media print{.twin .controls{display:none}}
"""


def twin_data(story: Story) -> dict | None:
    """What the template shows of a story's twin: words, and attributes for the script.

    `stars` is base64 of T x N x 3 little-endian int16 (right, up, towards the observer; 32767 is `_REACH` half sides of
    the frame) and then T x N bytes, the smoothing lengths (255 is a quarter of a half side).
    """
    twin = story.twin
    if twin is None:
        return None
    scaled = twin.positions / (twin.side / 2)
    places = np.round(scaled.clip(-_REACH, _REACH) * (32767 / _REACH)).astype("<i2")
    sizes = np.stack([neighbour_distances(x.astype(float), min(_N_NEIGHBOURS, len(x) - 1)) for x in scaled])
    sizes = np.round(sizes.clip(0, _MAX_SMOOTHING) * (255 / _MAX_SMOOTHING)).astype(np.uint8)
    return {
        "encounter": shorten(short_name(twin.encounter), 40), "agreement": percent(max(twin.agreement, 0)),
        "time": f"{twin.time[twin.at]:+.0f}".replace("-", "−"),
        "attributes": Markup(" ").join(
            Markup('data-{}="{}"').format(name, value) for name, value in {
                "stars": base64.b64encode(places.tobytes() + sizes.tobytes()).decode(), "n": twin.positions.shape[1],
                "primary": int((twin.galaxy == 0).sum()), "times": ",".join(f"{t:.0f}" for t in twin.time),
                "at": twin.at, "roll": f"{_roll(story):.4f}"}.items()),
    }


def _roll(story: Story) -> float:
    """Radians, counter-clockwise, from the picture's right to the frame's."""
    if story.frame_box is None:
        return 0.0
    (x0, y0), (x1, y1) = np.asarray(story.frame_box, float)[:2]  # y downwards
    return float(np.arctan2(y0 - y1, x1 - x0))


SCRIPT = """
"use strict";
function show(figure) {
  const data = figure.dataset, n = +data.n, primary = +data.primary, at = +data.at, roll = +data.roll;
  const times = data.times.split(",").map(Number), canvas = figure.querySelector("canvas");
  const packed = atob(data.stars), bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const places = new Int16Array(bytes.buffer, 0, times.length * n * 3), sizes = bytes.subarray(places.byteLength);
  const S = canvas.width, paint = canvas.getContext("2d"), picture = paint.createImageData(S, S);
  const first = new Float32Array(S * S), second = new Float32Array(S * S);
  const unit = S / 2 / FIELD, turn = figure.querySelector("[name=turn]"), play = figure.querySelector("[name=play]");
  const slider = figure.querySelector("input"), output = figure.querySelector("output");
  slider.max = times.length - 1;
  let when = at, yaw = 0, pitch = 0, moving = "", bright = 0;

  // Stars are smeared as wide as their neighbours are far, so that tails are no dots.
  const stamps = [];
  for (let r = 0; r <= 24; r++) {
    const reach = Math.max(r, 2), stamp = new Float32Array((2 * reach + 1) ** 2);
    let sum = 0, k = 0;
    for (let y = -reach; y <= reach; y++) for (let x = -reach; x <= reach; x++) {
      const q = Math.max(0, 1 - (x * x + y * y) / ((reach + .5) ** 2));
      sum += stamp[k++] = q * q;
    }
    stamps.push([reach, stamp.map(v => v / sum)]);
  }

  function draw() {
    const t0 = Math.min(Math.floor(when), times.length - 1), t1 = Math.min(t0 + 1, times.length - 1), w = when - t0;
    const cr = Math.cos(roll), sr = Math.sin(roll), cy = Math.cos(yaw), sy = Math.sin(yaw);
    const cp = Math.cos(pitch), sp = Math.sin(pitch), scale = REACH / 32767;
    first.fill(0); second.fill(0);
    for (let i = 0; i < n; i++) {
      const a = 3 * (t0 * n + i), b = 3 * (t1 * n + i);
      const u = scale * (places[a] + w * (places[b] - places[a]));
      const v = scale * (places[a + 1] + w * (places[b + 1] - places[a + 1]));
      const z = scale * (places[a + 2] + w * (places[b + 2] - places[a + 2]));
      const x = cr * u - sr * v, y = sr * u + cr * v;
      const depth = cy * z - sy * x, px = Math.round(S / 2 - .5 + unit * (cy * x + sy * z));
      const py = Math.round(S / 2 - .5 - unit * (cp * y - sp * depth));
      const [r, stamp] = stamps[Math.min(24, Math.round(unit * SMOOTHING / 255 * sizes[t0 * n + i]))];
      const light = i < primary ? first : second;
      let k = 0;
      for (let j = py - r; j <= py + r; j++) {
        if (j < 0 || j >= S) { k += 2 * r + 1; continue; }
        for (let l = px - r; l <= px + r; l++, k++) if (l >= 0 && l < S) light[j * S + l] += stamp[k];
      }
    }
    // One exposure for the whole film: that of the look-alike.
    if (!bright) bright = first.map((v, i) => v + second[i]).sort()[Math.floor(.995 * S * S)] || 1;
    const faint = bright / 100, white = Math.asinh(bright / faint);
    for (let i = 0; i < S * S; i++) {
      const sum = first[i] + second[i], v = Math.asinh(sum / faint) / white, s = sum ? second[i] / sum : 0;
      const glow = Math.max(0, v - .8) * 200;
      picture.data[4 * i] = v * (255 - 122 * s) + glow;
      picture.data[4 * i + 1] = v * (200 - 14 * s) + glow;
      picture.data[4 * i + 2] = v * (130 + 125 * s) + glow;
      picture.data[4 * i + 3] = 255;
    }
    paint.putImageData(picture, 0, 0);
    slider.value = when;
    const here = times[t0] + w * (times[t1] - times[t0]);
    output.textContent = (here < 0 ? "\\u2212" : "+") + Math.abs(here).toFixed(0) + " Myr";
  }

  let last = 0, waiting = 0, visible = true, from = null;
  function step(now) {
    const dt = Math.min((now - last) / 1000, .1);
    last = now;
    if (moving && visible) {
      if (waiting > 0) waiting -= dt;
      else if (moving === "turn") {
        const before = yaw;
        yaw += dt * 2 * Math.PI / 16;
        if (Math.floor(yaw / (2 * Math.PI)) > Math.floor(before / (2 * Math.PI))) { yaw = 0; waiting = 1.5; }
      } else {
        when += dt * times.length / 10;
        if (when >= times.length - 1) { when = 0; waiting = .5; }
      }
      draw();
    }
    if (moving) requestAnimationFrame(step);
  }
  function move(how) {
    const idle = !moving;
    moving = moving === how ? "" : how;
    turn.setAttribute("aria-pressed", moving === "turn");
    play.setAttribute("aria-pressed", moving === "play");
    if (moving && idle) requestAnimationFrame(now => { last = now; step(now); });
  }
  turn.onclick = () => move("turn");
  play.onclick = () => { if (moving !== "play" && when >= times.length - 2) when = 0; move("play"); };
  figure.querySelector("[name=back]").onclick = () => { move(""); when = at; yaw = pitch = 0; draw(); };
  slider.oninput = () => { move(""); when = +slider.value; draw(); };
  function by(right, down) {
    if (moving === "turn") move("");
    yaw += right;
    pitch = Math.max(-1.57, Math.min(1.57, pitch + down));
    draw();
  }
  canvas.onpointerdown = event => { canvas.setPointerCapture(event.pointerId); from = [event.clientX, event.clientY]; };
  canvas.onpointermove = event => {
    if (!from || !canvas.hasPointerCapture(event.pointerId)) return;
    by(.012 * (event.clientX - from[0]), .012 * (event.clientY - from[1]));
    from = [event.clientX, event.clientY];
  };
  canvas.onlostpointercapture = () => { from = null; };
  canvas.onkeydown = event => {
    const arrow = { ArrowLeft: [-.1, 0], ArrowRight: [.1, 0], ArrowUp: [0, -.1], ArrowDown: [0, .1] }[event.key];
    if (!arrow || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    by(...arrow);
  };
  draw();
  if (!watch) return;
  new IntersectionObserver(seen => { visible = seen[0].isIntersecting; }).observe(figure);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) { waiting = 2; move("turn"); }
}
// A page may have many: all but the first are unpacked when they come near, or are to be printed.
const waiting = new Set(document.querySelectorAll(".twin"));
const unpack = figure => { if (waiting.delete(figure)) show(figure); };
const watch = window.IntersectionObserver && new IntersectionObserver(seen => {
  for (const { target, isIntersecting } of seen) if (isIntersecting) { watch.unobserve(target); unpack(target); }
}, { rootMargin: "1500px" });
[...waiting].forEach((figure, k) => { if (k && watch) watch.observe(figure); else unpack(figure); });
addEventListener("beforeprint", () => [...waiting].forEach(unpack));
""".replace("FIELD", str(_FIELD)).replace("REACH", str(_REACH)).replace("SMOOTHING", str(_MAX_SMOOTHING))
