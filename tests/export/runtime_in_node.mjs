// Runs a module, such as runtime.js, for tests: reads requests from standard input, one line of JSON each, and writes the answers.
// Arguments: the path of the module, and, if the requests need one, the name of a package of onnxruntime, found from the working folder.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [script, name] = process.argv.slice(2);
const runtime = await import(pathToFileURL(script).href);
const onnxruntime = name && createRequire(`${process.cwd()}/`)(name);
const objects = [];

/** Arrays travel as `{"array": [dtype, shape, bytes]}`, bytes as `{"bytes": text}`. */
function decoded(value) {
  if (Array.isArray(value)) return value.map(decoded);
  if (typeof value !== "object" || value === null) return value;
  if (value.bytes !== undefined) return Uint8Array.from(Buffer.from(value.bytes, "base64"));
  if (value.array === undefined) return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, decoded(entry)]));
  const [dtype, shape, text] = value.array;
  const data = {
    float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array, bool: Uint8Array,
  }[dtype];
  return new runtime.NdArray(dtype, shape, new data(Uint8Array.from(Buffer.from(text, "base64")).buffer));
}

const is_a = (value, name) => Boolean(runtime[name]) && value instanceof runtime[name];

function encoded(value) {
  if (is_a(value, "NdArray")) {
    const { buffer, byteOffset, byteLength } = value.data;
    return { array: [value.dtype, value.shape, Buffer.from(buffer, byteOffset, byteLength).toString("base64")] };
  }
  if (value instanceof Uint8Array) return { bytes: Buffer.from(value).toString("base64") };
  if (is_a(value, "Policy") || is_a(value, "Learner")) return { object: objects.push(value) - 1 };
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(encoded);
  return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, encoded(entry)]));
}

async function answer({ object, method, values, set }) {
  const given = decoded(values ?? []);
  if (method === "load") return runtime[object].load(given[0], { onnxruntime, ...given[1] });
  if (method === "run") {
    const program = new Function("runtime", "onnxruntime", "values", `return (async () => { ${object} })()`);
    return program(runtime, onnxruntime, given);
  }
  if (set) objects[object][method] = given[0];
  const found = objects[object][method];
  return typeof found === "function" ? found.apply(objects[object], given) : found;
}

for await (const line of createInterface({ input: process.stdin })) {
  let reply;
  try {
    reply = { value: encoded(await answer(JSON.parse(line))) };
  } catch (error) {
    reply = { error: [error.name, error.message, error.stack] };
  }
  process.stdout.write(`${JSON.stringify(reply)}\n`);
}
