/**
 * Runs and trains policies that a2c_compiled exported, in a web page or in node. The names and the structure are those of runtime.py.
 *
 * Each load, `act`, `step` and `load_state` returns a promise. The calls of one object run one after the other, in the order in which they
 * were made. Do not change the arrays of a call before its promise is settled.
 */

/** Names of dtypes, as in numpy and in onnxruntime. */
export type DType =
  | "float32" | "float64" | "int64" | "int32" | "int16" | "int8" | "uint64" | "uint32" | "uint16" | "uint8" | "bool";

/** Numbers of an array in memory: the class that belongs to the dtype, and Uint8Array for bool. */
export type Data =
  | Float32Array | Float64Array | BigInt64Array | Int32Array | Int16Array | Int8Array
  | BigUint64Array | Uint32Array | Uint16Array | Uint8Array | Uint8ClampedArray;

/** An array: its numbers row after row. A tensor of onnxruntime is accepted wherever such an array is. */
export class NdArray {
  /** @throws {ValueError} The dtype is unknown, or `data` has another size than `shape`. */
  constructor(dtype: DType, shape: readonly number[], data: Data);
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: Data;
  /** Returns the only entry. int64 becomes a number, which is exact up to 2 ** 53. */
  item(): number | boolean;
  /** Returns nested arrays of numbers or booleans; for an array without dimensions, its entry. */
  tolist(): any;
}

/**
 * An array, or what becomes one: a typed array, a number or boolean, or nested arrays of these.
 *
 * Plain numbers are int64 if all of them are whole, else float64. An array becomes the dtype of the file if it is of the same kind or of a
 * smaller one: bool, integer, floating point. Whole numbers also become uint8, if they are in its range.
 */
export type ArrayLike =
  | NdArray
  | Data
  | { readonly data: Data; readonly dims: readonly number[]; readonly type: string }
  | { readonly data: Data; readonly shape: readonly number[]; readonly dtype?: DType }
  | number
  | boolean
  | bigint
  | readonly ArrayLike[];

/** An array, or the arrays of an observation with several inputs: by index, or by name. */
export type Observation = ArrayLike | { readonly [key: string]: Observation };

/** Arrays by name. */
export interface Arrays {
  [name: string]: NdArray;
}

export interface Options {
  /**
   * Number of threads, 1 or more. Default: 1. onnxruntime-web reads it once, at the first load of a page. It needs a page with the headers
   * COOP and COEP for more than one.
   */
  threads?: number;
  /** Seed of the noise, an integer of at least 0. The same seed gives the noise of runtime.py. Default: other noise in each run. */
  seed?: number | bigint;
  /** Whether to compare the files with the digests of their export, `policy.onnx.sha256`, if there are any. Default: true. */
  check?: boolean;
  /**
   * The module onnxruntime-web or onnxruntime-node. Default: the global variable `ort` if there is one, else what
   * `import("onnxruntime-node")`, in node, or `import("onnxruntime-web/wasm")` finds.
   */
  onnxruntime?: object;
}

/** The result of acting on `N` observations. For a single observation, the arrays have no dimension `N`. */
export interface PolicyOutput {
  /** `[N]` or `[N, ...event]`: the action to record in the rollout. */
  action: NdArray;
  /** `[N]`, floating point: log-probability of `action`. */
  log_prob: NdArray;
  /** `[N]`, floating point: the critic's value of the observation. */
  state_value: NdArray;
  /** `[N]` or `[N, ...event]`: the action for the environment, between the bounds of its action space. */
  environment_action: NdArray;
}

/** An exported policy. A policy with memory keeps its hidden state from one `act` to the next. Call `reset` when episodes end. */
export class Policy {
  private constructor();

  /**
   * Loads an exported greedy or sampled policy, with or without memory.
   *
   * @param path URL of the `.onnx` file; in node, a URL or a path.
   * @param options `parameters`: arrays by name, such as `learner.parameters`, which replace the parameters in the file. Those that are not
   *   in the mapping keep their values. A greedy policy ignores the parameters of the critic and of the distribution.
   * @throws {FileNotFoundError} There is no file at `path`.
   * @throws {ValueError | TypeError} The file is not such a policy or not the file that was exported, or an argument is invalid; the
   *   message names it.
   */
  static load(path: string | URL, options?: Options & { parameters?: Arrays | { [name: string]: ArrayLike } }): Promise<Policy>;

