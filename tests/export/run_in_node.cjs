// Runs ONNX files for other_runtimes.py: reads requests from standard input, one line of JSON each, and writes the answers.
// The argument is the folder of the package onnxruntime-web or onnxruntime-node.
const fs = require("fs");
const readline = require("readline");
const ort = require(process.argv[2]);

const arrays = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, int8: Int8Array, uint8: Uint8Array, bool: Uint8Array,
};
let session;

async function answer(request) {
  if (request.path) {
    if (session) await session.release();
    session = undefined;
    session = await ort.InferenceSession.create(fs.readFileSync(request.path), { executionProviders: [provider] });
    return {};
  }
  const feeds = {};
  for (const [name, [type, shape, data]] of Object.entries(request.inputs)) {
    const bytes = Uint8Array.from(Buffer.from(data, "base64")); // a copy that begins at an aligned address
    feeds[name] = new ort.Tensor(type, new arrays[type](bytes.buffer), shape);
  }
  const outputs = {};
  for (const [name, tensor] of Object.entries(await session.run(feeds))) {
    const { buffer, byteOffset, byteLength } = tensor.data;
    outputs[name] = [tensor.type, tensor.dims, Buffer.from(buffer, byteOffset, byteLength).toString("base64")];
  }
  return outputs;
}

const provider = process.argv[2].endsWith("onnxruntime-web") ? "wasm" : "cpu";
if (provider === "wasm") ort.env.wasm.numThreads = 1;

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    let reply;
    try {
      reply = await answer(JSON.parse(line));
    } catch (error) {
      reply = { error: String(error.message || error) };
    }
    process.stdout.write(JSON.stringify(reply) + "\n");
  }
})();
