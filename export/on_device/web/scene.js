// Draws an environment, and turns the pointer of a mouse or a finger into a push.
import { cleared, colours } from "./canvas.js";
import { CART_POLE_LIMITS } from "./environments.js";

/**
 * How to draw each environment. Lengths are metres; y points upwards.
 *
 * - `view`: left, right, bottom and top of what is shown.
 * - `points(state)`: the places that rods connect. The last is the tip.
 * - `lever(state)`: the derivative of the tip by the angle that a push turns.
 * - `pull`: acceleration of this angle, by metre between tip and pointer.
 * - `draw(pen, state)`: draws what is no rod. `behind` is drawn before the rods.
 */
const SCENES = {
  "CartPole-v1": {
    view: [-2.75, 2.75, -0.45, 1.25],
    pull: 12,
    points: ([x, , angle]) => [[x, 0], [x + Math.sin(angle), Math.cos(angle)]],
    lever: ([, , angle]) => [Math.cos(angle), -Math.sin(angle)],
    draw(pen, [x]) {
      const { position } = CART_POLE_LIMITS;
      pen.line("line", 0.02, [-2.75, -0.3], [2.75, -0.3]);
      for (const end of [-position, position]) pen.line("line", 0.03, [end, -0.4], [end, -0.2]);
      for (const wheel of [x - 0.17, x + 0.17]) pen.disc("quiet", 0.07, [wheel, -0.22]);
      pen.box("body", [x - 0.28, -0.2], [x + 0.28, 0.06]);
    },
  },
  "Acrobot-v1": {
    view: [-2.3, 2.3, -2.2, 2.2],
    pull: 2,
    points: ([angle, joint]) => {
      const elbow = [Math.sin(angle), -Math.cos(angle)];
      return [[0, 0], elbow, [elbow[0] + Math.sin(angle + joint), elbow[1] - Math.cos(angle + joint)]];
    },
    lever: ([angle, joint]) => [Math.cos(angle + joint), Math.sin(angle + joint)],
    draw: (pen) => pen.line("line", 0.03, [-2.3, 1], [2.3, 1]), // the height to reach
  },
  "Pendulum-v1": {
    view: [-1.5, 1.5, -1.3, 1.3],
    pull: 10,
    points: ([angle]) => [[0, 0], [-Math.sin(angle), Math.cos(angle)]],
    lever: ([angle]) => [-Math.cos(angle), -Math.sin(angle)],
    draw: (pen) => pen.ring("line", 0.02, [0, 0], 1),
  },
};

/** A canvas with an environment. `pointer`: where a pointer is down, in metres, or null. */
export class Scene {
  pointer = null;
  #canvas;
  #scene;

  constructor(canvas, environment) {
    this.#canvas = canvas;
    this.#scene = SCENES[environment];
    const follow = (event) => {
      this.pointer = this.#place(event.offsetX, event.offsetY);
    };
    const release = () => {
      this.pointer = null;
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      follow(event);
    });
    canvas.addEventListener("pointermove", (event) => this.pointer && follow(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) canvas.addEventListener(name, release);
    // The arrow keys pull the tip to the side, as long as they are down.
    canvas.addEventListener("keydown", (event) => {
      const side = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!side) return;
      event.preventDefault();
      this.pointer = { side };
    });
    canvas.addEventListener("keyup", release);
    canvas.addEventListener("blur", release);
  }

  /** Returns the angular acceleration by which the pointer pulls the tip; 0 if no pointer is down. */
  pull(state) {
    if (!this.pointer) return 0;
    const [tip, [across, up], place] = [this.#scene.points(state).at(-1), this.#scene.lever(state), this.#target(state)];
    const towards = (place[0] - tip[0]) * across + (place[1] - tip[1]) * up;
    return this.#scene.pull * Math.min(Math.max(towards, -1), 1);
  }

  draw(state) {
    const pen = new Pen(this.#canvas, this.#scene.view);
    this.#scene.draw(pen, state);
    const points = this.#scene.points(state);
    points.slice(1).forEach((point, i) => pen.line("pole", 0.08, points[i], point));
    for (const point of points.slice(0, -1)) pen.disc("text", 0.045, point);
    if (this.pointer) pen.line("accent", 0.02, points.at(-1), this.#target(state), [6, 6]);
  }

  #target(state) {
    const tip = this.#scene.points(state).at(-1);
    return this.pointer.side ? [tip[0] + 0.6 * this.pointer.side, tip[1]] : this.pointer;
  }

  /** Returns the place in metres of a place on the canvas in pixels. */
  #place(across, down) {
    const { clientWidth, clientHeight } = this.#canvas;
    const { scale, left, top } = fitted(this.#scene.view, clientWidth, clientHeight);
    return [(across - left) / scale, (top - down) / scale];
  }
}

/** Returns the scale in pixels for each metre, and the pixels of the place (0, 0), so that all of `view` is visible in the middle. */
function fitted([low_x, high_x, low_y, high_y], width, height) {
  const scale = Math.min(width / (high_x - low_x), height / (high_y - low_y));
  return { scale, left: width / 2 - (scale * (low_x + high_x)) / 2, top: height / 2 + (scale * (low_y + high_y)) / 2 };
}

/** Draws in metres with the colours of style.css. */
class Pen {
  #context;
  #colours = colours();
  #scale;
  #origin;

  constructor(canvas, view) {
    const { context, width, height } = cleared(canvas);
    const { scale, left, top } = fitted(view, width, height);
    this.#context = context;
    this.#scale = scale;
    this.#origin = [left, top];
  }

  line(colour, thickness, from, to, dashes = []) {
    this.#context.setLineDash(dashes);
    this.#context.beginPath();
    this.#context.moveTo(...this.#pixel(from));
    this.#context.lineTo(...this.#pixel(to));
    this.#stroke(colour, thickness);
  }

  ring(colour, thickness, center, radius) {
    this.#context.setLineDash([]);
    this.#circle(center, radius);
    this.#stroke(colour, thickness);
  }

  disc(colour, radius, center) {
    this.#circle(center, radius);
    this.#fill(colour);
  }

  box(colour, low, high) {
    const [[left, bottom], [right, top]] = [this.#pixel(low), this.#pixel(high)];
    this.#context.beginPath();
    this.#context.roundRect(left, top, right - left, bottom - top, 0.05 * this.#scale);
    this.#fill(colour);
  }

  #pixel([x, y]) {
    return [this.#origin[0] + x * this.#scale, this.#origin[1] - y * this.#scale];
  }

  #circle(center, radius) {
    this.#context.beginPath();
    this.#context.arc(...this.#pixel(center), radius * this.#scale, 0, 2 * Math.PI);
  }

  #fill(colour) {
    this.#context.fillStyle = this.#colours[colour];
    this.#context.fill();
  }

  #stroke(colour, thickness) {
    Object.assign(this.#context, { strokeStyle: this.#colours[colour], lineWidth: Math.max(1, thickness * this.#scale), lineCap: "round" });
    this.#context.stroke();
  }
}
