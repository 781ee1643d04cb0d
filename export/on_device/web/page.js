// The page: loads what page.json names, runs the environments and the learner, and connects the controls.
import { draw_chart } from "./chart.js";
import { ENVIRONMENTS, Environments } from "./environments.js";
import { Scene } from "./scene.js";
import { Training, greedy_return } from "./training.js";

/** Milliseconds that learning takes before the browser draws and handles clicks. */
const SLICE = 12;
/** Milliseconds that the picture shows the end of an episode. */
const END = 400;
/** Number of episodes of an evaluation. */
const EPISODES = 20;
/** Number of episodes that follow if the mean return of an evaluation during learning is at least `solved_return`. */
const MORE_EPISODES = 100;
/** Number of updates between two evaluations during learning. */
const EVALUATION_INTERVAL = 50;
/** Largest number of evaluations in the chart. */
const SHOWN_EVALUATIONS = 500;

const element = (id) => document.getElementById(id);

/** Shows a sentence about what happens, or about what went wrong. */
function say(text, is_wrong = false) {
  element("status").textContent = text;
  element("status").classList.toggle("wrong", is_wrong);
}

/** Returns the settings in page.json. An error says what is missing. */
async function load_settings() {
  const answer = await fetch("page.json");
  if (!answer.ok) throw new Error(`page.json: expected the file beside this page, got HTTP status ${answer.status}`);
  const settings = await answer.json().catch(() => null);
  const [is_text, is_count] = [(value) => typeof value === "string" && value !== "", (value) => Number.isInteger(value) && value >= 1];
  // For each setting: what it has to be, in words and as a function.
  const expected = {
    environment: [`one of ${Object.keys(ENVIRONMENTS).join(", ")}`, (value) => Object.hasOwn(ENVIRONMENTS, value)],
    learner: ["the name of a file", is_text],
    num_steps: ["an integer of at least 1", is_count],
    num_envs: ["an integer of at least 1", is_count],
    solved_return: ["a number or null", (value) => value === null || Number.isFinite(value)],
    reward_scale: ["a positive number", (value) => value === undefined || value > 0],
  };
  for (const [name, [words, is_right]] of Object.entries(expected)) {
    const value = settings?.[name];
    if (!is_right(value)) throw new Error(`page.json: expected ${name} to be ${words}, got ${JSON.stringify(value)}`);
  }
  return settings;
}

/** Returns a module. An error names the file. */
async function imported(file, origin) {
  try {
    return await import(file);
  } catch (error) {
    throw new Error(`${file}: expected this file of ${origin} beside the page (${error.message})`);
  }
}

/** The one loop of the page: it runs what buttons ask for, moves the picture, and learns, one after the other. */
class Page {
  is_learning = false;
  #is_solved = false;
  #settings;
  #load_learner;
  #learner;
  #training;
  #scene;
  #commands = [];
  #picture; // the environment that is drawn
  #shown; // its state, which at the end of an episode stays for a moment
  #length = 0; // steps of its episode
  #picture_due = 0;
  #learning_due = 0;
  #evaluated = []; // pairs of the number of updates and the mean return of the greedy policy
  #evaluations = 0; // number of evaluations in the page, for their seeds
  #is_over = false; // whether it has ended
  #seconds = 0; // duration of learning until the last pause
  #learning_since = 0;
  #rate = null;
  #slice_end = 0;
  #channel = new MessageChannel();

  constructor(settings, load_learner) {
    this.#settings = settings;
    this.#load_learner = load_learner;
    this.#scene = new Scene(element("scene"), settings.environment);
    this.#picture = new Environments(settings.environment, 1, Date.now());
    this.#shown = this.#picture.states[0];
  }

  /** Calls `command` when the loop has time for it. An error is shown. */
  ask(command) {
    this.#commands.push(command);
  }

