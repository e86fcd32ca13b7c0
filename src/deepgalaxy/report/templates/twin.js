"use strict";
const FIELD = {{ twin.field }}, REACH = {{ twin.reach }}, SMOOTHING = {{ twin.smoothing }};

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
    output.textContent = (here < 0 ? "\u2212" : "+") + Math.abs(here).toFixed(0) + " Myr";
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
