'use strict'
// The examples of README.md print what it shows, and the types name what the package exports.

const { test } = require('node:test')
const assert = require('node:assert')
const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const { spawnSync } = require('node:child_process')
const { skip } = require('./support')

const root = join(__dirname, '..')
const examples = [...readFileSync(join(root, 'README.md'), 'utf8').matchAll(/```js\n(.*?)```\n\n```text\n(.*?)```/gs)]

test('the examples of the README', { skip }, () => {
  assert.strictEqual(examples.length, 2)
  for (const [, script, output] of examples) {
    const words = ['-e', script.replaceAll("require('pinfold')", `require(${JSON.stringify(root)})`)]
    const ran = spawnSync(process.execPath, words, { encoding: 'utf8', timeout: 60_000 })
    assert.deepStrictEqual([ran.stdout, ran.stderr], [output, ''])
  }
})

test('the types name what the package exports', () => {
  const types = readFileSync(join(root, 'index.d.ts'), 'utf8')
  const declared = new Set([...types.matchAll(/^export (?:class|function) (\w+)/gm)].map(([, name]) => name))
  assert.deepStrictEqual([...declared].sort(), Object.keys(require('..')).sort())
  const methods = Object.getOwnPropertyNames(require('..').ChildProcess.prototype)
  for (const method of ['kill', 'cancel', 'resize']) {
    assert.ok(methods.includes(method) && new RegExp(`^  ${method}\\(`, 'm').test(types), method)
  }
})
