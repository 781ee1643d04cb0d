// Runs and trains policies that a2c_compiled exported, in a web page or in node. Needs this file, and onnxruntime-web or onnxruntime-node.
//
// Act with a policy:
//
//   const policy = await Policy.load("policy.onnx");
//   const action = await policy.act(observation);
//   policy.reset(done); // a policy with memory forgets the episodes that ended
//
// Continue training from the state that was exported:
//
//   const learner = await Learner.load("train_step.onnx");
//   const { action, log_prob, state_value, environment_action } = await learner.act(observation);
//   const metrics = await learner.step({ observation: observations, action: actions, ... }); // each [T, N, ...]
//   const bytes = learner.save_state(); // an .npz file, which runtime.py reads, too
//
// The names and the structure are those of runtime.py. runtime.d.ts describes what is exported here.

/** An argument or a file has a wrong value. */
export class ValueError extends Error {
  name = "ValueError";
}

/** There is no file at a URL or path. */
export class FileNotFoundError extends Error {
  name = "FileNotFoundError";
}

/** The gradient of a training step is not finite. */
export class FloatingPointError extends Error {
  name = "FloatingPointError";
}

const POLICY_ENDING = ".policy.onnx";
const STATE_ENDING = ".state.npz";

// Names that the exporter uses in metadata and graphs, and classes of exported modules.
const PREFIX = "a2c_compiled.";
const NEW = "new.";
const GREEDY = ["GreedyPolicy", "PredictPolicy", "RecurrentPolicy", "PredictFromFrames", "RecurrentPredictPolicy"];
const POLICIES = [...GREEDY, "SampledPolicy", "SampledPredictPolicy", "RecurrentSampledPolicy"];
const ARGUMENTS = ["observation", "noise", "hidden"]; // arguments of a policy that are not parameters

// Classes of the data by dtype, as in onnxruntime's tensors. The names are those of numpy and of onnxruntime.
const DATA = {
  float32: Float32Array,
  float64: Float64Array,
  int64: BigInt64Array,
  int32: Int32Array,
  int16: Int16Array,
  int8: Int8Array,
  uint64: BigUint64Array,
  uint32: Uint32Array,
  uint16: Uint16Array,
  uint8: Uint8Array,
  bool: Uint8Array,
};
const KINDS = "buif"; // bool, unsigned, signed, floating point: each converts to itself and to those behind it
const LARGEST = { float32: 3.4028234663852886e38, float64: Number.MAX_VALUE };

// Policies and learners

export class Policy {
  #turns = new Turns();
  #is_greedy;
  #memory;
  #actor;

  constructor(graph, random) {
    this.#is_greedy = GREEDY.includes(graph.module);
    this.#memory = new Memory(graph);
    this.#actor = new Actor(graph, random, this.#memory);
  }

  static async load(path, options = {}) {
    const { parameters, ...others } = options;
    const settings = await checked_options(others, "parameters, ");
    return reading(path, async (files) => {
      const model = await files.checked(settings.check);
      let graph = await Graph.load(files.path, model, POLICIES, settings);
      if (parameters !== undefined) {
        const changed = with_parameters(graph, model, parameters);
        await graph.release();
        graph = await Graph.load(files.path, changed, POLICIES, settings);
      }
      return new Policy(graph, settings.random);
    });
  }

  act(observation, noise) {
    return this.#turns.take(async () => {
      const results = await this.#actor.act(observation, noise, {});
      return this.#is_greedy ? results[this.#actor.outputs[0]] : output(results, "");
    });
  }

  reset(done) {
    this.#memory.reset(done);
  }

  release() {
    return this.#turns.take(() => this.#actor.release());
  }
}

export class Learner {
  #turns = new Turns();
  #graph;
  #digest;
  #random;
  #memory;
  #actor;
  #state_tensors = new Map();
  #entries = new Map();
  #parameter_names;
  #choices;
  #state;
  #lr;