  async run() {
    for (;;) {
      try {
        while (this.#commands.length) {
          await this.#commands.shift()();
          this.draw(true); // the numbers belong to what the status says
        }
        const now = performance.now();
        if (now >= this.#picture_due) await this.#move_picture(now);
        if (this.is_learning && now >= this.#learning_due) await this.#learn(now);
      } catch (error) {
        this.learn(false);
        say(error.message, true);
      }
      await this.#wait();
    }
  }

  learn(is_learning) {
    const now = performance.now();
    if (this.is_learning) this.#seconds += (now - this.#learning_since) / 1000;
    this.is_learning = is_learning;
    this.#learning_since = now;
    this.#rate = null;
    element("start").textContent = is_learning ? "Pause" : "Start";
  }

  /** Begins from the exported state. The first call loads it. */
  async reset() {
    const [before, learner] = [this.#learner, await this.#load_learner(Number(element("seed").value))];
    if (before) learner.lr = before.lr; // the learning rate that was set
    this.#learner = learner;
    this.#begin();
    await before?.release();
  }

  async load(file) {
    await this.#learner.load_state(await file.arrayBuffer());
    this.#begin();
    say(`Loaded ${file.name}. Start continues learning from it.`);
  }

  save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([this.#learner.save_state()]));
    link.download = `${this.#settings.environment}.npz`;
    link.click();
    URL.revokeObjectURL(link.href);
    say(`Saved ${link.download}, after ${this.#training.updates} updates. Load state continues from it, here or in Python.`);
  }

  async evaluate() {
    say(`Evaluating the greedy policy over ${EPISODES} episodes.`);
    const value = await this.#greedy_return();
    say(`Greedy policy: mean return ${value.toFixed(1)} over ${EPISODES} episodes.`);
  }

  set lr(value) {
    this.#learner.lr = value;
    this.show_lr();
  }

  set num_envs(value) {
    this.#training.num_envs = value;
  }

  show_lr() {
    element("lr").value = Math.log10(this.#learner.lr);
    element("lr-text").textContent = Number(this.#learner.lr.toPrecision(3));
  }

  /** Draws the picture; `is_all`: also numbers and charts. */
  draw(is_all) {
    this.#scene.draw(this.#shown);
    if (!is_all) return;
    const { updates, steps, episodes, mean_return, history } = this.#training;
    const show = (id, text) => (element(id).textContent = text);
    show("updates", updates.toLocaleString("en"));
    show("episodes", episodes.toLocaleString("en"));
    show("steps", steps.toLocaleString("en"));
    show("mean_return", mean_return === undefined ? "–" : mean_return.toFixed(1));
    show("entropy", history.length ? history.at(-1).entropy.toFixed(3) : "–");
    show("rate", this.#updates_per_second());
    const returns = history.filter((point) => point.mean_return !== undefined).map((point) => [point.update, point.mean_return]);
    draw_chart(element("return-chart"), returns, this.#evaluated, this.#settings.solved_return);
    draw_chart(element("entropy-chart"), history.map((point) => [point.update, point.entropy]));
    show("scene-text", `The greedy policy of this moment: step ${this.#length}.`);
  }

  #begin() {
    const { environment, ...options } = this.#settings;
    const [num_envs, seed] = [Number(element("num_envs").value), Number(element("seed").value)];
    this.#training = new Training(this.#learner, environment, { ...options, num_envs, seed });
    this.learn(false);
    this.#is_solved = false;
    this.#seconds = 0;
    this.#evaluated = [];
    this.show_lr();
  }

  async #learn(now) {
    // A pause of the browser is not caught up with.
    const interval = 1000 / ENVIRONMENTS[this.#settings.environment].frames_per_second / Number(element("speed").value);
    this.#learning_due = Math.max(this.#learning_due + interval, now - 100);
    const has_updated = await this.#training.step();
    if (has_updated && this.#training.updates % EVALUATION_INTERVAL === 0) await this.#check();
  }

  /** Evaluates, and ends learning when the greedy policy reaches the required return in two sets of episodes for the first time. */
  async #check() {
    const goal = this.#settings.solved_return;
    const first = await this.#greedy_return();
    if (goal === null || this.#is_solved || first < goal) return;
    const value = await this.#greedy_return(MORE_EPISODES);
    if (value < goal) return;
    this.#is_solved = true;
    this.learn(false);
    const seconds = `${this.#seconds.toFixed(1)} seconds of learning`;
    say(
      `Solved: the greedy policy reaches a mean return of ${value.toFixed(1)} over ${MORE_EPISODES} episodes, at least ${goal},` +
        ` after ${this.#training.updates} updates and ${seconds}. Start goes on.`,
    );
  }

  async #greedy_return(episodes = EPISODES) {
    const seed = -++this.#evaluations; // training has seeds from 0
    const value = await greedy_return(this.#learner, this.#settings.environment, episodes, seed, () => this.#turn());
    this.#evaluated = [...this.#evaluated, [this.#training.updates, value]].slice(-SHOWN_EVALUATIONS);
    return value;
  }

  async #move_picture(now) {
    const { seconds, frames_per_second, pushed } = ENVIRONMENTS[this.#settings.environment];
    this.#picture_due = Math.max(this.#picture_due + 1000 / frames_per_second, now);
    const state = this.#picture.states[0];
    this.#picture.states[0] = state.map((x, i) => (i === pushed ? x + seconds * this.#scene.pull(state) : x));
    const { environment_action } = await this.#learner.act(this.#picture.observe(), { greedy: true });
    const { next_states, done } = this.#picture.step(environment_action);
    this.#shown = next_states[0];
    this.#length = this.#is_over ? 1 : this.#length + 1;
    this.#is_over = Boolean(done.data[0]);
    if (this.#is_over) this.#picture_due += END;
  }

  /** Waits until the picture or the next step of learning is due. */
  async #wait() {
    const due = this.is_learning ? Math.min(this.#learning_due, this.#picture_due) : this.#picture_due;
    const milliseconds = due - performance.now();
    if (milliseconds < 1) return this.#turn();
    await new Promise((resolve) => setTimeout(resolve, Math.min(milliseconds, 50))); // a click is answered within 50 ms
    this.#slice_end = performance.now() + SLICE;
  }

  /** Lets the browser draw and handle clicks, if a slice of time is used up. */
  async #turn() {
    if (performance.now() < this.#slice_end) return;
    await new Promise((resolve) => {
      this.#channel.port1.onmessage = resolve;
      this.#channel.port2.postMessage(null); // a message arrives at once, setTimeout would wait for some milliseconds
    });
    this.#slice_end = performance.now() + SLICE;
  }

  /** Returns the mean over the last second or so, as text. */
  #updates_per_second() {
    const [time, { updates }] = [performance.now(), this.#training];
    if (!this.is_learning) return "–";
    this.#rate ??= { time, updates, text: "–" };
    const milliseconds = time - this.#rate.time;
    if (milliseconds >= 1000) {
      const rate = (1000 * (updates - this.#rate.updates)) / milliseconds;
      this.#rate = { time, updates, text: rate.toFixed(rate < 10 ? 1 : 0) };
    }
    return this.#rate.text;
  }
}

function connect(page, { num_envs }) {
  const counts = [...new Set([1, 2, 4, 8, 16, 32, 64, num_envs])].sort((a, b) => a - b);
  element("num_envs").append(...counts.map((count) => new Option(count, count, count === num_envs, count === num_envs)));
  const on = (id, event, command) => element(id).addEventListener(event, () => page.ask(() => command(element(id))));
  on("start", "click", () => {
    page.learn(!page.is_learning);
    say(page.is_learning ? "Learning." : "Paused. The picture goes on with the policy of this moment.");
  });
  on("reset", "click", async () => {
    await page.reset();
    say("Back at the exported weights. Start begins to learn.");
  });
  on("evaluate", "click", () => page.evaluate());
  on("save", "click", () => page.save());
  on("load", "change", async (input) => {
    const [file] = input.files;
    input.value = ""; // so that the same file can be chosen again
    if (file) await page.load(file);
  });
  on("lr", "input", (input) => (page.lr = Number((10 ** input.value).toPrecision(3))));
  on("num_envs", "change", (input) => (page.num_envs = Number(input.value)));
}

async function main() {
  const settings = await load_settings();
  element("environment").textContent = settings.environment;
  document.title = `${settings.environment} learns in this page`;
  if (settings.solved_return !== null) element("goal").textContent = `${settings.solved_return}, the goal`;
  element("goal").hidden = settings.solved_return === null;
  say("Loading onnxruntime's WebAssembly, 14 MB.");
  const [onnxruntime, { Learner }] = await Promise.all([
    imported("./ort/ort.wasm.min.mjs", "the npm package onnxruntime-web"),
    imported("./runtime.js", "a2c_compiled"),
  ]);
  const page = new Page(settings, (seed) => Learner.load(settings.learner, { onnxruntime, seed }));
  connect(page, settings);
  await page.reset();
  for (const control of document.querySelectorAll(":disabled")) control.disabled = false;
  say("Ready. Start begins to learn from the exported weights.");
  page.run();
  let all_due = 0;
  const draw = (time) => {
    page.draw(time >= all_due);
    if (time >= all_due) all_due = time + 200;
    requestAnimationFrame(draw);
  };
  requestAnimationFrame(draw);
}

main().catch((error) => say(error.message, true));
