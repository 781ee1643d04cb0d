// A chart over the updates of a training, on a canvas.
import { cleared, colours } from "./canvas.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [44, 12, 8, 26]; // space around the lines, for the numbers
const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';

/**
 * Draws pairs `[update, value]`, in the order of the updates.
 *
 * @param line Pairs that a line connects.
 * @param dots Pairs that are dots.
 * @param level A value to mark by a dashed line, or null.
 */
export function draw_chart(canvas, line, dots = [], level = null) {
  const { context, width, height } = cleared(canvas);
  const palette = colours();
  const values = [...line, ...dots].map(([, value]) => value);
  const [low, high] = range(level === null ? values : [...values, level]);
  const last = Math.max(1, ...[line, dots].filter((pairs) => pairs.length).map((pairs) => pairs.at(-1)[0]));
  const x = (update) => LEFT + (update / last) * (width - LEFT - RIGHT);
  const y = (value) => height - BOTTOM - ((value - low) / (high - low)) * (height - TOP - BOTTOM);
  const stroke = (colour, places, dashes = [], thickness = 1) => {
    Object.assign(context, { strokeStyle: colour, lineWidth: thickness, lineJoin: "round" });
    context.setLineDash(dashes);
    context.beginPath();
    for (const [across, down] of places) context.lineTo(across, down);
    context.stroke();
  };
  Object.assign(context, { font: FONT, fillStyle: palette.quiet, textAlign: "right", textBaseline: "middle" });
  for (const value of ticks(low, high, 4)) {
    stroke(palette.line, [[LEFT, y(value)], [width - RIGHT, y(value)]]);
    context.fillText(short(value), LEFT - 6, y(value));
  }
  context.textBaseline = "alphabetic";
  for (const update of ticks(0, last, 4)) {
    if (!Number.isInteger(update)) continue;
    context.textAlign = x(update) > width - 50 ? "right" : "center";
    context.fillText(update.toLocaleString("en"), x(update), height - 8);
  }
  if (level !== null) stroke(palette.pole, [[LEFT, y(level)], [width - RIGHT, y(level)]], [6, 4], 1.5);
  stroke(palette.accent, line.map(([update, value]) => [x(update), y(value)]), [], 2);
  context.fillStyle = palette.pole;
  for (const [update, value] of dots) {
    context.beginPath();
    context.arc(x(update), y(value), Math.max(2, 4 - dots.length / 40), 0, 2 * Math.PI);
    context.fill();
  }
}

/** Returns limits around the values. 0 is one of them if the values are positive. */
function range(values) {
  const [smallest, largest] = values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  if (!Number.isFinite(smallest) || !Number.isFinite(largest)) return [0, 1];
  const low = smallest > 0 ? 0 : smallest;
  const margin = 0.06 * (largest - low) || 0.5;
  return [low < 0 ? low - margin : low, largest + margin];
}

/** Returns round numbers between the limits, about `count`. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

/** Returns a number without the digits that floating point adds. */
function short(value) {
  return String(Number(value.toPrecision(6)));
}
