// Streams a completion over HTTP with fetch, as browsers have it.  usage: node generate_stream.mjs [HOST:PORT]
const [server = "localhost:8000"] = process.argv.slice(2);
const response = await fetch(`http://${server}/v2/models/tensorrt_llm_bls/generate_stream`, {
  method: "POST",
  body: JSON.stringify({ text_input: "Once upon a time", max_tokens: 40, stream: true }),
});
if (!response.ok) throw new Error(await response.text());
const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
let rest = "";
for (let read = await reader.read(); !read.done; read = await reader.read()) {
  // Each server-sent event is a line "data: {...}" and an empty one; a read may end within it.
  const events = (rest + read.value).split("\n\n");
  rest = events.pop();
  for (const event of events) {
    const { text_output, error } = JSON.parse(event.slice("data: ".length));
    if (error) throw new Error(error);
    process.stdout.write(text_output);
  }
}
