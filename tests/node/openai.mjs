// The official OpenAI package for Node against the running service: base64 by default, as QMD's OpenAI forks use it.
// node openai.mjs BASE_URL < {"texts": [...], "dimensions": 64} > {"vectors": [...], ...}

import OpenAI from 'openai'
import { text } from 'node:stream/consumers'

const { texts, dimensions } = JSON.parse(await text(process.stdin))
const sdk = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: 'sk-anything', maxRetries: 0 })

const answer = await sdk.embeddings.create({ model: 'text-embedding-3-small', input: texts })
const floats = await sdk.embeddings.create({ model: 'default', input: texts, encoding_format: 'float' })
const cut = await sdk.embeddings.create({ model: 'default', input: texts[0], dimensions })
const models = []
for await (const model of sdk.models.list()) models.push(model.id)

let error
try {
  await sdk.embeddings.create({ model: 'default', input: texts[0], dimensions: 100000 })
} catch (caught) {
  error = { name: caught.constructor.name, status: caught.status, param: caught.param, message: caught.message }
}

process.stdout.write(
  JSON.stringify({
    vectors: answer.data.map((item) => Array.from(item.embedding)),
    indices: answer.data.map((item) => item.index),
    usage: answer.usage,
    floats: floats.data.map((item) => Array.from(item.embedding)),
    model: floats.model,
    cut: Array.from(cut.data[0].embedding),
    models,
    error,
  }),
)