  /**
   * Returns actions for observations: only the actions for a greedy policy, a `PolicyOutput` for a sampled one.
   *
   * @param observation `[N, ...]`, or one observation without `N`.
   * @param noise `[N, ...]`, or without `N` for one observation: random numbers from which a sampled policy makes its actions. undefined:
   *   the policy draws the noise. A greedy policy accepts only undefined.
   * @throws {ValueError | TypeError} An argument is invalid; the message names it.
   */
  act(observation: Observation, noise?: ArrayLike): Promise<NdArray | PolicyOutput>;

  /** Sets the hidden states to 0 where `done`, `[N]`, bool, is true; without `done`, all of them. */
  reset(done?: ArrayLike): void;

  /** Frees the memory of WebAssembly, which JavaScript does not free by itself, when the calls before it have ended. `act` then fails. */
  release(): Promise<void>;
}

/** An exported training step with its state: acts, and trains on rollouts. */
export class Learner {
  private constructor();

  /** Names of the arrays that `step` needs. */
  readonly rollout_entries: readonly string[];

  /** Dimension of time in these arrays: 0 for `[T, N, ...]`, 1 for `[N, T, ...]`. */
  readonly time_dim: 0 | 1;

  /** The learning rate, at least 0. It can be assigned at any time; the next training step uses it. */
  lr: number;

  /** Copies of the parameters of the networks by name. `Policy.load` accepts them. */
  readonly parameters: Arrays;

  /**
   * Loads `train_step.onnx`, with `train_step.policy.onnx` and `train_step.state.npz` beside it.
   *
   * @param path URL of `train_step.onnx`; in node, a URL or a path.
   * @throws {FileNotFoundError} One of the files is missing.
   * @throws {ValueError | TypeError} One of the files is not what was exported, or an argument is invalid; the message names it.
   */
  static load(path: string | URL, options?: Options): Promise<Learner>;

  /**
   * Returns actions of the policy with the current parameters.
   *
   * @param options `greedy`: true takes the greedy action, which needs no noise. `noise`: as in `Policy.act`.
   * @throws {ValueError | TypeError} An argument is invalid; the message names it.
   */
  act(observation: Observation, options?: { greedy?: boolean; noise?: ArrayLike }): Promise<PolicyOutput>;

  /** Sets the hidden states to 0 where `done`, `[N]`, bool, is true; without `done`, all of them. */
  reset(done?: ArrayLike): void;

  /**
   * Returns a copy of the hidden states from which the next `act` starts, `[num_envs, H]`. A policy without memory has `H = 0`.
   *
   * @throws {ValueError} `num_envs` is not the number of environments in the last `act`, unless `reset` ended all episodes.
   */
  hidden(num_envs: number): NdArray;

  /**
   * Runs one training step on `T` steps of `N` parallel environments, and updates the state.
   *
   * @param rollout Arrays by name, one for each of `rollout_entries`: `[T, N, ...]`, or `[N, T, ...]` if the training step was exported
   *   with this layout. `done`, `terminated` and `mask` are bool. If the loss estimates the entropy from samples, `noise`,
   *   `[samples, T, N, ...]`, may be passed too.
   * @returns The losses and `grad_norm`, the norm of the gradient before clipping, by name.
   * @throws {ValueError | TypeError} The rollout is invalid; the message names the entry.
   * @throws {FloatingPointError} The gradient is not finite. The state is unchanged.
   */
  step(rollout: { readonly [name: string]: Observation }): Promise<{ [name: string]: number }>;

  /**
   * Returns everything that `load_state` needs to continue as if training had never stopped: the bytes of an `.npz` file, which
   * `Learner.load_state` of runtime.py reads, too.
   */
  save_state(): Uint8Array;

  /**
   * Continues from a state that `save_state` made, here or in runtime.py: parameters, optimizer state, learning rate and random numbers.
   *
   * @param state The bytes of the `.npz` file. A compressed one needs `DecompressionStream`.
   * @throws {TypeError} `state` is not bytes.
   * @throws {ValueError} The bytes are not such a state, or it belongs to another graph. The learner is unchanged.
   */
  load_state(state: Uint8Array | ArrayBuffer): Promise<void>;

  /**
   * Frees the memory of WebAssembly, which JavaScript does not free by itself, when the calls before it have ended. `act` and `step` then
   * fail.
   */
  release(): Promise<void>;
}

/** An argument or a file has a wrong value. */
export class ValueError extends Error {}

/** There is no file at a URL or path. */
export class FileNotFoundError extends Error {}

/** The gradient of a training step is not finite. */
export class FloatingPointError extends Error {}
