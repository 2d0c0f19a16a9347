'use strict'

const assert = require('node:assert')
const { spawnSync } = require('node:child_process')
const { existsSync, readFileSync } = require('node:fs')
const isValid = require('./schema')
const serve = require('../lib/serve')

let count = 0

// Every message of every test is checked.
serve.onMessage = message => {
  assert.ok(isValid(message), JSON.stringify(message))
  count += 1
}

/** Returns the number of messages that were checked. */
exports.checked = () => count

/** Why the tests cannot run here; undefined if they can. They always run where PINFOLD is set. */
exports.skip = (() => {
  if (process.env.PINFOLD) return undefined
  const { error } = spawnSync('pinfold', ['--version'])
  return error && `there is no pinfold in PATH (${error.code}): set PINFOLD to its path`
})()

/** Waits until none of these processes runs. The bound only ends a hang. */
exports.allEnded = async pids => {
  const runs = pid => existsSync(`/proc/${pid}`) && !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  const isLeft = pid => {
    try {
      return runs(pid)
    } catch {
      return false // It has ended meanwhile.
    }
  }
  for (let attempt = 0; attempt < 1000; attempt++) {
    if (!pids.some(isLeft)) return
    await new Promise(resolve => setTimeout(resolve, 20))
  }
  assert.fail(`still running: ${pids.filter(isLeft)}`)
}

/** A command with a child and with a child in a session of its own. It prints the pids. */
exports.TREE = 'sleep 1000 & a=$!; setsid sleep 1000 & echo $$ $a $!; wait'

/** Returns the next piece of a stream as text. */
exports.next = stream => new Promise(resolve => stream.once('data', bytes => resolve(String(bytes))))
