// Trains a Learner of runtime.js by A2C (advantage actor-critic) in the environments of environments.js.
//
//   const training = new Training(learner, "CartPole-v1", { num_steps: 16, num_envs: 8, seed: 0 });
//   await training.step(); // one step of each environment; every 16th step is followed by an update of the networks
//   await greedy_return(learner, "CartPole-v1", 20, 0); // the mean return of 20 episodes
import { Environments } from "./environments.js";

/** Number of episodes in the mean return of training. */
export const RECENT_EPISODES = 20;

/** Largest number of points in the history of a training. Beyond it, every second point is dropped. */
const LONGEST_HISTORY = 1000;

/**
 * A training: environments, the rollout so far, and what has been measured.
 *
 * - `num_envs`: number of environments. It may be assigned; the next rollout then begins new episodes.
 * - `updates`, `steps`, `episodes`: number of updates, of steps of all environments together, and of episodes that ended.
 * - `mean_return`: mean return of the last RECENT_EPISODES episodes; undefined before an episode has ended.
 * - `history`: objects `{ update, mean_return, entropy }`, one for each update, or for every 2nd, 4th, ... of a long training.
 */
export class Training {
  updates = 0;
  steps = 0;
  episodes = 0;
  history = [];
  #learner;
  #environment;
  #num_steps;
  #seed;
  #reward_scale;
  #environments;
  #observation;
  #rollout = [];
  #running;
  #returns = [];
  #interval = 1;

  /**
   * @param options `num_steps`: steps of each environment in a rollout. `num_envs`: see above. `seed`: seed of the environments.
   *   `reward_scale`: the networks learn from rewards times this number; the returns are those of the environment.
   */
  constructor(learner, environment, { num_steps, num_envs, seed, reward_scale = 1 }) {
    this.#learner = learner;
    this.#environment = environment;
    this.#num_steps = num_steps;
    this.#seed = seed;
    this.#reward_scale = reward_scale;
    this.num_envs = num_envs;
    this.#begin();
  }

  get mean_return() {
    return this.#returns.length ? mean(this.#returns) : undefined;
  }

  /** Takes one step in every environment, and updates the networks when the rollout is full. Returns whether there was an update. */
  async step() {
    if (!this.#rollout.length && this.num_envs !== this.#environments.num_envs) this.#begin();
    const output = await this.#learner.act(this.#observation);
    const step = this.#environments.step(output.environment_action);
    const reward = { ...step.reward, data: step.reward.data.map((reward) => reward * this.#reward_scale) };
    const mask = { ...step.done, data: new Uint8Array(this.#environments.num_envs).fill(1) }; // no step is spent on a reset
    this.#rollout.push({ ...output, ...step, reward, mask, observation: this.#observation });
    this.#observation = step.observation;
    this.#count(step);
    if (this.#rollout.length < this.#num_steps) return false;
    const rollout = this.#rollout;
    this.#rollout = [];
    const entries = this.#learner.rollout_entries.map((name) => [name, rollout.map((entry) => entry[name])]);
    const { entropy } = await this.#learner.step(Object.fromEntries(entries));
    this.updates++;
    this.#record({ update: this.updates, mean_return: this.mean_return, entropy });
    return true;
  }

  #begin() {
    this.#environments = new Environments(this.#environment, this.num_envs, this.#seed + this.updates);
    this.#observation = this.#environments.observe();
    this.#running = new Float64Array(this.num_envs);
  }

  #count({ reward, done }) {
    this.steps += done.data.length;
    done.data.forEach((is_done, i) => {
      this.#running[i] += reward.data[i];
      if (!is_done) return;
      this.episodes++;
      this.#returns = [...this.#returns, this.#running[i]].slice(-RECENT_EPISODES);
      this.#running[i] = 0;
    });
  }

  #record(point) {
    if (point.update % this.#interval) return;
    this.history.push(point);
    if (this.history.length <= LONGEST_HISTORY) return;
    this.#interval *= 2;
    this.history = this.history.filter(({ update }) => update % this.#interval === 0);
  }
}

/**
 * Returns the mean return of the greedy policy.
 *
 * @param episodes Number of episodes. They run in as many environments.
 * @param seed Seed of the environments.
 * @param turn Is called and awaited after each step: a page lets the browser do its other work there.
 */
export async function greedy_return(learner, environment, episodes, seed, turn = () => {}) {
  const environments = new Environments(environment, episodes, seed);
  const [returns, running] = [new Float64Array(episodes), new Uint8Array(episodes).fill(1)];
  let observation = environments.observe();
  while (running.includes(1)) {
    const { environment_action } = await learner.act(observation, { greedy: true });
    const step = environments.step(environment_action);
    for (let i = 0; i < episodes; i++) {
      if (running[i]) returns[i] += step.reward.data[i];
      if (step.done.data[i]) running[i] = 0;
    }
    observation = step.observation;
    await turn();
  }
  return mean([...returns]);
}

function mean(numbers) {
  return numbers.reduce((sum, x) => sum + x, 0) / numbers.length;
}
