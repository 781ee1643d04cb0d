// CartPole-v1, Acrobot-v1 and Pendulum-v1 of gymnasium in JavaScript: the same equations, in the same order and precision.
//
//   const environments = new Environments("CartPole-v1", 8, 0); // 8 environments, seed 0
//   let observation = environments.observe();
//   const step = environments.step(action); // reward, next_observation, terminated, ...
//   observation = step.observation;
//
// N: number of environments. S: size of a state. O: size of an observation. Arrays are `{ dtype, shape, data }`, as runtime.js takes them.

/**
 * The environments by name. Each has
 *
 * - `state_size`, `observation_size`: S and O.
 * - `choices`: number of discrete actions; undefined if the action is a number.
 * - `time_limit`: steps after which an episode is truncated.
 * - `seconds`: simulated time of a step.
 * - `frames_per_second`: steps that gymnasium shows in a second.
 * - `pushed`: which entry of the state is the velocity that a push from outside changes.
 * - `start(uniform)`: returns the first state of an episode. `uniform(low, high)` draws a number.
 * - `advance(state, action)`: returns the state after a step, the reward, and whether the episode terminated.
 * - `observe(state)`: returns the observation.
 */
export const ENVIRONMENTS = {
  "CartPole-v1": {
    state_size: 4,
    observation_size: 4,
    choices: 2,
    time_limit: 500,
    seconds: 0.02,
    frames_per_second: 50,
    pushed: 3,
    start: (uniform) => Array.from({ length: 4 }, () => uniform(-0.05, 0.05)),
    advance: advance_cart_pole,
    observe: (state) => state,
  },
  "Acrobot-v1": {
    state_size: 4,
    observation_size: 6,
    choices: 3,
    time_limit: 500,
    seconds: 0.2,
    frames_per_second: 15,
    pushed: 3,
    start: (uniform) => Array.from({ length: 4 }, () => Math.fround(uniform(-0.1, 0.1))),
    advance: advance_acrobot,
    observe: ([first, second, ...velocities]) => [
      Math.cos(first), Math.sin(first), Math.cos(second), Math.sin(second), ...velocities,
    ],
  },
  "Pendulum-v1": {
    state_size: 2,
    observation_size: 3,
    time_limit: 200,
    seconds: 0.05,
    frames_per_second: 30,
    pushed: 1,
    start: (uniform) => [uniform(-Math.PI, Math.PI), uniform(-1, 1)],
    advance: advance_pendulum,
    observe: ([angle, velocity]) => [Math.cos(angle), Math.sin(angle), velocity],
  },
};

/** Largest distance of the cart from the centre, and largest angle of the pole, of an episode that goes on. */
export const CART_POLE_LIMITS = { position: 2.4, angle: (12 * 2 * Math.PI) / 360 };

function advance_cart_pole([x, velocity, angle, angular_velocity], action) {
  const [gravity, pole_mass, total_mass, half_length, seconds] = [9.8, 0.1, 0.1 + 1.0, 0.5, 0.02];
  const force = action === 1 ? 10.0 : -10.0;
  const [cosine, sine] = [Math.cos(angle), Math.sin(angle)];
  const common = (force + pole_mass * half_length * (angular_velocity * angular_velocity) * sine) / total_mass;
  const angular_acceleration =
    (gravity * sine - cosine * common) / (half_length * (4.0 / 3.0 - (pole_mass * (cosine * cosine)) / total_mass));
  const acceleration = common - (pole_mass * half_length * angular_acceleration * cosine) / total_mass;
  const state = [
    x + seconds * velocity,
    velocity + seconds * acceleration,
    angle + seconds * angular_velocity,
    angular_velocity + seconds * angular_acceleration,
  ];
  const terminated = Math.abs(state[0]) > CART_POLE_LIMITS.position || Math.abs(state[2]) > CART_POLE_LIMITS.angle;
  return { state, reward: 1, terminated };
}

function advance_acrobot(before, action) {
  const state = runge_kutta((state) => acrobot_derivative(state, action - 1), before, 0.2);
  state[0] = wrapped(state[0]);
  state[1] = wrapped(state[1]);
  state[2] = clamped(state[2], 4 * Math.PI);
  state[3] = clamped(state[3], 9 * Math.PI);
  const terminated = -Math.cos(state[0]) - Math.cos(state[1] + state[0]) > 1;
  return { state, reward: terminated ? 0 : -1, terminated };
}

/** Returns the derivative of the two angles and angular velocities by time. Lengths and masses of the links are 1. */
function acrobot_derivative([angle, joint, velocity, joint_velocity], torque) {
  const [center, inertia, gravity] = [0.5, 1.0, 9.8];
  const d1 = center ** 2 + (1 + center ** 2 + 2 * center * Math.cos(joint)) + inertia + inertia;
  const d2 = center ** 2 + center * Math.cos(joint) + inertia;
  const phi2 = center * gravity * Math.cos(angle + joint - Math.PI / 2);
  const phi1 =
    -center * joint_velocity ** 2 * Math.sin(joint) -
    2 * center * joint_velocity * velocity * Math.sin(joint) +
    (center + 1) * gravity * Math.cos(angle - Math.PI / 2) +
    phi2;
  const joint_acceleration =
    (torque + (d2 / d1) * phi1 - center * velocity ** 2 * Math.sin(joint) - phi2) / (center ** 2 + inertia - d2 ** 2 / d1);
  return [velocity, joint_velocity, -(d2 * joint_acceleration + phi1) / d1, joint_acceleration];
}