  constructor(update, policy, digest, initial, random) {
    this.#graph = update;
    this.#digest = digest;
    this.#random = random;
    for (const [name, tensor] of update.inputs) {
      if (update.outputs.has(NEW + name)) this.#state_tensors.set(name, tensor);
      else if (name !== "lr" && name !== "noise") this.#entries.set(name, tensor);
    }
    this.rollout_entries = Object.freeze([...new Set([...this.#entries.keys()].map(argument))]);
    this.time_dim = Number([...this.#entries.values()][0].shape[0] === "N");
    this.#memory = new Memory(policy);
    this.#actor = new Actor(policy, random, this.#memory);
    this.#parameter_names = this.#parameters_of(policy);
    this.#choices = choices(policy);
    [this.#state, this.lr] = this.#checked_state(initial, "path");
  }

  static async load(path, options = {}) {
    const settings = await checked_options(options);
    return reading(path, async (files) => {
      const model = await files.checked(settings.check);
      const update = await Graph.load(files.path, model, ["TrainStepGraph"], settings);
      const [policy_path, state_path] = await Promise.all([POLICY_ENDING, STATE_ENDING].map((ending) => files.beside(ending)));
      const policy = await Graph.load(policy_path, await files.read(policy_path), ["ActingPolicy"], settings);
      const initial = await read_arrays(await files.read(state_path), "path", state_path);
      return new Learner(update, policy, await sha256(model), initial, settings.random);
    });
  }

  act(observation, { greedy = false, noise } = {}) {
    return this.#turns.take(async () => {
      if (greedy && noise !== undefined) throw new ValueError("noise: expected undefined for the greedy action, got an array");
      const parameters = Object.fromEntries(this.#parameter_names.map((name) => [name, this.#state[name]]));
      return output(await this.#actor.act(observation, noise, parameters, greedy), greedy ? "greedy_" : "");
    });
  }

  reset(done) {
    this.#memory.reset(done);
  }

  hidden(num_envs) {
    const { dtype, shape, data } = this.#memory.of(num_envs, "num_envs");
    return new NdArray(dtype, shape, data.slice());
  }

  step(rollout) {
    return this.#turns.take(async () => {
      const arrays = this.#checked_rollout(rollout);
      const lr = this.#graph.inputs.get("lr");
      arrays.lr = lr.checked("lr", this.#lr);
      const results = await this.#graph.run({ ...this.#state, ...arrays });
      const metrics = {};
      for (const name of this.#graph.outputs.keys()) if (!name.startsWith(NEW)) metrics[name] = results[name].item();
      if (!Number.isFinite(metrics.grad_norm)) {
        throw new FloatingPointError(`rollout: expected a finite gradient, got one of norm ${metrics.grad_norm}; the state is unchanged`);
      }
      this.#state = Object.fromEntries([...this.#state_tensors.keys()].map((name) => [name, results[NEW + name]]));
      return metrics;
    });
  }

  get lr() {
    return this.#lr;
  }

  set lr(value) {
    if (typeof value !== "number") throw new TypeError(`lr: expected a number, got ${type_name(value)}`);
    if (!(value >= 0 && value <= LARGEST[this.#graph.inputs.get("lr").dtype])) {
      throw new ValueError(`lr: expected a finite number of at least 0, got ${value}`);
    }
    this.#lr = value;
  }

  get parameters() {
    return Object.fromEntries(
      this.#parameter_names.map((name) => {
        const { dtype, shape, data } = this.#state[name];
        return [name, new NdArray(dtype, shape, data.slice())];
      }),
    );
  }

  save_state() {
    return write_arrays({
      ...this.#state,
      lr: new NdArray("float64", [], Float64Array.of(this.#lr)),
      graph: this.#digest,
      random: this.#random.state,
    });
  }

  load_state(state) {
    return this.#turns.take(async () => {
      const arrays = await read_arrays(bytes_of("state", state), "state", "bytes");
      if (arrays.graph !== this.#digest) {
        throw new ValueError(`state: expected one that was saved with this very ${this.#graph.name}, got another`);
      }
      const [tensors, lr] = this.#checked_state(arrays, "state");
      const generator = Pcg64.from_text(arrays.random);
      this.lr = lr; // all that can raise an error comes before the learner changes
      this.#random.restore(generator);
      this.#state = tensors;
    });
  }

  release() {
    return this.#turns.take(() => Promise.all([this.#graph.release(), this.#actor.release()]));
  }

  #parameters_of(policy) {
    const names = [...policy.inputs.keys()].filter((name) => !ARGUMENTS.includes(argument(name)));
    const others = names.filter((name) => String(policy.inputs.get(name)) !== String(this.#state_tensors.get(name)));
    if (others.length) {
      throw new ValueError(
        `path: expected ${policy.name} to have the networks of ${this.#graph.path}, got others: ${others.join(", ")}`,
      );
    }
    return names;
  }

  #checked_state(arrays, label) {
    const state = {};
    for (const [name, tensor] of this.#state_tensors) {
      const array = arrays[name];
      if (!(array instanceof NdArray)) throw new ValueError(`${label}: expected a state of ${this.#graph.name}, got one without ${name}`);
      const actual = new Tensor(array.dtype, array.shape);
      if (String(actual) !== String(tensor)) {
        throw new ValueError(`${label}: expected ${name} of ${this.#graph.name} to be ${tensor}, got ${actual}`);
      }
      state[name] = array;
    }
    const lr = arrays.lr;
    if (!(lr instanceof NdArray) || lr.shape.length || lr.dtype[0] !== "f") {
      throw new ValueError(`${label}: expected a learning rate in the state, got ${type_name(lr)}`);
    }
    return [state, lr.item()];
  }

  #checked_rollout(rollout) {
    if (!is_mapping(rollout)) throw new TypeError(`rollout: expected a mapping of names to arrays, got ${type_name(rollout)}`);
    const noise = this.#graph.inputs.get("noise");
    check_names("rollout", this.rollout_entries, rollout, noise ? ["noise"] : []);
    const values = {};
    for (const name of this.rollout_entries) {
      Object.assign(values, parts(name, rollout[name], this.#graph.names, (entry) => `rollout['${entry}']`));
    }
    const arrays = {};
    let size = [];
    for (const [name, tensor] of this.#entries) {
      // The first entry determines T and N.
      arrays[name] = tensor.with_sizes(0, ...size).checked(`rollout['${name}']`, values[name]);
      size = arrays[name].shape.slice(0, 2);
    }
    if (noise) {
      const tensor = noise.with_sizes(1, ...size);
      arrays.noise = tensor.checked("rollout['noise']", rollout.noise ?? this.#random.draw(this.#graph, tensor.shape));
    }
    // A graph can only turn a wrong choice into NaN.
    if (this.#choices) check_choices(arrays.action, arrays.mask, this.#choices);
    return arrays;
  }
}

/** Raises ValueError unless the choices of every step that counts are in range. `mask`: `[T, N]` or `[T, N, 1]`, bool. */
function check_choices(action, mask, choices) {
  const width = action.data.length / (action.shape[0] * action.shape[1]); // entries of one action
  const wrong = action.data.filter((choice, i) => {
    const counts = !mask || mask.data[Math.floor(i / width)];
    return counts && (choice < 0 || choice >= choices[i % choices.length]);
  });
  if (wrong.length) {
    const expected = choices.map((count) => count - 1).join(" and ");
    throw new ValueError(`rollout['action']: expected choices from 0 to ${expected}, got ${range_of(wrong)}`);
  }
}

/** Returns the result of acting from the outputs of a graph. `prefix`: `""` or `"greedy_"`. */
function output(results, prefix) {
  const action = results[`${prefix}action`];
  return {
    action,
    log_prob: results[`${prefix}log_prob`],
    state_value: results.state_value,
    environment_action: results[`${prefix}environment_action`] ?? action,
  };
}

/** Runs the calls of an object one after the other, in the order in which they were made. */
class Turns {
  #last = Promise.resolve();

  take(work) {
    const result = this.#last.then(work);
    this.#last = result.catch(() => {});
    return result;
  }
}

/** Runs the graph of a policy on arrays. */
class Actor {
  #graph;
  #random;
  #memory;
  #observation;
  #noise;

  constructor(graph, random, memory) {
    this.#graph = graph;
    this.#random = random;
    this.#memory = memory;
    this.#observation = [...graph.inputs].filter(([name]) => argument(name) === "observation");
    this.#noise = graph.inputs.get("noise");
    this.outputs = [...graph.outputs.keys()];
  }

  release() {
    return this.#graph.release();
  }

  /** Returns the outputs by name, without `N` if `observation` is one observation without `N`. `noiseless`: the noise is 0. */
  async act(observation, noise, parameters, noiseless = false) {
    const values = parts("observation", observation, this.#graph.names);
    const converted = this.#observation.map(([name, tensor]) => tensor.converted(name, values[name]));
    const is_single = converted.every((array, i) => array.shape.length < this.#observation[i][1].shape.length);
    const feeds = { ...parameters };
    let size = [];
    this.#observation.forEach(([name, tensor], i) => {
      const array = is_single ? converted[i].stacked() : converted[i];
      feeds[name] = tensor.with_sizes(0, ...size).shaped(name, array);
      size = array.shape.slice(0, 1);
    });
    if (this.#noise) feeds.noise = this.#checked_noise(this.#noise.with_sizes(0, ...size), noise, is_single, noiseless);
    else if (noise !== undefined) {
      throw new ValueError(`noise: expected undefined for ${this.#graph.name}, which has no noise input, got an array`);
    }
    if (this.#graph.inputs.has("hidden")) feeds.hidden = this.#memory.of(size[0], "observation");
    const results = await this.#graph.run(feeds);
    if (feeds.hidden) this.#memory.hidden = results.next_hidden;
    if (is_single) {
      for (const [name, { dtype, shape, data }] of Object.entries(results)) results[name] = new NdArray(dtype, shape.slice(1), data);
    }
    return results;
  }

  #checked_noise(tensor, noise, is_single, noiseless) {
    if (noiseless) return tensor.zeros();
    if (noise === undefined) return tensor.checked("noise", this.#random.draw(this.#graph, tensor.shape));
    // The noise must have one row for each observation: a graph would use a single row for all observations.
    const array = tensor.converted("noise", noise);
    return tensor.shaped("noise", is_single ? array.stacked() : array);
  }
}

/** The hidden states of the episodes in which a policy acts: `[N, H]`, or null: all episodes begin, from zeros. */
class Memory {
  hidden = null;
  #tensor;

  constructor(graph) {
    this.#tensor = graph.inputs.get("hidden") ?? new Tensor("float32", ["N", 0]);
  }

  reset(done) {
    if (done === undefined) {
      this.hidden = null;
      return;
    }
    const flags = as_array("done", done);
    if (flags.dtype !== "bool") throw new TypeError(`done: expected bool, got ${flags.dtype}`);
    if (this.hidden === null) return;
    const [size, width] = this.hidden.shape;
    const shape = flags.shape.length ? flags.shape : [1];
    if (shape.length !== 1 || shape[0] !== size) {
      throw new ValueError(`done: expected shape [${size}], as in the last act, got [${shape.join(", ")}]`);
    }
    const data = this.hidden.data.slice();
    for (let i = 0; i < size; i++) if (flags.data[i]) data.fill(0, i * width, (i + 1) * width);
    this.hidden = new NdArray(this.hidden.dtype, this.hidden.shape, data);
  }

  of(size, name) {
    if (this.hidden === null) return this.#tensor.with_sizes(0, size).zeros();
    if (this.hidden.shape[0] !== size) {
      throw new ValueError(
        `${name}: expected N = ${this.hidden.shape[0]}, as in the last act, because the policy has memory, got N = ${size}` +
          " (call reset() before another N)",
      );
    }
    return this.hidden;
  }
}

// Arrays

export class NdArray {
  constructor(dtype, shape, data) {
    if (!Object.hasOwn(DATA, dtype)) throw new ValueError(`dtype: expected ${Object.keys(DATA).join(", ")}, got '${dtype}'`);
    if (size_of(shape) !== data.length) {
      throw new ValueError(`data: expected ${size_of(shape)} numbers for shape [${shape.join(", ")}], got ${data.length}`);
    }
    Object.assign(this, { dtype, shape: Object.freeze([...shape]), data });
  }

  item() {
    if (this.data.length !== 1) throw new ValueError(`item: expected an array of one number, got shape [${this.shape.join(", ")}]`);
    return plain(this.dtype, this.data[0]);
  }

  tolist() {
    const nested = (dim, start) => {
      if (dim === this.shape.length) return plain(this.dtype, this.data[start]);
      const stride = size_of(this.shape.slice(dim + 1));
      return Array.from({ length: this.shape[dim] }, (_, i) => nested(dim + 1, start + i * stride));
    };
    return nested(0, 0);
  }

  /** Returns the same numbers with a first dimension of size 1. */
  stacked() {
    return new NdArray(this.dtype, [1, ...this.shape], this.data);
  }
}

/** Returns a number of an array as a JavaScript number, or as a boolean. */
function plain(dtype, value) {
  return dtype === "bool" ? Boolean(value) : Number(value);
}

function size_of(shape) {
  return shape.reduce((product, size) => product * size, 1);
}

/** Returns the smallest and the largest number as text. */
function range_of(data) {
  const [low, high] = data.reduce(([low, high], x) => [x < low ? x : low, x > high ? x : high], [data[0], data[0]]);
  return `${low} to ${high}`;
}

/**
 * Returns a value as an array: an NdArray, a tensor of onnxruntime, a typed array, a number or bool, or nested arrays of these.
 *
 * Plain numbers have the dtype int64 if all are whole, else float64. Their data may be a plain array.
 */
function as_array(name, value) {
  if (value instanceof NdArray) return value;
  if (is_plain(value)) return row_of([value], []);
  if (ArrayBuffer.isView(value) && !(value instanceof DataView)) return new NdArray(dtype_of(name, value), [value.length], value);
  if (Array.isArray(value)) return value.every(is_plain) ? row_of(value, [value.length]) : stack(name, value);
  const shape = value?.shape ?? value?.dims;
  if (shape === undefined || value.data === undefined) throw new TypeError(`${name}: expected an array, got ${type_name(value)}`);
  try {
    return new NdArray(value.dtype ?? value.type ?? dtype_of(name, value.data), shape, value.data);
  } catch (error) {
    throw new ValueError(`${name}: expected an array, got ${type_name(value)} (${error.message})`);
  }
}

function is_plain(value) {
  return ["number", "boolean", "bigint"].includes(typeof value);
}

/** Returns plain numbers or bools as an array. */
function row_of(values, shape) {
  const row = { shape, data: values, is_plain: true };
  if (values.length && values.every((x) => typeof x === "boolean")) row.dtype = "bool";
  else row.dtype = values.length && values.every((x) => typeof x !== "number" || Number.isInteger(x)) ? "int64" : "float64";
  return row;
}

function dtype_of(name, data) {
  if (data instanceof Uint8ClampedArray) return "uint8"; // of a canvas
  const found = Object.keys(DATA).find((dtype) => data instanceof DATA[dtype]);
  if (!found) throw new TypeError(`${name}: expected an array, got ${type_name(data)}`);
  return found;
}

/** Returns arrays of equal shapes as one array, with the dtype that holds the numbers of all. */
function stack(name, values) {
  const arrays = values.map((value) => as_array(name, value));
  const shapes = [...new Set(arrays.map(({ shape }) => `[${shape.join(", ")}]`))];
  if (shapes.length > 1) throw new ValueError(`${name}: expected an array, got entries of the shapes ${shapes.join(" and ")}`);
  const first = arrays[0];
  let dtype = first.dtype;
  for (const other of arrays) {
    const [rank, best] = [other.dtype, dtype].map((text) => KINDS.indexOf(text[0]));
    if (rank > best) dtype = other.dtype;
    else if (rank === best && other.dtype !== dtype) dtype = { f: "float64", i: "int64", u: "uint64" }[dtype[0]];
  }
  const shape = [arrays.length, ...first.shape];
  const are_plain = arrays.every((array) => array.is_plain);
  if (are_plain || arrays.some((array) => array.dtype !== dtype || array.is_plain)) {
    return { dtype, shape, data: arrays.flatMap(({ data }) => Array.from(data)), is_plain: are_plain };
  }
  const data = new DATA[dtype](size_of(shape));
  arrays.forEach((array, i) => data.set(array.data, i * array.data.length));
  return new NdArray(dtype, shape, data);
}

/** Returns the name of a value's kind for an error message. */
function type_name(value) {
  if (value === null) return "null";
  return typeof value === "object" ? (value.constructor?.name ?? "object") : typeof value;
}

/** Dtype and shape of an input or output of a graph, with names for the sizes that may vary. */
class Tensor {
  constructor(dtype, shape) {
    Object.assign(this, { dtype, shape });
  }

  toString() {
    return `${this.dtype} [${this.shape.join(", ")}]`;
  }

  with_sizes(dim, ...sizes) {
    return new Tensor(this.dtype, [...this.shape.slice(0, dim), ...sizes, ...this.shape.slice(dim + sizes.length)]);
  }

  zeros() {
    return new NdArray(this.dtype, this.shape, new DATA[this.dtype](size_of(this.shape)));
  }

  checked(name, value) {
    return this.shaped(name, this.converted(name, value));
  }

  /** Returns `value` as an array of this dtype, of any shape. */
  converted(name, value) {
    const array = as_array(name, value);
    const [kind, own] = [array.dtype[0], this.dtype[0]];
    // Whole numbers of JavaScript have no dtype: they may also become unsigned.
    const converts = KINDS.indexOf(kind) <= KINDS.indexOf(own) || (array.is_plain && kind === "i" && own === "u");
    if (!converts) throw new TypeError(`${name}: expected ${this.dtype} or a dtype that converts to it, got ${array.dtype}`);
    if (array.dtype === this.dtype && array.data instanceof DATA[this.dtype]) return array;
    const convert = DATA[this.dtype].name.startsWith("Big") ? BigInt : Number; // numbers too large for float32 become infinite
    const data = DATA[this.dtype].from(array.data, convert);
    if ("iu".includes(kind) && "iu".includes(own) && !data.every((x, i) => x == array.data[i])) {
      throw new ValueError(`${name}: expected numbers that ${this.dtype} holds, got ${range_of(array.data)}`);
    }
    return new NdArray(this.dtype, array.shape, data);
  }

  /** Returns `array` if it has this shape. */
  shaped(name, array) {
    const { shape } = array;
    const got = `got shape [${shape.join(", ")}]`;
    if (shape.length !== this.shape.length || shape.some((size, i) => typeof this.shape[i] === "number" && size !== this.shape[i])) {
      throw new ValueError(`${name}: expected ${this}, ${got}`);
    }
    if (shape.includes(0)) throw new ValueError(`${name}: expected ${this} with at least one entry in each dimension, ${got}`);
    return array;
  }
}

// Graphs

/** An exported file in an onnxruntime session, with its metadata. */
class Graph {
  static async load(path, model, modules, { ort, threads }) {
    let session;
    try {
      const options = { executionProviders: ["cpu"], intraOpNumThreads: threads, logSeverityLevel: 4 }; // errors are raised
      session = await ort.InferenceSession.create(model, options);
    } catch (error) {
      throw new ValueError(`path: expected an ONNX file that onnxruntime can read, got ${path} (${error.message ?? error})`);
    }
    return new Graph(path, model, modules, session, ort);
  }

  #session;
  #ort;
  #names_in_file;

  constructor(path, model, modules, session, ort) {
    this.path = path;
    this.name = name_of(path);
    this.#session = session;
    this.#ort = ort;
    const about = metadata(model);
    this.module = about[`${PREFIX}module`] ?? "";
    const renamed = read_metadata(path, about, "renamed");
    this.#names_in_file = { ...renamed.inputs, ...renamed.outputs };
    this.renamed_weights = renamed.weights ?? {};
    this.noise = kinds(path, String(read_metadata(path, about, "noise").noise ?? ""));
    if (!modules.includes(this.module)) {
      throw new ValueError(`path: expected an exported ${modules.join(" or ")}, got ${path}, ${described(this.module)}`);
    }
    const argument_of = Object.fromEntries(Object.entries(this.#names_in_file).map(([name, in_file]) => [in_file, name]));
    const tensors = (nodes) => new Map(nodes.map(({ name, type, shape }) => [argument_of[name] ?? name, new Tensor(type, shape)]));
    if (!session.inputMetadata) throw new ValueError("onnxruntime: expected a version whose sessions have inputMetadata, got one without");
    this.inputs = tensors(session.inputMetadata);
    this.outputs = tensors(session.outputMetadata);
    for (const [name, { dtype }] of [...this.inputs, ...this.outputs]) {
      if (Object.hasOwn(DATA, dtype)) continue;
      throw new ValueError(`path: expected tensors of ${Object.keys(DATA).join(", ")}, got ${name} of ${dtype}`);
    }
    // Names of all inputs of the module, also of those that it does not read and the graph therefore lacks.
    const shapes = Object.keys(read_metadata(path, about, "shapes"));
    this.names = new Set([...shapes.map((name) => argument_of[name] ?? name), ...this.inputs.keys()]);
  }

  /** Returns the outputs by name for inputs by name. */
  async run(inputs) {
    const feeds = {};
    for (const name of this.inputs.keys()) {
      const { dtype, shape, data } = inputs[name];
      feeds[this.#in_file(name)] = new this.#ort.Tensor(dtype, data, shape);
    }
    let results;
    try {
      results = await this.#session.run(feeds);
    } catch (error) {
      throw new Error(`${this.path}: onnxruntime failed (${error.message ?? error})`);
    }
    const outputs = {};
    for (const name of this.outputs.keys()) {
      const { type, dims, data } = results[this.#in_file(name)];
      outputs[name] = new NdArray(type, dims, data);
    }
    return outputs;
  }

  release() {
    return this.#session.release();
  }

  #in_file(name) {
    return this.#names_in_file[name] ?? name;
  }
}

/** Returns the name of the argument that an input belongs to: `observation` for `observation.0`. */
function argument(name) {
  return name.split(".", 1)[0];
}

function is_mapping(value) {
  return type_name(value) === "Object" || (typeof value === "object" && value !== null && !value.constructor);
}

/** Returns `{name: value}`; if `names` has `<name>.<key>`, the entries of `value` by these names. */
function parts(name, value, names, label = (entry) => entry) {
  if (names.has(name)) return { [name]: value };
  const prefix = `${name}.`;
  const keys = [...new Set([...names].filter((other) => other.startsWith(prefix)).map((other) => argument(other.slice(prefix.length))))];
  if (keys[0] === "0") {
    if (!Array.isArray(value)) throw new TypeError(`${label(name)}: expected a tuple of ${keys.length} arrays, got ${type_name(value)}`);
    if (value.length !== keys.length) {
      throw new ValueError(`${label(name)}: expected a tuple of ${keys.length} arrays, got one of ${value.length}`);
    }
    value = { ...value };
  } else if (!is_mapping(value)) {
    throw new TypeError(`${label(name)}: expected a mapping of ${keys.join(", ")} to arrays, got ${type_name(value)}`);
  }
  check_names(label(name), keys, value);
  return Object.assign({}, ...keys.map((key) => parts(prefix + key, value[key], names, label)));
}

/** Raises ValueError if an expected name is missing, or if there are names that are neither expected nor `optional`. */
function check_names(what, expected, given, optional = []) {
  const missing = expected.filter((name) => given[name] === undefined);
  const unknown = Object.keys(given).filter((name) => !expected.includes(name) && !optional.includes(name));
  if (missing.length || unknown.length) {
    const [without, beyond] = [missing, unknown].map((names) => `[${names.map((name) => `'${name}'`).join(", ")}]`);
    throw new ValueError(`${what}: expected ${expected.join(", ")}; missing: ${without}, unknown: ${beyond}`);
  }
}

/** Returns the end of an error message: which file this is, and which function loads it. */
function described(module) {
  if (!module) return "which a2c_compiled did not export";
  const use = { TrainStepGraph: "Learner.load takes", ActingPolicy: "Learner.load finds beside the TrainStepGraph that it loads" };
  for (const policy of POLICIES) use[policy] = "Policy.load takes";
  return `an exported ${module}, which ${use[module] ?? "onnxruntime.InferenceSession takes"}`;
}

/** Returns the number of choices for each entry of an action, or null if an entry is not a choice. */
function choices(policy) {
  const noise = policy.inputs.get("noise");
  const event = policy.outputs.get("action").shape.slice(1);
  // The metadata has a size for each entry of an action. An action that is a single choice has one kind of noise without a size.
  const counts = policy.noise.map(({ size }) => size).filter((size) => size);
  const is_choice = noise && policy.noise.length && policy.noise.every(({ kind }) => kind === "gumbel");
  if (!is_choice || event.join() !== (counts.length ? String(counts.length) : "")) return null;
  return counts.length ? counts : [noise.shape.at(-1)];
}

/** Returns an entry of the metadata, a JSON object; an empty one if the file has no such entry. */
function read_metadata(path, about, key) {
  let value;
  try {
    value = JSON.parse(about[PREFIX + key] ?? "{}");
  } catch {
    value = null;
  }
  // renamed holds objects of strings
  if (!is_mapping(value) || (key === "renamed" && !Object.values(value).every(is_mapping))) {
    throw new ValueError(`path: expected metadata ${PREFIX}${key} as the export writes it in ${path}, got something else`);
  }
  return value;
}

/** Parses the kind of noise in the metadata: `normal`, or `gumbel:4,normal:2` for several kinds side by side. A size of 0: the whole. */
function kinds(path, noise) {
  const entries = noise.split(",").filter((part) => part);
  if (!entries.every((part) => /^[^:]*(:\d*)?$/.test(part))) {
    throw new ValueError(`path: expected metadata ${PREFIX}noise as the export writes it in ${path}, got '${noise.slice(0, 100)}'`);
  }
  return entries.map((part) => {
    const [kind, size] = part.split(":");
    return { kind, size: Number(size ?? 0) };
  });
}

// The ONNX file

/** Returns the metadata of an ONNX file: metadata_props (field 14 of ModelProto), pairs of key (1) and value (2). */
function metadata(model) {
  const text = ([start, stop]) => new TextDecoder().decode(model.subarray(start, stop));
  const pairs = fields(model, [0, model.length]).get(14) ?? [];
  return Object.fromEntries(pairs.map((place) => [1, 2].map((field) => text(fields(model, place).get(field)?.[0] ?? [0, 0]))));
}

/**
 * Returns the content of a policy's file, with `parameters` in place of the parameters in the file.
 *
 * A greedy policy ignores the parameters of the critic and of the distribution.
 */
function with_parameters(graph, model, parameters) {
  if (!is_mapping(parameters)) throw new TypeError(`parameters: expected a mapping of names to arrays, got ${type_name(parameters)}`);
  const is_greedy = GREEDY.includes(graph.module);
  const changed = model.slice();
  const found = weights(changed);
  for (const [name, in_file] of Object.entries(graph.renamed_weights)) {
    const weight = found.get(in_file);
    if (weight) {
      found.delete(in_file);
      found.set(name, weight);
    }
  }
  for (const [name, value] of Object.entries(parameters)) {
    if (is_greedy && /^(critic_network|distribution)\./.test(name)) continue;
    const weight = found.get(name);
    if (!weight) {
      const names = [...found.keys()].sort().map((known) => `'${known}'`);
      throw new ValueError(`parameters: expected names among [${names.join(", ")}], which ${graph.name} has, got '${name}'`);
    }
    const { data } = weight.tensor.checked(`parameters['${name}']`, value);
    changed.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), weight.start);
  }
  return changed;
}

/**
 * Returns the weights in an ONNX file by name: dtype and shape, and where the bytes of the numbers start.
 *
 * The weights are the initializers (field 5) of the graph (field 7 of ModelProto). The fields of an initializer (TensorProto) are dims
 * (1), data_type (2), name (8) and raw_data (9). A weight without raw_data or with another data_type is left out.
 */
function weights(model) {
  const dtypes = { 1: "float32", 11: "float64" };
  const found = new Map();
  for (const graph of fields(model, [0, model.length]).get(7) ?? []) {
    for (const initializer of fields(model, graph).get(5) ?? []) {
      const [shape, data_type, name, raw_data] = [1, 2, 8, 9].map((field) => fields(model, initializer).get(field) ?? []);
      if (!raw_data.length || !dtypes[data_type[0]]) continue;
      const dims = shape.flatMap((dim) => (typeof dim === "number" ? [dim] : packed(model, dim)));
      found.set(new TextDecoder().decode(model.subarray(...name[0])), {
        tensor: new Tensor(dtypes[data_type[0]], dims),
        start: raw_data[0][0],
      });
    }
  }
  return found;
}

/** Returns the values of a protobuf message by field number: integers, or for longer values the start and the end of their bytes. */
function fields(message, [start, stop]) {
  const found = new Map();
  const reader = new Integers(message, start);
  // Wire types of protobuf. 0: an integer. 2: a length, then as many bytes. 1 and 5: 8 and 4 bytes.
  while (reader.position < stop) {
    const tag = reader.next();
    const [field, wire_type] = [Math.floor(tag / 8), tag % 8];
    let value;
    if (wire_type === 0) value = reader.next();
    else {
      const length = wire_type === 2 ? reader.next() : { 1: 8, 5: 4 }[wire_type];
      if (!(reader.position + length <= stop)) throw new RangeError("a field ends behind its message");
      value = [reader.position, reader.position + length];
      reader.position += length;
    }
    if (!found.has(field)) found.set(field, []);
    found.get(field).push(value);
  }
  return found;
}

/** Returns the integers of a packed field of protobuf. */
function packed(message, [start, stop]) {
  const [values, reader] = [[], new Integers(message, start)];
  while (reader.position < stop) values.push(reader.next());
  return values;
}

/** Reads the integers of protobuf: 7 bits in each byte, lowest bits first; the 8th bit means that more bytes follow. */
class Integers {
  constructor(message, position) {
    Object.assign(this, { message, position });
  }

  next() {
    for (let value = 0, scale = 1; ; scale *= 128) {
      const byte = this.message[this.position++];
      if (byte === undefined) throw new RangeError("the file ends within a number");
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  }
}

// Noise

/** Draws noise for graphs as numpy's random generator with PCG64 does: the same seed gives the same numbers. */
class Random {
  #pcg;

  constructor(seed) {
    const is_seed = typeof seed === "bigint" ? seed >= 0n : Number.isSafeInteger(seed) && seed >= 0;
    if (seed !== undefined && !is_seed) throw new ValueError(`seed: expected an integer of at least 0 or undefined, got ${seed}`);
    const drawn = () => globalThis.crypto.getRandomValues(new Uint32Array(4)).reduce((sum, word) => (sum << 32n) | BigInt(word), 0n);
    this.#pcg = Pcg64.seeded(seed === undefined ? drawn() : BigInt(seed));
  }

  get state() {
    return this.#pcg.text();
  }

  /** Goes on as `generator` does. */
  restore(generator) {
    this.#pcg = generator;
  }

  /** Returns noise of the kind that the metadata of `graph` names, in `shape`, float64. */
  draw(graph, shape) {
    if (!graph.noise.length) {
      throw new ValueError(`noise: expected an array, since ${graph.name} does not name its kind of noise, got undefined`);
    }
    const unknown = graph.noise.find(({ kind }) => !Object.hasOwn(DRAWN_BY, kind));
    if (unknown) {
      throw new ValueError(`noise: expected an array, since this runtime cannot draw noise of the kind '${unknown.kind}', got undefined`);
    }
    const draws = graph.noise.map(({ kind, size }) => [DRAWN_BY[kind], size || shape.at(-1)]);
    const [rows, width] = [size_of(shape.slice(0, -1)), draws.reduce((sum, [, size]) => sum + size, 0)];
    const data = new Float64Array(rows * width);
    let start = 0;
    for (const [draw, size] of draws) {
      for (let row = 0; row < rows; row++) {
        for (let column = 0; column < size; column++) data[row * width + start + column] = draw(this.#pcg);
      }
      start += size;
    }
    return new NdArray("float64", [...shape.slice(0, -1), width], data);
  }
}

/** For each kind of noise, the function that draws a number of it. */
const DRAWN_BY = {
  uniform: (pcg) => pcg.uniform(),
  gumbel: (pcg) => -Math.log(-Math.log(1 - positive(pcg))),
  logistic(pcg) {
    const uniform = positive(pcg);
    return Math.log(uniform / (1 - uniform));
  },
  normal,
};

/** Returns a uniform number above 0, since the logarithm of 0 is infinite. */
function positive(pcg) {
  for (;;) {
    const number = pcg.uniform();
    if (number > 0) return number;
  }
}

/** The generator PCG64 of numpy: PCG XSL RR 128/64, https://www.pcg-random.org, with numpy's SeedSequence. */
class Pcg64 {
  static #MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;
  #state;
  #increment;
  #half; // the upper half of a number whose lower half numpy drew; kept for numpy

  constructor(state, increment, half) {
    this.#state = state;
    this.#increment = increment;
    this.#half = half;
  }

  static seeded(seed) {
    const words = seed_words(seed);
    const number = (start) => [1, 0, 3, 2].reduce((sum, i) => (sum << 32n) | BigInt(words[start + i]), 0n);
    const generator = new Pcg64(0n, BigInt.asUintN(128, (number(4) << 1n) | 1n), [0, 0]);
    generator.#advance();
    generator.#state = BigInt.asUintN(128, generator.#state + number(0));
    generator.#advance();
    return generator;
  }

  /** Reads what numpy's `json.dumps(bits.state)` wrote. */
  static from_text(text) {
    try {
      const quoted = JSON.parse(text.replace(/(:\s*)(\d+)/g, '$1"$2"')); // JavaScript's numbers are too short
      const [state, increment] = [BigInt(quoted.state.state), BigInt(quoted.state.inc)];
      if (quoted.bit_generator !== "PCG64" || (state | increment) >> 128n) throw new Error("expected PCG64");
      return new Pcg64(state, increment, [Number(quoted.has_uint32), Number(quoted.uinteger)]);
    } catch (error) {
      throw new ValueError(`state: expected the state of a random generator in the file, got ${text} (${error.message})`);
    }
  }

  text() {
    const [has_half, half] = this.#half;
    const state = `{"state": ${this.#state}, "inc": ${this.#increment}}`;
    return `{"bit_generator": "PCG64", "state": ${state}, "has_uint32": ${has_half}, "uinteger": ${half}}`;
  }

  #advance() {
    this.#state = BigInt.asUintN(128, this.#state * Pcg64.#MULTIPLIER + this.#increment);
  }

  /** Returns the next 64 bits. */
  bits() {
    this.#advance();
    const mixed = BigInt.asUintN(64, (this.#state >> 64n) ^ this.#state);
    const turn = this.#state >> 122n;
    return BigInt.asUintN(64, (mixed >> turn) | (mixed << (64n - turn)));
  }

  /** Returns a uniform number in [0, 1). */
  uniform() {
    return Number(this.bits() >> 11n) / 2 ** 53;
  }
}

/** Returns the eight words that numpy's SeedSequence(seed).generate_state makes. */
function seed_words(seed) {
  const hasher = (start, factor) => {
    let constant = start;
    return (value) => {
      let mixed = value ^ constant;
      constant = Math.imul(constant, factor);
      mixed = Math.imul(mixed, constant);
      return mixed ^ (mixed >>> 16);
    };
  };
  const mix = (x, y) => {
    const mixed = Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y);
    return mixed ^ (mixed >>> 16);
  };
  const entropy = [];
  for (let rest = seed; rest > 0n; rest >>= 32n) entropy.push(Number(BigInt.asUintN(32, rest)));
  const hash = hasher(0x43b0d7e5, 0x931e8875);
  const pool = [0, 1, 2, 3].map((i) => hash(entropy[i] ?? 0));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
  }
  for (const word of entropy.slice(4)) for (let to = 0; to < 4; to++) pool[to] = mix(pool[to], hash(word));
  const made = hasher(0x8b51f9dd, 0x58f38ded);
  return [...pool, ...pool].map((word) => made(word) >>> 0);
}

/** Tables of the ziggurat method with 256 layers for half the normal density, as in Marsaglia and Tsang, 2000. */
const ZIGGURAT = (() => {
  const [edge, area] = [3.6541528853610088, 0.004928673233974655];
  const density = (x) => Math.exp(-0.5 * x * x);
  const [limits, widths, heights] = [new Float64Array(256), new Float64Array(256), new Float64Array(256)];
  const base = area / density(edge);
  [limits[0], widths[0], heights[0]] = [(edge / base) * 2 ** 52, base / 2 ** 52, 1];
  [widths[255], heights[255]] = [edge / 2 ** 52, density(edge)];
  for (let i = 254, x = edge; i >= 1; i--) {
    const inner = Math.sqrt(-2 * Math.log(area / x + density(x)));
    limits[i + 1] = (inner / x) * 2 ** 52;
    [widths[i], heights[i]] = [inner / 2 ** 52, density(inner)];
    x = inner;
  }
  return { edge, limits, widths, heights };
})();

/** Draws a standard normal number. */
function normal(pcg) {
  const { edge, limits, widths, heights } = ZIGGURAT;
  for (;;) {
    const bits = pcg.bits();
    const layer = Number(bits & 255n);
    const place = (bits >> 9n) & 0xfffffffffffffn;
    const x = Number(place) * widths[layer] * (bits & 256n ? -1 : 1);
    if (Number(place) < limits[layer]) return x;
    if (layer === 0) {
      for (;;) {
        const beyond = -Math.log1p(-pcg.uniform()) / edge;
        const height = -Math.log1p(-pcg.uniform());
        if (height + height > beyond * beyond) return (place >> 8n) & 1n ? -(edge + beyond) : edge + beyond;
      }
    }
    if ((heights[layer - 1] - heights[layer]) * pcg.uniform() + heights[layer] < Math.exp(-0.5 * x * x)) return x;
  }
}

// Files

/** Reads the file at `path` and those beside it. Each is read once. */
class Files {
  #contents = new Map();

  constructor(path) {
    if (typeof path !== "string" && !(path instanceof URL)) throw new TypeError(`path: expected a URL or path, got ${type_name(path)}`);
    this.path = String(path);
  }

  /** Returns the bytes of a file, or null if there is none. */
  read(path) {
    if (path !== this.path && /^(blob|data):/.test(path)) return null; // no file is beside such a URL
    if (!this.#contents.has(path)) this.#contents.set(path, content(path));
    return this.#contents.get(path);
  }

  /** Returns the bytes at `path`. If `check`, raises ValueError if a file is not the one whose digest was stored at export. */
  async checked(check) {
    const model = await this.read(this.path);
    if (!model) throw new FileNotFoundError(`path: expected a file, found none at ${this.path}`);
    if (typeof check !== "boolean") throw new TypeError(`check: expected a bool, got ${type_name(check)}`);
    const stored = `${name_of(this.path)}.sha256`;
    const lines = check ? await this.read(sibling(this.path, stored)) : null;
    for (const line of new TextDecoder().decode(lines ?? new Uint8Array()).split("\n")) {
      const [, digest, name] = /^(\S+) {2}(.+?)\r?$/.exec(line) ?? [];
      const file = name && sibling(this.path, name_of(name));
      const bytes = file && (await this.read(file));
      if (bytes && (await sha256(bytes)) !== digest) {
        throw new ValueError(
          `path: expected the ${file} that was exported, got one with another SHA-256 than in ${stored}` +
            " (pass check: false if the file was changed on purpose)",
        );
      }
    }
    return model;
  }

  /** Returns the path with another ending. Raises FileNotFoundError if no file has this path. */
  async beside(ending) {
    const name = name_of(this.path).replace(/\.[^.]*$/, "") + ending;
    const file = sibling(this.path, name);
    if (await this.read(file)) return file;
    throw new FileNotFoundError(`path: expected ${name} beside ${this.path}, as export_train_step writes it, found none`);
  }
}

/** Reads a file and those beside it. An error of any other kind than is documented becomes a ValueError. */
async function reading(path, read) {
  const files = new Files(path);
  try {
    return await read(files);
  } catch (error) {
    if (String(error.message).includes(": expected ")) throw error;
    throw new ValueError(`path: expected a file as the export writes it, got ${path} (${error.name}: ${error.message})`);
  }
}

/** Whether a path is one of node's file system, not a URL. */
function is_local(path) {
  return Boolean(globalThis.process?.versions?.node) && !/^[a-z][a-z+.-]+:/i.test(path);
}

/** Splits a path or URL into the folder, the name of the file, and the query of a URL. */
function split(path) {
  const [, folder, name, query] = (is_local(path) ? /^(.*[/\\])?([^/\\]*)()$/s : /^([^?#]*\/)?([^/?#]*)([?#].*)?$/s).exec(path);
  return [folder ?? "", name, query ?? ""];
}

function name_of(path) {
  return split(path)[1];
}

/** Returns the path of the file `name` in the folder of `path`. */
function sibling(path, name) {
  const [folder, , query] = split(path);
  return folder + name + query;
}

/** Returns the bytes of a file, or null if there is none. */
async function content(path) {
  if (is_local(path) || path.startsWith("file:")) {
    const { readFile } = globalThis.process.getBuiltinModule("node:fs").promises;
    try {
      return new Uint8Array(await readFile(path.startsWith("file:") ? new URL(path) : path));
    } catch (error) {
      if (["ENOENT", "ENOTDIR", "EISDIR"].includes(error.code)) return null;
      throw error;
    }
  }
  let response;
  try {
    response = await fetch(path);
  } catch (error) {
    throw new FileNotFoundError(`path: expected a file, found none at ${path} (${error.message})`);
  }
  if ([403, 404, 410].includes(response.status)) return null; // some hosts answer 403 where no file is
  if (!response.ok) throw new ValueError(`path: expected a file, got the status ${response.status} from ${path}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Returns the options of `load` with their defaults, and onnxruntime. */
async function checked_options({ threads = 1, seed, check = true, onnxruntime, ...unknown }, more = "") {
  const names = Object.keys(unknown);
  if (names.length) throw new TypeError(`load: expected the options threads, ${more}seed, check and onnxruntime, got ${names.join(", ")}`);
  if (!Number.isInteger(threads) || threads < 1) throw new ValueError(`threads: expected an integer of at least 1, got ${threads}`);
  const ort = await loaded(onnxruntime);
  // Read by onnxruntime-web, once, when it starts. More than one thread needs a page with the headers COOP and COEP.
  if (ort.env?.wasm) ort.env.wasm.numThreads = threads;
  return { ort, threads, random: new Random(seed), check };
}

/** Returns the module of onnxruntime: the given one, else that of a script tag, else the one that the import finds. */
async function loaded(onnxruntime) {
  const candidates = onnxruntime === undefined ? [globalThis.ort] : [onnxruntime];
  const packages = globalThis.process?.versions?.node ? ["onnxruntime-node", "onnxruntime-web/wasm"] : ["onnxruntime-web/wasm"];
  if (!candidates[0] && onnxruntime === undefined) {
    for (const name of packages) candidates.push(await import(/* webpackIgnore: true */ /* @vite-ignore */ name).catch(() => undefined));
  }
  const found = candidates.flatMap((module) => [module?.default, module]).find((module) => module?.InferenceSession);
  if (found) return found;
  throw new ValueError(
    `onnxruntime: expected the module onnxruntime-web or onnxruntime-node, ${onnxruntime === undefined ? "found none" : "got another"}` +
      ' (run `npm install onnxruntime-web`; in a page, pass { onnxruntime } from `import * as onnxruntime from "./ort.wasm.min.mjs"`)',
  );
}

/** Returns the SHA-256 digest in hexadecimal digits. */
async function sha256(bytes) {
  // Pages that did not come through HTTPS have no crypto.subtle.
  const subtle = globalThis.crypto?.subtle;
  const digest = subtle ? new Uint8Array(await subtle.digest("SHA-256", bytes)) : own_sha256(bytes);
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The same digest in JavaScript: FIPS 180-4, section 6.2. */
function own_sha256(bytes) {
  const primes = [2];
  for (let n = 3; primes.length < 64; n += 2) if (primes.every((prime) => n % prime)) primes.push(n);
  const fraction = (x) => Math.floor((x % 1) * 2 ** 32) | 0; // the first 32 bits behind the point
  const constants = Int32Array.from(primes, (prime) => fraction(Math.cbrt(prime)));
  const hash = Int32Array.from(primes.slice(0, 8), (prime) => fraction(Math.sqrt(prime)));
  const padded = new Uint8Array((bytes.length + 72) & ~63); // the message, a bit, zeros, and the length as 64 bits
  padded.set(bytes);
  padded[bytes.length] = 128;
  const view = new DataView(padded.buffer);
  view.setBigUint64(padded.length - 8, 8n * BigInt(bytes.length));
  const turned = (x, n) => (x >>> n) | (x << (32 - n));
  const words = new Int32Array(64);
  for (let block = 0; block < padded.length; block += 64) {
    for (let i = 0; i < 64; i++) {
      if (i < 16) words[i] = view.getInt32(block + 4 * i);
      else {
        const [early, late] = [words[i - 15], words[i - 2]];
        const low = turned(early, 7) ^ turned(early, 18) ^ (early >>> 3);
        words[i] = words[i - 16] + low + words[i - 7] + (turned(late, 17) ^ turned(late, 19) ^ (late >>> 10));
      }
    }
    let [a, b, c, d, e, f, g, h] = hash;
    for (let i = 0; i < 64; i++) {
      const first = (h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + words[i]) | 0;
      const second = ((turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [a, b, c, d, e, f, g, h] = [(first + second) | 0, a, b, c, (d + first) | 0, e, f, g];
    }
    [a, b, c, d, e, f, g, h].forEach((word, i) => (hash[i] += word));
  }
  const digest = new DataView(new ArrayBuffer(32));
  hash.forEach((word, i) => digest.setInt32(4 * i, word));
  return new Uint8Array(digest.buffer);
}

// .npz files

const NPY_TYPES = {
  "<f4": "float32", "<f8": "float64", "<i8": "int64", "<i4": "int32", "<i2": "int16", "|i1": "int8",
  "<u8": "uint64", "<u4": "uint32", "<u2": "uint16", "|u1": "uint8", "|b1": "bool",
};
const [END, CENTRAL, LOCAL] = [0x06054b50, 0x02014b50, 0x04034b50]; // signatures of the records of a zip file

/** Returns bytes as a Uint8Array. */
function bytes_of(name, value) {
  if (value instanceof ArrayBuffer) return new Uint8Array(value);
  if (ArrayBuffer.isView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  throw new TypeError(`${name}: expected the bytes of an .npz file, got ${type_name(value)}`);
}

/** Reads an .npz file: arrays by name, and texts as strings. */
async function read_arrays(bytes, label, path) {
  try {
    const arrays = {};
    for (const [name, file] of await unzipped(bytes)) arrays[name.replace(/\.npy$/, "")] = read_npy(file);
    return arrays;
  } catch (error) {
    throw new ValueError(`${label}: expected an .npz file of arrays, got ${path} (${error.message})`);
  }
}

/** Returns the names and the bytes of the files in a zip file, stored or compressed by deflate. */
async function unzipped(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== END) end--;
  if (end < 0) throw new Error("not a zip file");
  const files = [];
  let entry = view.getUint32(end + 16, true);
  for (let count = view.getUint16(end + 10, true); count > 0; count--) {
    if (view.getUint32(entry, true) !== CENTRAL) throw new Error("damaged directory");
    const method = view.getUint16(entry + 10, true);
    const [crc, length, full_length] = [16, 20, 24].map((offset) => view.getUint32(entry + offset, true));
    const [name_length, extra_length, comment_length] = [28, 30, 32].map((offset) => view.getUint16(entry + offset, true));
    const name = new TextDecoder().decode(bytes.subarray(entry + 46, entry + 46 + name_length));
    const header = view.getUint32(entry + 42, true);
    if (view.getUint32(header, true) !== LOCAL) throw new Error(`no file at the place of ${name}`);
    const start = header + 30 + view.getUint16(header + 26, true) + view.getUint16(header + 28, true);
    const stored = bytes.subarray(start, start + length);
    if (method !== 0 && method !== 8) throw new Error(`${name} is compressed by method ${method}`);
    const file = method ? await inflated(stored, name) : stored;
    if (file.length !== full_length || crc32(file) !== crc) throw new Error(`${name} is damaged`);
    files.push([name, file]);
    entry += 46 + name_length + extra_length + comment_length;
  }
  return files;
}

async function inflated(bytes, name) {
  if (!globalThis.DecompressionStream) {
    throw new Error(`${name} is compressed, and this browser has no DecompressionStream; save the file with numpy.savez`);
  }
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Returns the array, or the text, in the bytes of an .npy file. */
function read_npy(file) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (new TextDecoder("latin1").decode(file.subarray(1, 6)) !== "NUMPY") throw new Error("not an .npy file");
  const [length, start] = file[6] === 1 ? [view.getUint16(8, true), 10] : [view.getUint32(8, true), 12];
  const header = new TextDecoder().decode(file.subarray(start, start + length));
  const [, type, order, sizes] = /^\{'descr': '([^']*)', 'fortran_order': (True|False), 'shape': \(([^)]*)\), *\}\s*$/.exec(header) ?? [];
  const dtype = NPY_TYPES[type];
  if (!dtype && !/^<U\d+$/.test(type)) {
    throw new Error(`expected one of ${Object.keys(NPY_TYPES).join(" ")}, got the header ${header.trim()}`);
  }
  const data = file.slice(start + length).buffer; // a copy begins at an aligned address
  if (!dtype) return String.fromCodePoint(...new Uint32Array(data)).replace(/\0+$/, "");
  const shape = sizes.split(",").filter((size) => size.trim()).map(Number);
  const numbers = new DATA[dtype](data);
  if (order === "False") return new NdArray(dtype, shape, numbers);
  return new NdArray(dtype, shape, in_rows(new NdArray(dtype, [...shape].reverse(), numbers)));
}

/** Returns the numbers of the transposed array. */
function in_rows({ shape, data }) {
  const strides = shape.map((_, dim) => size_of(shape.slice(dim + 1))).reverse();
  const sizes = [...shape].reverse();
  return data.map((_, i) => {
    let [rest, place] = [i, 0];
    for (let dim = sizes.length - 1; dim >= 0; dim--) {
      place += (rest % sizes[dim]) * strides[dim];
      rest = Math.floor(rest / sizes[dim]);
    }
    return data[place];
  });
}

/** Returns an .npz file of arrays and texts, not compressed. */
function write_arrays(arrays) {
  const [local, central] = [[], []];
  let offset = 0;
  for (const [key, value] of Object.entries(arrays)) {
    const [name, file] = [new TextEncoder().encode(`${key}.npy`), write_npy(value)];
    // Version 2.0, names in UTF-8, stored, 1 January 1980.
    const about = [...two(20), 0, 8, 0, 0, 0, 0, ...two(33), ...four(crc32(file)), ...four(file.length), ...four(file.length)];
    local.push(Uint8Array.from([...four(LOCAL), ...about, ...two(name.length), ...two(0), ...name]), file);
    // No extra field, no comment, first disk, no attributes.
    central.push(...four(CENTRAL), ...two(20), ...about, ...two(name.length), ...Array(12).fill(0), ...four(offset), ...name);
    offset += 30 + name.length + file.length;
  }
  const count = two(Object.keys(arrays).length);
  const end = [...four(END), 0, 0, 0, 0, ...count, ...count, ...four(central.length), ...four(offset), 0, 0];
  return joined([...local, Uint8Array.from(central), Uint8Array.from(end)]);
}

const two = (x) => [x & 255, (x >> 8) & 255];
const four = (x) => [...two(x), ...two(x >>> 16)];

function joined(pieces) {
  const bytes = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let start = 0;
  for (const piece of pieces) {
    bytes.set(piece, start);
    start += piece.length;
  }
  return bytes;
}

/** Returns an .npy file of an array or a text. */
function write_npy(value) {
  let [type, shape, data] = [Object.keys(NPY_TYPES).find((key) => NPY_TYPES[key] === value.dtype), value.shape, value.data];
  if (typeof value === "string") {
    data = Uint32Array.from(value, (character) => character.codePointAt(0));
    [type, shape] = [`<U${data.length}`, []];
  }
  const sizes = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  const header = `{'descr': '${type}', 'fortran_order': False, 'shape': (${sizes}), }`;
  const length = Math.ceil((header.length + 11) / 64) * 64 - 10; // the numbers begin at a multiple of 64
  const text = `\u0001\u0000${String.fromCharCode(...two(length))}${header.padEnd(length - 1)}\n`;
  const start = Uint8Array.from(`\u0093NUMPY${text}`, (character) => character.charCodeAt(0));
  return joined([start, new Uint8Array(data.buffer, data.byteOffset, data.byteLength)]);
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, i) => {
  for (let bit = 0; bit < 8; bit++) i = i & 1 ? 0xedb88320 ^ (i >>> 1) : i >>> 1;
  return i;
});

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}
