'use strict'

const { test } = require('node:test')
const assert = require('node:assert')
const { spawn: spawnPlain } = require('node:child_process')
const { once } = require('node:events')
const { join } = require('node:path')
const { run, exec, CommandError, AbortError } = require('..')
const { allEnded, next, skip, TREE } = require('./support')

test('the promise', { skip }, async () => {
  const result = await run('sh', ['-c', 'echo out; cat >&2'], { input: 'ä' })
  assert.deepStrictEqual([result.stdout, result.stderr, result.exitCode, result.failed], ['out', 'ä', 0, false])
  const error = await run('sh', ['-c', 'echo why >&2; exit 3']).catch(error => error)
  assert.ok(error instanceof CommandError)
  assert.deepStrictEqual([error.exitCode, error.stderr, error.report.exit_code], [3, 'why', 3])
  assert.match(error.message, /failed with exit code 3: sh -c .*\nwhy$/s)
  const failed = await run('sh', ['-c', 'kill -USR1 $$'], { reject: false })
  assert.deepStrictEqual([failed.failed, failed.signal, failed.exitCode], [true, 'SIGUSR1', undefined])
  assert.deepStrictEqual((await run('printf', ['a\\0'], { encoding: 'buffer' })).stdout, Buffer.from('a\0'))
  assert.strictEqual((await run('sh', ['-c', 'echo 1; echo 2 >&2; echo 3'], { merged: true })).stdout, '1\n2\n3')
})

test('pinfold ends and reports leftovers', { skip }, async () => {
  const { stdout, leftovers } = await exec('setsid sleep 1000 & echo $!')
  assert.strictEqual(leftovers, 1)
  await allEnded([stdout.trim()])
})

test('exec with a callback', { skip }, async () => {
  const [error, stdout] = await new Promise(resolve => exec('echo $X', { env: { ...process.env, X: '1' } }, (...all) => resolve(all)))
  assert.deepStrictEqual([error, stdout], [null, '1\n'])
  const [failed] = await new Promise(resolve => exec('exit 4', (...all) => resolve(all)))
  assert.strictEqual(failed.exitCode, 4)
})

test('timeout and cwd', { skip }, async () => {
  const error = await run('sh', ['-c', TREE], { timeout: 200 }).catch(error => error)
  assert.deepStrictEqual([error.timedOut, error.report.reason], [true, 'deadline'])
  await allEnded(error.stdout.split(' '))
  assert.strictEqual((await run('pwd', { cwd: '/' })).stdout, '/')
})

test('AbortSignal', { skip }, async () => {
  const controller = new AbortController()
  const running = run('sh', ['-c', TREE], { signal: controller.signal })
  const pids = (await next(running.stdout)).trim().split(' ')
  controller.abort(new Error('enough'))
  const error = await running.catch(error => error)
  assert.ok(error instanceof AbortError)
  assert.deepStrictEqual([error.code, error.cause.message, error.isCanceled], ['ABORT_ERR', 'enough', true])
  await allEnded(pids)
  const before = await run('sleep', ['1000'], { signal: AbortSignal.abort() }).catch(error => error)
  assert.ok(before instanceof AbortError)
})

test('many at once', { skip }, async () => {
  const numbers = [...Array(100).keys()]
  const results = await Promise.all(numbers.map(number => run('cat', { input: String(number) })))
  assert.deepStrictEqual(results.map(result => Number(result.stdout)), numbers)
})

// A program that starts the tree and prints its pids, and then does something.
const program = (then) => `
  const { spawn } = require(${JSON.stringify(join(__dirname, '..'))})
  const child = spawn('sh', ['-c', ${JSON.stringify(TREE)}])
  child.on('error', () => {})
  child.stdout.once('data', pids => { process.stdout.write(pids); ${then} })`

test('nothing outlives the program', { skip }, async () => {
  for (const [then, signal] of [['', 'SIGKILL'], ['', 'SIGINT'], ['', 'SIGHUP'], ['', 'SIGTERM'],
    ['process.exit(0)', null], ['throw new Error("x")', null]]) {
    const host = spawnPlain(process.execPath, ['-e', program(then)], { stdio: ['ignore', 'pipe', 'ignore'] })
    const pids = (await next(host.stdout)).trim().split(' ')
    assert.strictEqual(pids.length, 3)
    if (signal) host.kill(signal)
    await once(host, 'close')
    await allEnded(pids)
  }
})

test('a program without commands ends by itself, and one with a command waits for it', { skip }, async () => {
  const script = `
    const { run } = require(${JSON.stringify(join(__dirname, '..'))})
    run('sh', ['-c', 'sleep 0.1; echo done']).then(({ stdout }) => console.log(stdout))`
  const host = spawnPlain(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  assert.strictEqual(await next(host.stdout), 'done\n')
  assert.deepStrictEqual(await once(host, 'close'), [0, null])
})

test('when pinfold is killed, its commands fail, and the next one works', { skip }, async () => {
  const running = run('sh', ['-c', 'echo $$; exec sleep 1000'])
  const pid = (await next(running.stdout)).trim()
  const { readFileSync } = require('node:fs')
  const children = readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8').trim().split(' ')
  for (const child of children) {
    if (readFileSync(`/proc/${child}/cmdline`, 'utf8').includes('serve\0--stdio')) process.kill(Number(child), 'SIGKILL')
  }
  const error = await running.catch(error => error)
  assert.strictEqual(error.code, 'ERR_PINFOLD_LOST')
  await allEnded([pid])
  assert.strictEqual((await run('echo', ['again'])).stdout, 'again')
})