/** Returns the state after `seconds`, by one step of the fourth-order Runge-Kutta method. */
function runge_kutta(derivative, state, seconds) {
  const moved = (slope, time) => state.map((x, i) => x + time * slope[i]);
  const k1 = derivative(state);
  const k2 = derivative(moved(k1, seconds / 2));
  const k3 = derivative(moved(k2, seconds / 2));
  const k4 = derivative(moved(k3, seconds));
  return state.map((x, i) => x + (seconds / 6) * (k1[i] + 2 * k2[i] + 2 * k3[i] + k4[i]));
}

function advance_pendulum([angle, velocity], action) {
  const [gravity, seconds] = [10.0, 0.05];
  // The action is float32, and so are gymnasium's products of it with constants.
  const { fround } = Math;
  const torque = fround(clamped(action, 2));
  const turn = 2 * Math.PI;
  const from_upright = ((((angle + Math.PI) % turn) + turn) % turn) - Math.PI;
  const cost = from_upright ** 2 + 0.1 * velocity ** 2 + fround(fround(0.001) * fround(torque * torque));
  const acceleration = ((3 * gravity) / 2) * Math.sin(angle) + fround(3 * torque);
  const next_velocity = clamped(velocity + acceleration * seconds, 8);
  return { state: [angle + next_velocity * seconds, next_velocity], reward: -cost, terminated: false };
}

function clamped(x, limit) {
  return Math.min(Math.max(x, -limit), limit);
}

/** Returns the angle between -pi and pi. */
function wrapped(angle) {
  while (angle > Math.PI) angle -= 2 * Math.PI;
  while (angle < -Math.PI) angle += 2 * Math.PI;
  return angle;
}

/**
 * N environments of one kind, which start the next episode in the step that ends an episode.
 *
 * `states`: the states, arrays of S numbers, float64. They may be assigned.
 */
export class Environments {
  #kind;
  #steps;
  #uniform;

  /**
   * @param name A key of ENVIRONMENTS.
   * @param num_envs N, at least 1.
   * @param seed An integer: the same seed gives the same starts of episodes. They are not those of gymnasium.
   */
  constructor(name, num_envs, seed) {
    if (!Object.hasOwn(ENVIRONMENTS, name)) {
      throw new Error(`environment: expected ${Object.keys(ENVIRONMENTS).join(", ")}, got ${name}`);
    }
    if (!(Number.isInteger(num_envs) && num_envs >= 1)) throw new Error(`num_envs: expected an integer of at least 1, got ${num_envs}`);
    if (!Number.isInteger(seed)) throw new Error(`seed: expected an integer, got ${seed}`);
    this.#kind = ENVIRONMENTS[name];
    this.num_envs = num_envs;
    this.#uniform = uniform_numbers(seed);
    this.#steps = new Int32Array(num_envs);
    this.states = Array.from({ length: num_envs }, () => this.#kind.start(this.#uniform));
  }

  /** Returns the observations of the present states, `[N, O]`, float32. */
  observe() {
    const size = this.#kind.observation_size;
    const data = new Float32Array(this.num_envs * size);
    this.states.forEach((state, i) => data.set(this.#kind.observe(state), i * size));
    return { dtype: "float32", shape: [this.num_envs, size], data };
  }

  /**
   * Takes one step in every environment.
   *
   * @param action `{ data }` of N numbers: an integer below `choices`, or the torque, which is clamped to its limits.
   * @returns `observation`, `[N, O]`, float32: after an episode's end, the first of the next episode. `next_observation`, `[N, O]`,
   *   float32, and `next_states`: what the step led to, also at an episode's end. `reward`, `[N]`, float32. `terminated`, `truncated`, `done`, `[N]`, bool:
   *   the episode ended by the rules, at the limit of time (also if it terminated at this step), or one of both.
   */
  step(action) {
    const { choices, time_limit, start, advance } = this.#kind;
    if (action.data.length !== this.num_envs) {
      throw new Error(`action: expected ${this.num_envs} numbers, one for each environment, got ${action.data.length}`);
    }
    const flags = () => ({ dtype: "bool", shape: [this.num_envs], data: new Uint8Array(this.num_envs) });
    const [terminated, truncated, done] = [flags(), flags(), flags()];
    const reward = { dtype: "float32", shape: [this.num_envs], data: new Float32Array(this.num_envs) };
    for (let i = 0; i < this.num_envs; i++) {
      const chosen = Number(action.data[i]);
      if (choices ? !(Number.isInteger(chosen) && chosen >= 0 && chosen < choices) : !Number.isFinite(chosen)) {
        throw new Error(`action: expected ${choices ? `an integer from 0 to ${choices - 1}` : "a finite number"}, got ${chosen}`);
      }
      const after = advance(this.states[i], chosen);
      this.states[i] = after.state;
      reward.data[i] = after.reward;
      terminated.data[i] = Number(after.terminated);
      truncated.data[i] = Number(++this.#steps[i] >= time_limit);
      done.data[i] = terminated.data[i] | truncated.data[i];
    }
    const [next_observation, next_states] = [this.observe(), [...this.states]];
    for (let i = 0; i < this.num_envs; i++) {
      if (!done.data[i]) continue;
      this.states[i] = start(this.#uniform);
      this.#steps[i] = 0;
    }
    const observation = done.data.includes(1) ? this.observe() : next_observation;
    return { observation, next_observation, next_states, reward, terminated, truncated, done };
  }
}

/** Returns a function that draws a number between two limits. It is the generator sfc32 by Chris Doty-Humphrey. */
function uniform_numbers(seed) {
  let [a, b, c, counter] = [0, seed | 0, Math.floor(seed / 2 ** 32) | 0, 1];
  const bits = () => {
    const sum = (a + b + counter++) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + sum) | 0;
    return sum >>> 0;
  };
  for (let i = 0; i < 12; i++) bits(); // so that similar seeds give different numbers
  return (low, high) => low + ((high - low) * bits()) / 2 ** 32;
}
